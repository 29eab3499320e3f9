"""The LM switcher: a small language model reads the tagged trace and says who speaks next.

Switch Generation, "Don't Throw Away Your Pretrained Model" (arXiv 2510.09913). The prompt is the
query, then every segment between its tags, then a question (:class:`SwitcherPrompt`); the
candidates' probabilities are the next-token probabilities of the choice labels, renormalised over
them. One forward pass over what is new, never free text.

Deviations and choices where the paper is silent:

* tags, segments and question are encoded piece by piece, so the trace is read once: at a boundary
  the switcher's cache grows by the new segments, and the question is read and cropped again;
* a switcher with the candidates' vocabulary reads their token ids, any other their text;
* labels of several tokens are scored by the chain rule; a label that starts another is refused;
* more than ten candidates are asked for by letter instead of number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from antiphon.backends.base import Backend, Lane, Session, Steps, Vocabulary, require
from antiphon.decoding.policies import (
    Decision,
    allowed_mask,
    check_count,
    check_selection,
    decide,
)
from antiphon.decoding.rows import Row, shared_time
from antiphon.decoding.switcher_text import SwitcherPrompt, SwitcherReader
from antiphon.errors import InputError

ACCOUNT = "switcher"
"""Name under which the switcher's work stands in a completion's usage."""


@dataclass
class _Reading:
    """What the switcher has read of one row."""

    lane: Lane
    turns: int = 0


class LMSwitcher:
    """A language model as policy.

    Args:
        backend: any causal LM or adapter; must step through tokens.
        prompt: the texts.
        top_p: draw the candidate from the smallest set of this mass; ``None`` takes the best.
        temperature: divides the labels' logits before they are renormalised.
        trained_for: names of the candidates that it was trained for, if it was; it may serve other
            pools of as many.
        without: candidates that may not be chosen.

    Raises:
        CapabilityError: the backend cannot step.
        InputError: the temperature or top-p is out of range.
    """

    reads_states = False

    def __init__(
        self,
        backend: Backend,
        *,
        prompt: SwitcherPrompt | None = None,
        top_p: float | None = 0.9,
        temperature: float = 1.0,
        trained_for: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> None:
        require(backend, "Steps", "an LM switcher")
        assert isinstance(backend, Steps)
        check_selection(top_p, temperature)
        self.backend = backend
        self.steps: Steps = backend
        self.prompt = prompt or SwitcherPrompt()
        self.top_p = top_p
        self.temperature = temperature
        self.trained_for = list(trained_for)
        self.without = frozenset(without)
        self._readings: dict[int, _Reading] = {}
        self._session: Session | None = None

    # -- set-up ------------------------------------------------------------------------------
    def start(self, names: Sequence[str]) -> None:
        self.names = list(names)
        check_count(self.trained_for, self.names)
        self._allowed = allowed_mask(self.names, self.without)
        self._readings = {}
        self._session = self.steps.stepper.new_session()
        name = self.backend.info.name
        self.text = SwitcherReader(
            self.prompt, len(names), self.vocabulary, self.backend.render, name
        )

    @property
    def vocabulary(self) -> Vocabulary:
        return self.backend.info.vocabulary

    def check(self, row: Row) -> None:
        limit = self.backend.info.context_length
        needed = len(self.text.query(row.query)) + self.text.tail
        if limit is not None and needed >= limit:
            raise InputError(
                f"prompt {row.index + 1} takes {needed} tokens with the switcher's question, and "
                f"the switcher {self.backend.info.name!r} reads at most {limit}",
                remedy="shorten the prompt or use a switcher with a longer context",
            )

    def models(self, segments: int) -> list[tuple[Backend, int]]:
        return [(self.backend, segments * self.text.tags + self.text.tail)]

    def prepare(self, rows: int, positions: int, segments: int) -> None:
        assert self._session is not None
        [(_, more)] = self.models(segments)
        self._session.reserve(rows, positions + more)

    def forget(self, row: Row) -> None:
        reading = self._readings.pop(id(row), None)
        if reading is not None and self._session is not None:
            row.book(ACCOUNT, reading.lane)
            self._session.release(reading.lane)

    # -- reading -----------------------------------------------------------------------------
    def _unread(self, row: Row) -> list[int]:
        """What the switcher has not read of the row: the query at first, then tagged segments."""
        reading = self._readings.get(id(row))
        chunk = [] if reading else self.text.query(row.query)
        return chunk + self.text.trace(row, reading.turns if reading else 0)

    def _fits(self, row: Row, chunk: Sequence[int]) -> bool:
        limit = self.backend.info.context_length
        reading = self._readings.get(id(row))
        read = len(reading.lane.ids) if reading else 0
        needed = read + len(chunk) + self.text.tail
        return limit is None or needed <= limit

    # -- decisions ---------------------------------------------------------------------------
    def choose(self, rows: Sequence[Row]) -> list[Decision | None]:
        with shared_time(list(rows), [ACCOUNT] * len(rows)):
            return self._choose(rows)

    def _choose(self, rows: Sequence[Row]) -> list[Decision | None]:
        decisions: list[Decision | None] = [None] * len(rows)
        chunks = [self._unread(row) for row in rows]
        places = [place for place, row in enumerate(rows) if self._fits(row, chunks[place])]
        if not places:
            return decisions
        places.sort(key=lambda place: len(chunks[place]))
        session = self._session
        assert session is not None
        for place in places:
            if id(rows[place]) not in self._readings:
                self._readings[id(rows[place])] = _Reading(session.open(self.steps.adapter))
        lanes = [self._readings[id(rows[place])].lane for place in places]
        scores = self._ask(session, lanes, [chunks[place] for place in places])
        for place, row_scores in zip(places, scores, strict=True):
            row = rows[place]
            self._readings[id(row)].turns = len(row.turns)
            row.account(ACCOUNT).decisions += 1
            decisions[place] = decide(
                row, row_scores, self.names, self._allowed, self.temperature, self.top_p
            )
        return decisions

    def _ask(
        self, session: Session, lanes: list[Lane], chunks: list[list[int]]
    ) -> np.ndarray[Any, Any]:
        """Read the chunks, ask, and forget the question again; ``[rows, labels]`` scores."""
        if session.crops:
            scores = self._scores(session, lanes, chunks)
            for lane in lanes:
                session.crop(lane, len(lane.ids) - len(self.text.question))
            return scores
        # A recurrent state cannot forget: the question is read in a copy.
        if any(chunks):
            with session.batch(lanes) as batch:
                batch.extend(chunks)
        forks = [session.fork(lane, 1)[0] for lane in lanes]
        scores = self._scores(session, forks, [[] for _ in forks])
        for lane, fork in zip(lanes, forks, strict=True):
            lane.prefill += fork.prefill
            session.release(fork)
        return scores

    def _scores(
        self, session: Session, lanes: list[Lane], chunks: list[list[int]]
    ) -> np.ndarray[Any, Any]:
        """Log-probability of every label, ``[rows, labels]``; leaves the question in the lanes."""
        after: dict[tuple[int, ...], torch.Tensor] = {}
        with session.batch(lanes) as batch:
            logits = batch.extend([chunk + self.text.question for chunk in chunks])
            after[()] = logits.double().log_softmax(-1)
        # Labels of several tokens: the chain rule, over each distinct beginning of a label.
        for start in sorted({tuple(c[:n]) for c in self.text.choices for n in range(1, len(c))}):
            with session.batch(lanes) as batch:
                after[start] = batch.extend([list(start)] * len(lanes)).double().log_softmax(-1)
            for lane in lanes:
                session.crop(lane, len(lane.ids) - len(start))
        columns = []
        for choice in self.text.choices:
            steps = [after[tuple(choice[:n])][:, token] for n, token in enumerate(choice)]
            columns.append(torch.stack(steps).sum(0))
        return torch.stack(columns, dim=1).cpu().numpy()
