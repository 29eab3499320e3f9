"""A dozen answers to look at: what turn-taking gained, what it lost, what nobody solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from antiphon.reports.switch.answers import missed_by_all, right
from antiphon.reports.switch.records import SINGLES, Answers, BySeed, Records

KINDS = {
    "gained": ("The switcher is right, every single model is wrong", 6),
    "lost": ("The switcher is wrong, a single model is right", 3),
    "missed": ("All are wrong", 3),
}
"""Title of each kind, and how many are shown."""


@dataclass(frozen=True)
class Single:
    """What one candidate alone answered."""

    name: str
    text: str
    right: bool


@dataclass(frozen=True)
class Example:
    """One item with the LM switcher's answer, piece by piece, and the single models' answers.

    Attributes:
        kind: a key of :data:`KINDS`.
        seed, id: which item.
        question: what was asked, if the record has it.
        pieces: (writer, text) of every segment; one piece with no writer if the record does not
            tell which characters a segment has.
        writers: of the segments in order.
        right: whether the switcher's answer is.
        singles: the candidates' answers.
    """

    kind: str
    seed: int
    id: str
    question: str | None
    pieces: tuple[tuple[str, str], ...]
    writers: tuple[str, ...]
    right: bool
    singles: tuple[Single, ...]


def examples(records: Records) -> list[Example]:
    """Items of each kind, spread evenly over the run; the same ones at every call."""
    main, ours = records.main, records.main["lm_switcher"]
    missed = missed_by_all(main)
    found = []
    for kind, (_, count) in KINDS.items():
        spots = []
        for seed, mask in missed.items():
            good = right(ours[seed])
            wanted = {"gained": mask & good, "lost": ~mask & ~good, "missed": mask & ~good}[kind]
            spots += [(seed, int(index)) for index in np.flatnonzero(wanted)]
        for seed, index in _spread(spots, count):
            found.append(_example(main, kind, seed, index))
    return found


def _spread(spots: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    if len(spots) <= count:
        return list(spots)
    return [spots[i * len(spots) // count] for i in range(count)]


def _example(main: dict[str, BySeed], kind: str, seed: int, index: int) -> Example:
    ours = main["lm_switcher"][seed]
    singles = tuple(
        Single(name, main[name][seed].texts[index], bool(right(main[name][seed])[index]))
        for name in SINGLES
    )
    return Example(
        kind=kind,
        seed=seed,
        id=ours.ids[index],
        question=ours.questions[index],
        pieces=pieces(ours, index),
        writers=ours.writers[index],
        right=bool(right(ours)[index]),
        singles=singles,
    )


def pieces(answers: Answers, index: int) -> tuple[tuple[str, str], ...]:
    """(writer, text) of an answer's segments.

    Records may hold the segments' texts. Otherwise they follow from the lengths where a token is a
    character, as in most answers of the lab: then the text has as many characters as there are
    tokens, or one less where the last token ends the response. Else nothing is guessed.
    """
    text, writers = answers.texts[index], answers.writers[index]
    lengths, known = answers.tokens[index], answers.pieces[index]
    if known is not None and len(known) == len(writers):
        return tuple(zip(writers, known, strict=True))
    if len(lengths) != len(writers) or sum(lengths) - len(text) not in (0, 1):
        return (("", text),)
    found, start = [], 0
    for writer, length in zip(writers, lengths, strict=True):
        found.append((writer, text[start : start + length]))
        start += length
    return tuple(found)
