"""Training a hidden-state switcher on the same rollouts as an LM switcher.

The candidates read every stored trace once; the head is fitted to what they see there. Features are
kept on disk beside the head while it is trained, so that a killed run does not read them again.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from antiphon.config import CollectConfig, parse
from antiphon.decoding.build import build_options
from antiphon.decoding.engine import Engine
from antiphon.decoding.hidden import WEIGHTS, ChoiceHead, can_see, features_of
from antiphon.decoding.policies import Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.switcher_card import SwitcherCard
from antiphon.errors import InputError
from antiphon.record import digest, environment, what_differs, write_json
from antiphon.training.finetuning import split_by_group
from antiphon.training.settings import HeadConfig, LabelConfig
from antiphon.training.store import Store, StoredInstance, identities
from antiphon.training.switcher import same_pool, trained_on, write_switcher_card
from antiphon.training.targets import labelled

_DONE = "training.json"
_FEATURES = "features.safetensors"


@dataclass(frozen=True)
class _Example:
    """An instance's features and target; ``group``: its query."""

    features: torch.Tensor
    target: torch.Tensor
    group: str


def train_hidden_switcher(
    stores: Sequence[Store],
    out: Path,
    labels: LabelConfig,
    config: HeadConfig,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Train a head and save it to ``out``, ready for ``generate --switcher``.

    Args:
        stores: rollouts of one pool; one a task.
        out: its directory.
        labels: what it is taught.
        config: how.
        overwrite: drop what is there.
        progress: called with (stage, done, total).

    Returns:
        What the training did (also in ``training.json``): examples, epochs, validation loss and
        accuracy, seconds, parameters.

    Raises:
        InputError: stores of different pools, all tied, or ``out`` holds another training.
        CapabilityError: a candidate does not show its hidden states.
    """
    same_pool(stores)
    names = stores[0].names
    chosen = [(store, *pair) for store in stores for pair in labelled(store, labels)]
    plan: dict[str, Any] = {
        "config": config.model_dump(),
        "labels": labels.model_dump(),
        "rows": digest([[store.about["fingerprint"], i.id, t] for store, i, t in chosen]),
        "models": identities(stores[0].candidates),
    }
    done = _finished(out, plan, overwrite)
    if done is not None:
        return done
    out.mkdir(parents=True, exist_ok=True)
    features = _read_features(stores, chosen, out, plan, config, progress)
    targets = torch.tensor([target for _, _, target in chosen])
    examples = [
        _Example(row, target, instance.group)
        for row, target, (_, instance, _) in zip(features, targets, chosen, strict=True)
    ]
    head, report = _fit(examples, len(names), config, progress)
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, out / WEIGHTS)
    SwitcherCard(
        kind="hidden",
        candidates=names,
        models=plan["models"],
        trained_on=trained_on(stores, labels),
        settings={"features": features.shape[1], "hidden": config.hidden},
    ).write(out)
    write_switcher_card(out, "Hidden-state", stores, labels, report, None)
    (out / _FEATURES).unlink(missing_ok=True)
    write_json(out / _DONE, {"plan": plan, "report": report, "environment": environment()})
    return report


def _finished(out: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The report of a finished training of the same plan.

    Raises:
        InputError: there is another training.
    """
    file = out / _DONE
    if overwrite or not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    differing = what_differs(found.get("plan"), plan)
    if differing:
        raise InputError(
            f"{out} holds a switcher that was trained otherwise: " + "; ".join(differing[:3]),
            remedy="give another --out, or --overwrite",
        )
    report: dict[str, Any] = found["report"]
    return report


def _read_features(
    stores: Sequence[Store],
    chosen: Sequence[tuple[Store, StoredInstance, list[float]]],
    out: Path,
    plan: dict[str, Any],
    config: HeadConfig,
    progress: Callable[[str, int, int], None] | None,
) -> torch.Tensor:
    """``[instances, features]``: what the candidates see at the end of each trace."""
    cache = out / _FEATURES
    key = digest(plan)
    if cache.is_file():
        stored: dict[str, torch.Tensor] = load_file(cache)
        if key in stored:
            return stored[key]
    first = stores[0]
    pool = CandidatePool.load(first.candidates)
    parts = []
    done = 0
    for store in stores:
        settings = store.about["fingerprint"]["config"]
        engine = Engine(
            pool.candidates(),
            Uniform(),
            build_options(parse(CollectConfig, settings, str(store.path))),
        )
        mine = [instance for owner, instance, _ in chosen if owner is store]
        for start in range(0, len(mine), config.batch_instances):
            part = mine[start : start + config.batch_instances]
            rows = engine.rows([instance.query for instance in part], [0] * len(part))
            for row, instance in zip(rows, part, strict=True):
                row.resume(instance.turns)
            writers = engine.open(len(rows), engine.longest(rows))
            engine.read(rows, writers)
            unseen = [i.id for r, i in zip(rows, part, strict=True) if not can_see(r, len(pool))]
            if unseen:
                raise InputError(
                    f"the trace of instance {unseen[0]} fills a candidate's context",
                    remedy="collect with a smaller max_new_tokens",
                )
            parts.append(features_of(rows, len(pool)))
            for row in rows:
                engine.release(row, writers)
            done += len(part)
            if progress is not None:
                progress("reading traces", done, len(chosen))
    features = torch.cat(parts)
    temporary = cache.with_name(cache.name + ".tmp")
    save_file({key: features}, temporary)
    temporary.replace(cache)
    return features


def _fit(
    examples: Sequence[_Example],
    candidates: int,
    config: HeadConfig,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[ChoiceHead, dict[str, Any]]:
    """Train the head; the weights of the best epoch are kept."""
    began = time.perf_counter()
    training, held_out = split_by_group(examples, config.validation_share, config.seed)
    features = torch.stack([example.features for example in training])
    targets = torch.stack([example.target for example in training])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = ChoiceHead(features.shape[1], candidates, config.hidden, config.dropout)
        head.standardise(features)
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        best, best_state, best_epoch = _evaluate(head, held_out), copy.deepcopy(head), 0
        epoch, epochs = 0, max(1, round(config.epochs))
        for epoch in range(1, epochs + 1):
            head.train()
            for batch in torch.split(torch.randperm(len(training)), config.batch_size):
                loss = -(targets[batch] * head(features[batch]).log_softmax(-1)).sum(-1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            found = _evaluate(head, held_out)
            if found[0] < best[0]:
                best, best_state, best_epoch = found, copy.deepcopy(head), epoch
            if progress is not None:
                progress("training the head", epoch, epochs)
            if config.patience and epoch - best_epoch >= config.patience:
                break
    return best_state.eval(), {
        "train_examples": len(training),
        "validation_examples": len(held_out),
        "epochs": epoch,
        "best_epoch": best_epoch,
        "best_validation_loss": best[0],
        "best_validation_accuracy": best[1],
        "trainable_parameters": sum(p.numel() for p in best_state.parameters()),
        "seconds": round(time.perf_counter() - began, 3),
    }


@torch.no_grad()
def _evaluate(head: ChoiceHead, examples: Sequence[_Example]) -> tuple[float, float]:
    """Mean loss (nats), and the share of examples for which a best candidate is chosen."""
    head.eval()
    features = torch.stack([example.features for example in examples])
    targets = torch.stack([example.target for example in examples])
    scores = head(features).log_softmax(-1)
    loss = -(targets * scores).sum(-1).mean()
    chosen = targets.gather(1, scores.argmax(-1, keepdim=True))[:, 0]
    right = (chosen >= targets.amax(-1)).float().mean()
    return float(loss), float(right)
