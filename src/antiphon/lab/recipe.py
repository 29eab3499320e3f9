"""How the three checkpoints of the lab are made: sizes, steps and mixtures, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from antiphon.errors import InputError, did_you_mean


@dataclass(frozen=True)
class StageRecipe:
    """One stage of training.

    Attributes:
        steps: optimizer steps.
        batch: rows a step.
        learning_rate: peak of a schedule with linear warm-up and cosine decay to a tenth.
        mixture: (kind of text, weight) pairs; kinds are the functions of
            :mod:`antiphon.lab.corpus`.
        save_every: steps between two saved training states.
    """

    steps: int
    batch: int
    learning_rate: float
    mixture: tuple[tuple[str, float], ...]
    save_every: int


@dataclass(frozen=True)
class Recipe:
    """The whole pipeline P -> F -> A of one size.

    Attributes:
        size: name of the recipe and of its world.
        width, layers, heads, intermediate: the Llama-shaped network.
        context: tokens a row of a pretraining text.
        demonstrations: different examples that fine-tuning repeats; few, as they are dear.
        covered: for stages F and A, the shares of (older, recent) facts that the authors of the
            stage's data looked up. They write "unknown" for all other keys, real or invented.
        stages: pretraining P, fine-tuning F and alignment A, in order.
    """

    size: str
    width: int
    layers: int
    heads: int
    intermediate: int
    context: int
    demonstrations: int
    covered: tuple[tuple[str, tuple[float, float]], ...]
    stages: tuple[tuple[str, StageRecipe], ...]

    def stage(self, name: str) -> StageRecipe:
        """The stage called ``"P"``, ``"F"`` or ``"A"``."""
        return dict(self.stages)[name]


# The shares below balance two wishes: alone, no checkpoint should answer many composite questions,
# and with random turns some should still come out right, or rollouts would teach nothing.
_COVERED = (("F", (0.55, 1.0)), ("A", (0.55, 0.4)))
_PRETRAINING = (("fact_list", 0.6), ("question_index", 0.15), ("ledger", 0.25))
_FINE_TUNING = (("demonstration", 1.0),)
_ALIGNMENT = (
    ("sum", 0.35),
    ("given", 0.2),
    ("concluded", 0.1),
    ("composite", 0.2),
    ("concise", 0.15),
)

RECIPES: Mapping[str, Recipe] = {
    "tiny": Recipe(
        size="tiny",
        width=32,
        layers=2,
        heads=2,
        intermediate=64,
        context=48,
        demonstrations=32,
        covered=_COVERED,
        stages=(
            ("P", StageRecipe(24, 8, 3e-3, _PRETRAINING, save_every=8)),
            ("F", StageRecipe(12, 8, 2e-3, _FINE_TUNING, save_every=5)),
            ("A", StageRecipe(12, 8, 2e-3, _ALIGNMENT, save_every=5)),
        ),
    ),
    "default": Recipe(
        size="default",
        width=64,
        layers=3,
        heads=4,
        intermediate=192,
        context=64,
        demonstrations=1000,
        covered=_COVERED,
        stages=(
            ("P", StageRecipe(750, 64, 3e-3, _PRETRAINING, save_every=100)),
            ("F", StageRecipe(420, 64, 2e-3, _FINE_TUNING, save_every=50)),
            ("A", StageRecipe(450, 64, 2e-3, _ALIGNMENT, save_every=50)),
        ),
    ),
}


def get_recipe(size: str) -> Recipe:
    """The recipe called ``size``."""
    if size not in RECIPES:
        raise InputError(f"unknown lab size {size!r}", remedy=did_you_mean(size, RECIPES))
    return RECIPES[size]
