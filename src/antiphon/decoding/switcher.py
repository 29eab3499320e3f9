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
from typing import Any, Literal

import numpy as np
import torch

from antiphon.backends.base import Backend, Lane, Session, Steps, Vocabulary, require
from antiphon.backends.prompts import chat_frame
from antiphon.backends.vocabulary import differences, shared_ids
from antiphon.decoding.alignment import encode_after
from antiphon.decoding.policies import Decision, select
from antiphon.decoding.rows import Row, Turn, shared_time
from antiphon.errors import InputError
from antiphon.types import Query, as_messages

ACCOUNT = "switcher"
"""Name under which the switcher's work stands in a completion's usage."""


@dataclass(frozen=True)
class SwitcherPrompt:
    """The texts around the trace; ``{label}`` and ``{last}`` are choice labels.

    Attributes:
        begin: before a segment.
        end: after a segment.
        question: after the trace; a label follows.
        frame: ``plain`` is the paper's bare text; ``chat`` puts all of it into the user turn of
            the switcher's chat template, and the label opens its answer.
        labels: one a candidate; empty for numbers from 0, or letters beyond ten candidates.
    """

    begin: str = " <model {label} begins> "
    end: str = " <model {label} ends>"
    question: str = (
        " Which model should generate the next segment? Please respond with a {kind} from "
        "{first} to {last}. The answer is model "
    )
    frame: Literal["plain", "chat"] = "plain"
    labels: tuple[str, ...] = ()

    def labels_for(self, count: int) -> tuple[str, ...]:
        """One label a candidate: ``0..n-1``, or letters where numbers would need two digits.

        Raises:
            InputError: labels were given, and not one for each candidate; or too many candidates.
        """
        if self.labels:
            if len(self.labels) != count or len(set(self.labels)) != count:
                raise InputError(
                    f"{len(set(self.labels))} different switcher labels for {count} candidates",
                    remedy="give one label a candidate, all different",
                )
            return self.labels
        if count <= 10:
            return tuple(str(index) for index in range(count))
        if count <= 26:
            return tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count])
        raise InputError(
            f"{count} candidates; the default labels reach 26 (A to Z)",
            remedy="give the switcher your own `labels`, one a candidate",
        )

    def question_for(self, labels: Sequence[str]) -> str:
        """The question with its labels filled in."""
        kind = "number" if all(label.isdigit() for label in labels) else "letter"
        return self.question.format(kind=kind, first=labels[0], last=labels[-1])


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
    ) -> None:
        require(backend, "Steps", "an LM switcher")
        assert isinstance(backend, Steps)
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(
                f"the switcher's top_p is {top_p}; it must be above 0 and at most 1",
                remedy="leave it out of the selection with 'argmax' to take the best candidate",
            )
        if not temperature > 0:
            raise InputError(
                f"the switcher's temperature is {temperature}; it must be above 0",
                remedy="use argmax selection to take the best candidate always",
            )
        self.backend = backend
        self.steps: Steps = backend
        self.prompt = prompt or SwitcherPrompt()
        self.top_p = top_p
        self.temperature = temperature
        self._readings: dict[int, _Reading] = {}
        self._session: Session | None = None

    # -- set-up ------------------------------------------------------------------------------
    def start(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._readings = {}
        self._session = self.steps.stepper.new_session()
        self.labels = self.prompt.labels_for(len(names))
        self._head, self._tail = "", ""
        if self.prompt.frame == "chat":
            self._head, self._tail = chat_frame(self.vocabulary, self.backend.info.name)
        encode = self.vocabulary.encode
        self._begin = [encode(self.prompt.begin.format(label=x)) for x in self.labels]
        self._end = [encode(self.prompt.end.format(label=x)) for x in self.labels]
        self._question, self._choices = self._split_labels()
        self._longest_choice = max(map(len, self._choices))
        self._readable: dict[int, frozenset[int] | None] = {}

    @property
    def vocabulary(self) -> Vocabulary:
        return self.backend.info.vocabulary

    def _split_labels(self) -> tuple[list[int], list[list[int]]]:
        """Ids of the question, and of each label after it.

        Question and label are encoded together, because a label may merge with what stands before
        it; what all encodings share is the question.

        Raises:
            InputError: one label's tokens start another's, so their probabilities would overlap.
        """
        question = self.prompt.question_for(self.labels) + self._tail
        whole = [self.vocabulary.encode(question + label) for label in self.labels]
        shared = 0
        shortest = min(map(len, whole))
        while shared < shortest and len({ids[shared] for ids in whole}) == 1:
            shared += 1
        if len(whole) == 1:
            shared = max(0, shortest - 1)
        choices = [ids[shared:] for ids in whole]
        for one, first in enumerate(choices):
            for two, second in enumerate(choices):
                if one != two and second[: len(first)] == first:
                    raise InputError(
                        f"in the switcher's vocabulary the label {self.labels[one]!r} starts the "
                        f"label {self.labels[two]!r}, so their probabilities cannot be told apart",
                        remedy="give the switcher other `labels`, e.g. letters",
                    )
        return whole[0][:shared], choices

    def check(self, row: Row) -> None:
        limit = self.backend.info.context_length
        needed = len(self._prompt(row.query)) + len(self._question) + self._longest_choice
        if limit is not None and needed >= limit:
            raise InputError(
                f"prompt {row.index + 1} takes {needed} tokens with the switcher's question, and "
                f"the switcher {self.backend.info.name!r} reads at most {limit}",
                remedy="shorten the prompt or use a switcher with a longer context",
            )

    def models(self, segments: int) -> list[tuple[Backend, int]]:
        tags = max(len(a) + len(b) for a, b in zip(self._begin, self._end, strict=True))
        return [(self.backend, segments * tags + len(self._question) + self._longest_choice)]

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
    def _prompt(self, query: Query) -> list[int]:
        """Ids of the query, framed."""
        if self.prompt.frame == "plain":
            return self.backend.render(query)
        messages = as_messages(query)
        text = "\n".join(message.content for message in messages)
        return self.vocabulary.encode(self._head + text)

    def _unread(self, row: Row) -> list[int]:
        """What the switcher has not read of the row: the query at first, then tagged segments."""
        reading = self._readings.get(id(row))
        chunk = [] if reading else self._prompt(row.query)
        for turn in row.turns[reading.turns if reading else 0 :]:
            ids = self._ids_of(row, turn)
            if turn.writer < 0:
                chunk += ids
            else:
                chunk += self._begin[turn.writer] + ids + self._end[turn.writer]
        return chunk

    def _ids_of(self, row: Row, turn: Turn) -> list[int]:
        """A turn's ids in the switcher's vocabulary: as written if it can read them, else its own
        ids of the turn's text."""
        group = row.group_of(turn)
        if group not in self._readable:
            theirs = row.vocabularies[group]
            same = not differences(theirs, self.vocabulary)
            self._readable[group] = shared_ids([theirs, self.vocabulary]) if same else None
        readable = self._readable[group]
        if readable is not None and readable.issuperset(turn.ids):
            return list(turn.ids)
        text = row.text_of(turn)
        before = self.prompt.begin.format(label=self.labels[max(0, turn.writer)])
        ids = encode_after(self.vocabulary, before, text)
        return self.vocabulary.encode(text) if ids is None else ids

    def _fits(self, row: Row, chunk: Sequence[int]) -> bool:
        limit = self.backend.info.context_length
        reading = self._readings.get(id(row))
        read = len(reading.lane.ids) if reading else 0
        needed = read + len(chunk) + len(self._question) + self._longest_choice
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
            decisions[place] = self._decide(row, row_scores)
        return decisions

    def _ask(
        self, session: Session, lanes: list[Lane], chunks: list[list[int]]
    ) -> np.ndarray[Any, Any]:
        """Read the chunks, ask, and forget the question again; ``[rows, labels]`` scores."""
        if session.crops:
            scores = self._scores(session, lanes, chunks)
            for lane in lanes:
                session.crop(lane, len(lane.ids) - len(self._question))
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
            logits = batch.extend([chunk + self._question for chunk in chunks])
            after[()] = logits.double().log_softmax(-1)
        # Labels of several tokens: the chain rule, over each distinct beginning of a label.
        for start in sorted({tuple(c[:n]) for c in self._choices for n in range(1, len(c))}):
            with session.batch(lanes) as batch:
                after[start] = batch.extend([list(start)] * len(lanes)).double().log_softmax(-1)
            for lane in lanes:
                session.crop(lane, len(lane.ids) - len(start))
        columns = []
        for choice in self._choices:
            steps = [after[tuple(choice[:n])][:, token] for n, token in enumerate(choice)]
            columns.append(torch.stack(steps).sum(0))
        return torch.stack(columns, dim=1).cpu().numpy()

    def _decide(self, row: Row, scores: np.ndarray[Any, Any]) -> Decision:
        weights = np.exp((scores - scores.max()) / self.temperature)
        probabilities = weights / weights.sum()
        chosen = select(probabilities, row.choice_uniform(), self.top_p)
        return Decision(chosen, dict(zip(self.names, map(float, probabilities), strict=True)))
