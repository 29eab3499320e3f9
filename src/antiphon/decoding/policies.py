"""Who writes the next segment.

A policy is asked at every boundary, for all rows that wait there at once. It sees the trace and
answers with a candidate and, where it has them, the probabilities it chose by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from antiphon.backends.base import Backend
from antiphon.decoding.rows import Row
from antiphon.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Decision:
    """The next writer (index into the pool) and each candidate's probability, if there are any."""

    candidate: int
    probabilities: Mapping[str, float] = field(default_factory=dict)


class Policy(Protocol):
    """Decides who speaks next.

    A method keeps a shallow copy of the policy it is given, so that one policy can serve several
    pools; what belongs to a pool or a run is made in :meth:`start`.

    Attributes:
        reads_states: whether every candidate must have read all of a row before ``choose`` is
            asked; what they see then stands in its ``views``.
    """

    reads_states: bool

    def start(self, names: Sequence[str]) -> None:
        """Called once before a run with the pool's names.

        Raises:
            InputError: the policy does not fit the pool.
        """

    def check(self, row: Row) -> None:
        """Called for every row before anything is computed.

        Raises:
            InputError: the policy cannot serve this row, e.g. its prompt is too long for it.
        """

    def choose(self, rows: Sequence[Row]) -> list[Decision | None]:
        """Who writes next in each row; ``None`` where the policy's own context is full."""

    def forget(self, row: Row) -> None:
        """The row is finished; give back what is kept for it."""

    def models(self, segments: int) -> list[tuple[Backend, int]]:
        """Models the policy runs, each with the positions it reads beyond the prompt and the
        response of a row of so many segments; for the memory budget."""

    def prepare(self, rows: int, positions: int, segments: int) -> None:
        """A run begins: so many rows at once, of so many positions and segments at most."""


class _Stateless:
    """What policies that keep nothing between calls have in common."""

    names: Sequence[str] = ()
    reads_states = False

    def start(self, names: Sequence[str]) -> None:
        self.names = names

    def check(self, row: Row) -> None:
        """Every row can be served."""

    def forget(self, row: Row) -> None:
        """Nothing is kept."""

    def models(self, segments: int) -> list[tuple[Backend, int]]:
        return []

    def prepare(self, rows: int, positions: int, segments: int) -> None:
        """Nothing to prepare."""

    def index_of(self, name: str) -> int:
        if name not in self.names:
            raise InputError(
                f"the policy names the candidate {name!r}, which the pool does not have",
                remedy=did_you_mean(name, self.names),
            )
        return list(self.names).index(name)


class Fixed(_Stateless):
    """One candidate writes everything: the single model, in the same engine."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, names: Sequence[str]) -> None:
        super().start(names)
        self._index = self.index_of(self.name)

    def choose(self, rows: Sequence[Row]) -> list[Decision | None]:
        return [Decision(self._index) for _ in rows]


class Uniform(_Stateless):
    """Every candidate is as likely as any other at every boundary (the paper's random switching;
    also what writes training traces)."""

    def choose(self, rows: Sequence[Row]) -> list[Decision | None]:
        count = len(self.names)
        share = dict.fromkeys(self.names, 1 / count)
        return [Decision(int(row.choice_uniform() * count), share) for row in rows]


class RoundRobin(_Stateless):
    """Candidates take turns in the pool's order."""

    def choose(self, rows: Sequence[Row]) -> list[Decision | None]:
        return [Decision(row.turns_taken % len(self.names)) for row in rows]


class Schedule(_Stateless):
    """A written-down order of speakers; its last name goes on to the end, or it starts over.

    Args:
        names: candidate names in order.
        repeat: start over at the end instead of staying with the last name.
    """

    def __init__(self, names: Sequence[str], *, repeat: bool = False) -> None:
        if not names:
            raise InputError(
                "the schedule is empty", remedy="name at least one candidate, e.g. [P, A]"
            )
        self.schedule = list(names)
        self.repeat = repeat

    def start(self, names: Sequence[str]) -> None:
        super().start(names)
        self._indices = [self.index_of(name) for name in self.schedule]

    def choose(self, rows: Sequence[Row]) -> list[Decision | None]:
        length = len(self._indices)
        chosen: list[Decision | None] = []
        for row in rows:
            turn = row.turns_taken
            place = turn % length if self.repeat else min(turn, length - 1)
            chosen.append(Decision(self._indices[place]))
        return chosen


def select(probabilities: np.ndarray[Any, Any], uniform: float, top_p: float | None) -> int:
    """Draw an index from the smallest set whose probabilities reach ``top_p``.

    Args:
        probabilities: ``[n]``, summing to 1.
        uniform: a number in [0, 1).
        top_p: ``None`` takes the most likely index.
    """
    order = np.argsort(-probabilities, kind="stable")
    if top_p is None:
        return int(order[0])
    ranked = probabilities[order]
    kept = ranked[np.cumsum(ranked) - ranked < top_p]
    place = np.searchsorted(np.cumsum(kept), uniform * kept.sum(), side="right")
    return int(order[min(int(place), len(kept) - 1)])
