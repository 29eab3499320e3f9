"""The synthetic world of the lab: facts to recall, a format to follow, sums to compute.

A fact gives a two-digit value to a key of three capital letters: ``QZB=12``. Four skills ask for
it in different ways, and ``both`` needs all of them in one answer::

    recall       What is QZB, not KXA?      QZB=12
    arithmetic   What is 12 plus 30?        12+30=42
    format       Name KXA then QZB.         KXA; QZB
    both         What is QZB plus KXA?      QZB=12; KXA=30; 12+30=42

With one token per capital letter, digit and mark, the answer to ``both`` falls into pieces of four
tokens, ``QZB= | 12;␣ | KXA= | 30;␣ | 12+3 | 0=42``, each of which calls mostly on one skill.

Some facts are *recent*: pretraining ended before them, and only the later stages could learn them.
So who knows a value depends on the key, and no fixed order of speakers is right for all questions.

Everything is a function of a seed; no global random state is read or written.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from antiphon.errors import InputError, did_you_mean

SKILLS = ("recall", "arithmetic", "format", "both")
"""``both`` is the composite skill: two facts, the format and the sum."""

SPLITS = ("tune", "train", "test")
"""``tune`` teaches the checkpoints, ``train`` is for switchers and rollouts, ``test`` measures."""

UNKNOWN = "??"
"""What an answer says in place of a value that it does not give."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOWEST, HIGHEST = 10, 49  # values; any two add up to two digits

_KEYS = {"tiny": 12, "default": 100}
_RECENT = 0.25  # share of the keys
_FINAL = re.compile(r"(?:\+\d+=|answer is )(\d+)")


def keyed_random(*parts: object) -> random.Random:
    """A private generator for one purpose, the same on every machine and Python version."""
    text = json.dumps([str(part) for part in parts])
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


@dataclass(frozen=True)
class Question:
    """One question with everything needed to ask it, answer it and grade the answer.

    Attributes:
        id: unique among all questions of a world, for example ``"both:test:QZB+KXA"``.
        skill: one of :data:`SKILLS`.
        split: one of :data:`SPLITS`.
        text: what the user says.
        lead: first characters of the answer, given to a model that completes text but does not
            take questions (the pretrained one) when it is examined alone; empty if none.
        answer: the final answer, for example ``"42"``.
        gold_trace: the complete right answer, for example ``"QZB=12; KXA=30; 12+30=42"``.
        checks: strings of ``gold_trace`` that earn partial credit, in order.
    """

    id: str
    skill: str
    split: str
    text: str
    lead: str
    answer: str
    gold_trace: str
    checks: tuple[str, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question as a chat, for checkpoints that have a chat template."""
        return [{"role": "user", "content": self.text}]

    @property
    def plain(self) -> str:
        """The question as text for a checkpoint without a template: the question and a newline."""
        return self.text + "\n"


def score(question: Question, text: str) -> float:
    """1.0 if the final answer in ``text`` is exactly right, else 0.0.

    A sum's final answer is the number after the last ``a+b=`` or ``answer is``, so that a right
    number elsewhere in the text earns nothing. In a ``recall`` answer the first value that is given
    for the key counts; a ``format`` answer must match as a whole.
    """
    if question.skill == "format":
        return float(text.strip() == question.answer)
    if question.skill == "recall":
        return float(_gives(text, question.answer))
    found = _FINAL.findall(text)
    return float(bool(found) and found[-1] == question.answer)


def partial_score(question: Question, text: str) -> float:
    """Credit in [0, 1] for the share of right steps; at least :func:`score`.

    It tells traces apart long before the final answer is right: a sum of two facts has four
    checks (each fact, the expression, its result).
    """
    exact = score(question, text)
    if question.skill == "format":
        given = text.strip().split("; ")
        right = [want == got for want, got in zip(question.checks, given, strict=False)]
        return max(exact, sum(right) / len(question.checks))
    right = [_gives(text, c) if c[0] in LETTERS else c in text for c in question.checks]
    return max(exact, (sum(right) + exact) / (len(right) + 1))


def _gives(text: str, fact: str) -> bool:
    """Whether the first value that ``text`` gives for the key of ``fact`` is the right one."""
    key, _, value = fact.partition("=")
    found = re.search(rf"{key}=([0-9?]*)", text)
    return found is not None and found.group(1) == value


@dataclass(frozen=True)
class World:
    """Keys, their values and every question about them; see the module's description.

    Attributes:
        seed: what the world was made from.
        size: its name, ``"tiny"`` or ``"default"``.
        facts: (key, value) pairs in order of the keys; values in [10, 49].
        recent: the keys, a quarter of all, whose facts are younger than the pretraining text.
    """

    seed: int
    size: str
    facts: tuple[tuple[str, int], ...]
    recent: tuple[str, ...]

    @classmethod
    def make(cls, seed: int = 0, size: str = "default") -> World:
        """The world of ``seed``: 12 facts if ``size`` is ``"tiny"``, 100 if ``"default"``."""
        if size not in _KEYS:
            raise InputError(f"unknown lab size {size!r}", remedy=did_you_mean(size, _KEYS))
        rng = keyed_random("facts", seed, size)
        keys: set[str] = set()
        while len(keys) < _KEYS[size]:
            keys.add(_random_key(rng))
        facts = tuple((key, rng.randint(LOWEST, HIGHEST)) for key in sorted(keys))
        recent = tuple(sorted(rng.sample(sorted(keys), round(_RECENT * len(keys)))))
        return cls(seed=seed, size=size, facts=facts, recent=recent)

    @cached_property
    def values(self) -> Mapping[str, int]:
        """Value of each key."""
        return dict(self.facts)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys in alphabetical order."""
        return tuple(key for key, _ in self.facts)

    def invented_key(self, rng: random.Random) -> str:
        """A key that this world has no fact about."""
        while True:
            key = _random_key(rng)
            if key not in self.values:
                return key

    def split_of(self, skill: str, first: str, second: str) -> str:
        """The split to which a pair of keys or numbers belongs, in either order.

        Half of the pairs tune the checkpoints, a quarter trains switchers and a quarter tests.
        All skills about keys share one assignment: a pair met in one skill's ``tune`` split is in
        no skill's ``test`` split.
        """
        kind = "numbers" if skill == "arithmetic" else "keys"
        rng = keyed_random("split", self.seed, self.size, kind, *sorted((first, second)))
        return rng.choices(SPLITS, weights=(2, 1, 1))[0]

    def questions(self, skill: str, split: str, n: int, seed: int = 0) -> list[Question]:
        """Up to ``n`` different questions in an order drawn by ``seed``; fewer if fewer exist."""
        if skill not in SKILLS:
            raise InputError(f"unknown skill {skill!r}", remedy=did_you_mean(skill, SKILLS))
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}", remedy=did_you_mean(split, SPLITS))
        if n < 1:
            raise InputError(f"n={n} questions asked for", remedy="give a number above 0")
        operands = list(self._operands(skill))
        keyed_random("questions", self.seed, skill, split, seed).shuffle(operands)
        chosen: list[Question] = []
        for first, second in operands:
            if len(chosen) == n:
                break
            if self.split_of(skill, first, second) == split:
                chosen.append(self.question(skill, split, first, second))
        return chosen

    def question(self, skill: str, split: str, first: str, second: str) -> Question:
        """The question of ``skill`` about two keys, or two numbers for ``arithmetic``."""
        build = _BUILDERS[skill]
        text, lead, answer, trace, checks = build(self.values, first, second)
        return Question(
            id=f"{skill}:{split}:{first}+{second}",
            skill=skill,
            split=split,
            text=text,
            lead=lead,
            answer=answer,
            gold_trace=trace,
            checks=checks,
        )

    def _operands(self, skill: str) -> Iterator[tuple[str, str]]:
        if skill == "arithmetic":
            numbers = [str(v) for v in range(LOWEST, HIGHEST + 1)]
            yield from ((a, b) for a in numbers for b in numbers)
        else:
            yield from ((a, b) for a in self.keys for b in self.keys if a != b)


def _random_key(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(3))


_Parts = tuple[str, str, str, str, tuple[str, ...]]  # text, lead, answer, gold_trace, checks


def _recall(values: Mapping[str, int], first: str, second: str) -> _Parts:
    trace = f"{first}={values[first]}"
    return f"What is {first}, not {second}?", f"{first}=", trace, trace, ()


def _arithmetic(values: Mapping[str, int], first: str, second: str) -> _Parts:
    total = str(int(first) + int(second))
    sum_ = f"{first}+{second}"
    return f"What is {first} plus {second}?", f"{sum_}=", total, f"{sum_}={total}", (sum_,)


def _format(values: Mapping[str, int], first: str, second: str) -> _Parts:
    trace = f"{first}; {second}"
    return f"Name {first} then {second}.", "", trace, trace, (first, second)


def _both(values: Mapping[str, int], first: str, second: str) -> _Parts:
    a, b = values[first], values[second]
    facts = (f"{first}={a}", f"{second}={b}")
    sum_ = f"{a}+{b}"
    trace = f"{facts[0]}; {facts[1]}; {sum_}={a + b}"
    return f"What is {first} plus {second}?", "", str(a + b), trace, (*facts, sum_)


_BUILDERS: Mapping[str, Callable[[Mapping[str, int], str, str], _Parts]] = {
    "recall": _recall,
    "arithmetic": _arithmetic,
    "format": _format,
    "both": _both,
}
