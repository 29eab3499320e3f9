"""Training a hidden-state switcher on the same rollouts as an LM switcher.

The candidates read every stored trace once; the head is fitted to what they see there. Features are
kept on disk beside the head while it is trained, so that a killed run does not read them again.
"""

from __future__ import annotations

import copy
import math
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
from antiphon.errors import AntiphonError, InputError
from antiphon.record import digest
from antiphon.training.finetuning import split_by_group
from antiphon.training.output import Output
from antiphon.training.settings import HeadConfig, LabelConfig
from antiphon.training.store import Store, StoredInstance, identities
from antiphon.training.switcher import same_pool, trained_on, write_switcher_card
from antiphon.training.targets import labelled


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
        InputError: stores of different pools, all tied, too few queries, or ``out`` holds another
            training or a model.
        CapabilityError: a candidate does not show its hidden states.
    """
    same_pool(stores)
    names = stores[0].names
    chosen = [(store, *pair) for store in stores for pair in labelled(store, labels)]
    found = [instance for _, instance, _ in chosen]
    split_by_group(found, config.validation_share, config.seed)  # refused before models are loaded
    models = identities(stores[0].candidates)
    plan: dict[str, Any] = {
        "task": "hidden-state switcher",
        "examples": digest([[store.about["fingerprint"], i.id, t] for store, i, t in chosen]),
        "model": digest(models),
        "config": {**config.model_dump(), "labels": labels.model_dump()},
        "format": 1,
    }
    with Output(out, plan, overwrite=overwrite) as output:
        if output.report is not None:
            return output.report
        # Of another plan's features nothing can be used.
        cache = output.checkpoints / f"features-{digest(plan)[:16]}.safetensors"
        features, kept = _read_features(stores, chosen, cache, config, progress)
        examples = [
            _Example(row, torch.tensor(chosen[place][2]), chosen[place][1].group)
            for row, place in zip(features, kept.tolist(), strict=True)
        ]
        head, report = _fit(examples, len(names), config, progress)
        report["left_out"] = len(chosen) - len(examples)
        output.staging.mkdir(parents=True)
        weights = {k: v.contiguous() for k, v in head.state_dict().items()}
        save_file(weights, output.staging / WEIGHTS)
        SwitcherCard(
            kind="hidden",
            candidates=names,
            models=models,
            trained_on=trained_on(stores, labels),
            settings={"features": features.shape[1], "hidden": config.hidden},
        ).write(output.staging)
        write_switcher_card(output.staging, out, "Hidden-state", stores, labels, report, None)
        output.finish(output.staging, plan["config"], report)
    return report


def _read_features(
    stores: Sequence[Store],
    chosen: Sequence[tuple[Store, StoredInstance, list[float]]],
    cache: Path,
    config: HeadConfig,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the candidates see at the end of each trace, ``[instances, features]``, and the place of
    each such instance in ``chosen``; a trace that fills a candidate's context is left out, since
    nobody is asked there. Kept in ``cache`` for a run that goes on."""
    if cache.is_file():
        stored: dict[str, torch.Tensor] = load_file(cache)
        return stored["features"], stored["kept"]
    pool = CandidatePool.load(stores[0].candidates)
    parts: list[torch.Tensor] = []
    kept: list[int] = []
    for store in stores:
        settings = store.about["fingerprint"]["config"]
        options = build_options(parse(CollectConfig, settings, str(store.path)))
        engine = Engine(pool.candidates(), Uniform(), options)
        mine = [place for place, (owner, _, _) in enumerate(chosen) if owner is store]
        for start in range(0, len(mine), config.batch_instances):
            places = mine[start : start + config.batch_instances]
            rows = engine.rows([chosen[place][1].query for place in places], [0] * len(places))
            for row, place in zip(rows, places, strict=True):
                row.resume(chosen[place][1].turns)
            writers = engine.open(len(rows), engine.longest(rows))
            engine.read(rows, writers)
            seen = [n for n, row in enumerate(rows) if can_see(row, len(pool))]
            if seen:
                parts.append(features_of([rows[n] for n in seen], len(pool)))
            kept += [places[n] for n in seen]
            for row in rows:
                engine.release(row, writers)
            if progress is not None:
                progress("reading traces", places[-1] + 1, len(chosen))
    if not parts:
        raise InputError(
            "every trace fills a candidate's context",
            remedy="collect with a smaller max_new_tokens",
        )
    features, places_kept = torch.cat(parts), torch.tensor(kept)
    temporary = cache.with_name(cache.name + ".tmp")
    save_file({"features": features, "kept": places_kept}, temporary)
    temporary.replace(cache)
    return features, places_kept


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
    if not math.isfinite(best[0]) or not all(
        bool(torch.isfinite(weights).all()) for weights in best_state.parameters()
    ):
        raise AntiphonError(
            "the head's training diverged: its loss or weights are no numbers",
            remedy="lower --learning-rate, or give more instances",
        )
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
