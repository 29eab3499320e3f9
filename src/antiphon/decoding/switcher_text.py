"""What an LM switcher reads: the query, the tagged trace and the question, as token ids.

Apart from the switcher itself because training reads the same text without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from antiphon.backends.base import Vocabulary
from antiphon.backends.prompts import chat_frame
from antiphon.backends.vocabulary import differences, shared_ids
from antiphon.decoding.alignment import encode_after
from antiphon.decoding.rows import Row, Turn
from antiphon.errors import InputError
from antiphon.types import Query, as_messages


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


class SwitcherReader:
    """The switcher's text for one pool.

    Args:
        prompt: the texts.
        candidates: how many.
        vocabulary: the switcher's.
        render: a query as the switcher's prompt (``plain`` frame).
        name: of the switcher, for messages.

    Attributes:
        labels: one a candidate.
        question: ids after the trace.
        choices: ids of each label after the question.

    Raises:
        InputError: the labels do not fit the pool or the vocabulary.
    """

    def __init__(
        self,
        prompt: SwitcherPrompt,
        candidates: int,
        vocabulary: Vocabulary,
        render: Callable[[Query], list[int]],
        name: str,
    ) -> None:
        self.prompt = prompt
        self.vocabulary = vocabulary
        self._render = render
        self.labels = prompt.labels_for(candidates)
        self._head, self._tail = "", ""
        if prompt.frame == "chat":
            self._head, self._tail = chat_frame(vocabulary, name)
        encode = vocabulary.encode
        self._begin = [encode(prompt.begin.format(label=x)) for x in self.labels]
        self._end = [encode(prompt.end.format(label=x)) for x in self.labels]
        self.question, self.choices = self._split_labels()
        self._readable: dict[int, frozenset[int] | None] = {}

    @property
    def tags(self) -> int:
        """Most ids around a segment."""
        return max(len(a) + len(b) for a, b in zip(self._begin, self._end, strict=True))

    @property
    def tail(self) -> int:
        """Most ids after the trace: the question and a label."""
        return len(self.question) + max(map(len, self.choices))

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

    def query(self, query: Query) -> list[int]:
        """Ids of the query, framed."""
        if self.prompt.frame == "plain":
            return self._render(query)
        messages = as_messages(query)
        text = "\n".join(message.content for message in messages)
        return self.vocabulary.encode(self._head + text)

    def trace(self, row: Row, first: int = 0) -> list[int]:
        """Ids of the row's tagged segments from turn ``first`` on."""
        ids: list[int] = []
        for turn in row.turns[first:]:
            of_turn = self._ids_of(row, turn)
            if turn.writer < 0:
                ids += of_turn
            else:
                ids += self._begin[turn.writer] + of_turn + self._end[turn.writer]
        return ids

    def whole(self, row: Row) -> list[int]:
        """All that the switcher has read when it is asked about this row."""
        return self.query(row.query) + self.trace(row) + self.question

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
