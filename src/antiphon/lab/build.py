"""Build, cache, resume and load a lab: a world and the checkpoints P -> F -> A that live in it.

On disk a lab is a directory::

    lab.json        what was asked for, and its fingerprint
    P/ F/ A/        ordinary Hugging Face checkpoints, written in this order
    .state-*.pt     only while a stage is being trained

A stage's directory appears under its final name when it is complete, so a checkpoint that exists
is finished. P, the base model, carries no chat template and reads a question as plain text; F and
A carry one. All three share one vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from antiphon.errors import AntiphonError, InputError
from antiphon.lab.corpus import Corpus
from antiphon.lab.recipe import Recipe, get_recipe
from antiphon.lab.tokenizer import build_tokenizer
from antiphon.lab.training import Progress, new_model, train_stage
from antiphon.lab.world import World
from antiphon.record import exclusive

CODE_VERSION = 1
"""Raised when the same recipe would give other checkpoints: world, corpus, tokenizer, training."""

CHECKPOINTS = ("P", "F", "A")
_LAB_FILE = "lab.json"


@dataclass(frozen=True)
class Lab:
    """A finished lab.

    Attributes:
        root: its directory.
        paths: directory of each checkpoint, by ``"P"``, ``"F"``, ``"A"``.
        world: what they were taught, and where questions about it come from.
    """

    root: Path
    paths: Mapping[str, Path]
    world: World


def build_lab(
    out: Path, *, size: str = "default", seed: int = 0, progress: Progress | None = None
) -> Lab:
    """Train P, F and A into ``out``, or finish what an earlier call left there.

    The same size, seed and number of threads give the same bytes. Finished checkpoints are never
    trained again, and an interrupted stage goes on from its last saved state, with the same
    result as if it had not been interrupted.

    Args:
        out: directory of the lab; made if missing.
        size: a recipe's name; ``"default"`` is the one with results worth looking at.
        seed: of the world, the initial weights and all training text.
        progress: called after each step with (stage, steps done, steps in all).
    """
    recipe = get_recipe(size)
    world = World.make(seed, size)
    out = Path(out)
    _claim(out, recipe, world)
    corpus = Corpus(world, recipe)
    previous: Path | None = None
    with exclusive(out / _LAB_FILE, "build into another directory"):
        for stage in CHECKPOINTS:
            if not (out / stage).is_dir():
                _build_stage(out, stage, previous, corpus, progress)
            _forget_training(out, stage)
            previous = out / stage
    return load_lab(out)


def load_lab(path: Path) -> Lab:
    """The finished lab in ``path``."""
    path = Path(path)
    described = _read(path)
    if described is None:
        raise InputError(
            f"{path} is not a lab: it has no {_LAB_FILE}",
            remedy="build one there, or give the directory of one that was built",
        )
    world = World.make(int(described["seed"]), str(described["size"]))
    if described["fingerprint"] != _fingerprint(get_recipe(world.size), world):
        raise InputError(
            f"the lab in {path} was built by another version of its recipe",
            remedy="build it again in another directory, or remove this one first",
        )
    missing = [stage for stage in CHECKPOINTS if not (path / stage).is_dir()]
    if missing:
        raise InputError(
            f"the lab in {path} is unfinished: no checkpoint {', '.join(missing)}",
            remedy="run the same build again; it goes on where it stopped",
        )
    return Lab(root=path, paths={stage: path / stage for stage in CHECKPOINTS}, world=world)


def _fingerprint(recipe: Recipe, world: World) -> str:
    content = {"code": CODE_VERSION, "recipe": asdict(recipe), "world": asdict(world)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _claim(out: Path, recipe: Recipe, world: World) -> None:
    """Make ``out`` the directory of this lab, or check that it already is."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a directory", remedy="give a directory for the lab")
    fingerprint = _fingerprint(recipe, world)
    described = _read(out)
    if described is not None:
        if described["fingerprint"] != fingerprint:
            raise InputError(
                f"{out} holds another lab (size {described['size']}, seed {described['seed']}) "
                f"than the one asked for (size {recipe.size}, seed {world.seed}, "
                f"recipe {fingerprint[:12]})",
                remedy=f"give another output directory, or remove {out} first",
            )
        return
    if out.is_dir() and any((out / stage).exists() for stage in CHECKPOINTS):
        raise InputError(
            f"{out} has checkpoints but no {_LAB_FILE}: something else put them there",
            remedy="give another output directory",
        )
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "size": recipe.size,
        "seed": world.seed,
        "fingerprint": fingerprint,
        "code_version": CODE_VERSION,
        "recipe": asdict(recipe),
    }
    temporary = out / f"{_LAB_FILE}.part"
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / _LAB_FILE)


def _read(path: Path) -> dict[str, Any] | None:
    """The content of ``lab.json``, None if there is no such file."""
    file = path / _LAB_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AntiphonError(f"{file} is not JSON: {error}", remedy=f"remove {path}") from error
    if not isinstance(content, dict) or not {"size", "seed", "fingerprint"} <= content.keys():
        raise AntiphonError(f"{file} does not describe a lab", remedy=f"remove {path}")
    return content


def _build_stage(
    out: Path, stage: str, previous: Path | None, corpus: Corpus, progress: Progress | None
) -> None:
    tokenizer = build_tokenizer(chat=previous is not None)
    if previous is None:
        model = new_model(corpus.recipe, tokenizer, corpus.world.seed)
    else:
        model = LlamaForCausalLM.from_pretrained(previous)
    train_stage(model, tokenizer, corpus, stage, _state_file(out, stage), progress)
    _write_checkpoint(out / stage, model, tokenizer)


def _state_file(out: Path, stage: str) -> Path:
    return out / f".state-{stage}.pt"


def _forget_training(out: Path, stage: str) -> None:
    """Remove what only an unfinished stage needs, also if the end of a build was cut off."""
    for leftover in out.glob(f"{_state_file(out, stage).name}*"):
        leftover.unlink(missing_ok=True)


def _write_checkpoint(
    target: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write beside the final name, then rename: a checkpoint is there in full or not at all."""
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.replace(target)
