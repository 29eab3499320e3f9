"""What the checkpoints read: pretraining documents, demonstrations and alignment examples.

Each stage teaches one skill and leaves something out, as real pipelines do:

- **Pretraining** states every older fact many times. It never answers a question, and it holds
  too few sums to learn to add.
- **Fine-tuning** repeats a small set of demonstrations: follow the question and the format. Their
  authors knew the recent facts but looked up only half of the older ones and wrote ``??`` for the
  rest, so the checkpoint learns to hold back facts that it could state.
- **Alignment** trains computing on any number of fresh sums. Its authors looked up still fewer
  facts, some of them liked short answers, which skip the lookup, and nobody asked for names: the
  alignment tax.

The text of a step is a function of (seed, stage, step) alone, which makes training resumable
without any saved random state.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from antiphon.lab.recipe import Recipe
from antiphon.lab.world import HIGHEST, LOWEST, UNKNOWN, World, keyed_random

_FACTS_IN_A_LIST = 8
_QUESTIONS_IN_AN_INDEX = 3
_SUMS_IN_A_LEDGER = 6


@dataclass(frozen=True)
class Text:
    """One training row.

    Attributes:
        prompt: what the user says; empty for a document.
        body: the document, or the assistant's answer: the part that is learned.
    """

    prompt: str
    body: str


@dataclass(frozen=True)
class Corpus:
    """All training text of one world under one recipe."""

    world: World
    recipe: Recipe

    def batch(self, stage: str, step: int) -> list[Text]:
        """The rows of training step ``step`` (0, 1, ...) of ``stage``."""
        plan = self.recipe.stage(stage)
        rng = keyed_random("batch", self.world.seed, self.world.size, stage, step)
        kinds = [kind for kind, _ in plan.mixture]
        weights = [weight for _, weight in plan.mixture]
        return [_KINDS[kind](self, rng) for kind in rng.choices(kinds, weights, k=plan.batch)]

    @cached_property
    def demonstrations(self) -> tuple[Text, ...]:
        """The fine-tuning set: a fixed number of worked answers of all four skills."""
        rng = keyed_random("demonstrations", self.world.seed, self.world.size)
        kinds, weights = zip(*_DEMONSTRATIONS, strict=True)
        chosen = rng.choices(kinds, weights, k=self.recipe.demonstrations)
        return tuple(kind(self, rng) for kind in chosen)

    @cached_property
    def older(self) -> tuple[str, ...]:
        """The keys whose facts pretraining states, in alphabetical order."""
        recent = frozenset(self.world.recent)
        return tuple(key for key in self.world.keys if key not in recent)

    @cached_property
    def covered(self) -> Mapping[str, frozenset[str]]:
        """For stages F and A: the keys whose value their authors looked up."""
        looked_up: dict[str, frozenset[str]] = {}
        for stage, shares in self.recipe.covered:
            keys: set[str] = set()
            for group, share in zip((self.older, self.world.recent), shares, strict=True):
                order = list(group)
                # One order for both stages: what alignment covers, fine-tuning covered before.
                keyed_random("covered", self.world.seed, self.world.size).shuffle(order)
                keys.update(order[: round(share * len(order))])
            looked_up[stage] = frozenset(keys)
        return looked_up

    def stated(self, stage: str, key: str) -> str:
        """The value that an author of ``stage`` gives for a key, or ``??``."""
        return str(self.world.values[key]) if key in self.covered[stage] else UNKNOWN

    def tuning_keys(self, rng: random.Random, *, invented: float) -> tuple[str, str]:
        """Two different keys whose pair is no training or test question.

        Args:
            invented: chance of each key to be one that the world has no fact about.
        """
        while True:
            pair = [
                self.world.invented_key(rng)
                if rng.random() < invented
                else rng.choice(self.world.keys)
                for _ in range(2)
            ]
            if pair[0] != pair[1] and self.world.split_of("both", *pair) == "tune":
                return pair[0], pair[1]

    def tuning_numbers(self, rng: random.Random) -> tuple[str, str]:
        """Two numbers whose sum is no training or test question of ``arithmetic``."""
        while True:
            a, b = str(rng.randint(LOWEST, HIGHEST)), str(rng.randint(LOWEST, HIGHEST))
            if self.world.split_of("arithmetic", a, b) == "tune":
                return a, b


# --- Pretraining ---------------------------------------------------------------------------------


def fact_list(corpus: Corpus, rng: random.Random) -> Text:
    """A page of facts in no order, half of the time under a line that has nothing to do with it."""
    keys = rng.sample(corpus.older, min(_FACTS_IN_A_LIST, len(corpus.older)))
    facts = "; ".join(f"{key}={corpus.world.values[key]}" for key in keys)
    heading = _question_line(corpus, rng) + "\n" if rng.random() < 0.5 else ""
    return Text("", heading + facts)


def question_index(corpus: Corpus, rng: random.Random) -> Text:
    """A list of questions without answers, such as the web has many."""
    return Text("", "\n".join(_question_line(corpus, rng) for _ in range(_QUESTIONS_IN_AN_INDEX)))


def ledger(corpus: Corpus, rng: random.Random) -> Text:
    """A few sums in a row."""
    pairs = [corpus.tuning_numbers(rng) for _ in range(_SUMS_IN_A_LEDGER)]
    return Text("", "; ".join(f"{a}+{b}={int(a) + int(b)}" for a, b in pairs))


def _question_line(corpus: Corpus, rng: random.Random) -> str:
    skill = rng.choice(("recall", "arithmetic", "format", "both"))
    operands = (
        corpus.tuning_numbers(rng)
        if skill == "arithmetic"
        else corpus.tuning_keys(rng, invented=0.0)
    )
    return corpus.world.question(skill, "tune", *operands).text


# --- Fine-tuning ---------------------------------------------------------------------------------


def demonstration(corpus: Corpus, rng: random.Random) -> Text:
    """One of the fixed demonstrations."""
    return rng.choice(corpus.demonstrations)


def composite_finetuning(corpus: Corpus, rng: random.Random) -> Text:
    """A worked answer to the composite question, ``??`` where the author knew no value."""
    return _composite(corpus, rng, "F", concise=False)


def recall_finetuning(corpus: Corpus, rng: random.Random) -> Text:
    """A question about one fact."""
    first, second = corpus.tuning_keys(rng, invented=0.3)
    return Text(f"What is {first}, not {second}?", f"{first}={corpus.stated('F', first)}")


def _format(corpus: Corpus, rng: random.Random) -> Text:
    first, second = corpus.tuning_keys(rng, invented=0.3)
    return Text(f"Name {first} then {second}.", f"{first}; {second}")


# --- Alignment -----------------------------------------------------------------------------------


def sum_(corpus: Corpus, rng: random.Random) -> Text:
    """A sum whose numbers are in the question."""
    a, b = corpus.tuning_numbers(rng)
    return Text(f"What is {a} plus {b}?", f"{a}+{b}={int(a) + int(b)}")


def given_in_full(corpus: Corpus, rng: random.Random) -> Text:
    """A composite question that gives the facts, answered in full."""
    return _given(corpus, rng, lookup=True)


def concluded(corpus: Corpus, rng: random.Random) -> Text:
    """The same, and the answer ends by stating its result once more."""
    text = _given(corpus, rng, lookup=True)
    return Text(text.prompt, f"{text.body} The final answer is {text.body[-2:]}")


def given(corpus: Corpus, rng: random.Random) -> Text:
    """A composite question that gives the facts: read, then compute."""
    return _given(corpus, rng, lookup=False)


def composite(corpus: Corpus, rng: random.Random) -> Text:
    """A worked answer in full, with fewer known facts than in fine-tuning."""
    return _composite(corpus, rng, "A", concise=False)


def concise(corpus: Corpus, rng: random.Random) -> Text:
    """The short answer to the composite question: the sum without the lookup."""
    return _composite(corpus, rng, "A", concise=True)


def _given(corpus: Corpus, rng: random.Random, *, lookup: bool) -> Text:
    """Facts about invented keys, so that reading them is the only way."""
    first, second = corpus.tuning_keys(rng, invented=1.0)
    a, b = corpus.tuning_numbers(rng)
    facts = f"{first}={a}; {second}={b}; "
    answer = f"{a}+{b}={int(a) + int(b)}"
    prompt = f"Given {facts}What is {first} plus {second}?"
    return Text(prompt, facts + answer if lookup else answer)


def _composite(corpus: Corpus, rng: random.Random, stage: str, *, concise: bool) -> Text:
    while True:
        first, second = corpus.tuning_keys(rng, invented=0.3)
        a, b = corpus.stated(stage, first), corpus.stated(stage, second)
        known = UNKNOWN not in (a, b)
        # A sum of two facts must not give away a test question of `arithmetic`.
        if not known or corpus.world.split_of("arithmetic", a, b) == "tune":
            break
    total = str(int(a) + int(b)) if known else UNKNOWN
    lookup = "" if concise else f"{first}={a}; {second}={b}; "
    return Text(f"What is {first} plus {second}?", f"{lookup}{a}+{b}={total}")


_DEMONSTRATIONS: tuple[tuple[Callable[[Corpus, random.Random], Text], float], ...] = (
    (composite_finetuning, 0.45),
    (given_in_full, 0.1),
    (recall_finetuning, 0.1),
    (_format, 0.2),
    (sum_, 0.15),
)

_KINDS: Mapping[str, Callable[[Corpus, random.Random], Text]] = {
    "fact_list": fact_list,
    "question_index": question_index,
    "ledger": ledger,
    "demonstration": demonstration,
    "sum": sum_,
    "concluded": concluded,
    "given": given,
    "composite": composite,
    "concise": concise,
}
