"""Text between vocabularies: incremental decoding, and where a text may be handed over.

Candidates that share a vocabulary exchange token ids. Others exchange text, and then two things
can go wrong: a token may end inside a character or a word, and encoding a text in pieces may not
equal encoding it whole. So a text is handed over only up to its last finished word
(:func:`hold_back`), and pieces are encoded behind what precedes them (:func:`encode_after`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from antiphon.backends.base import Vocabulary

_UNFINISHED = "\ufffd"
_WINDOW = 8


class Detokenizer:
    """Turns a growing list of token ids into a growing text, each character exactly once.

    A token that ends inside a character yields nothing until the character is complete. Decoding
    starts behind an ordinary token, so that a decoder which strips a text's first space does not
    strip the answer's.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids = vocabulary.encode("a")[-1:]
        self._shown = len(vocabulary.decode(self._ids))

    def fork(self) -> Detokenizer:
        """Another one that goes on from here."""
        other = copy.copy(self)
        other._ids = list(self._ids)
        return other

    def push(self, ids: Sequence[int]) -> str:
        """Append ids; returns the text they complete."""
        self._ids.extend(ids)
        return self._take(final=False)

    def flush(self) -> str:
        """The rest, unfinished characters as U+FFFD."""
        return self._take(final=True)

    def peek(self, ids: Sequence[int]) -> str:
        """The text that ``push`` and ``flush`` would return, without changing anything."""
        now = self._vocabulary.decode([*self._ids, *ids])
        return now[self._shown :]

    def _take(self, final: bool) -> str:
        now = self._vocabulary.decode(self._ids)
        complete = now if final else now.rstrip(_UNFINISHED)
        new = complete[self._shown :]
        self._shown = max(self._shown, len(complete))
        if len(complete) == len(now) and len(self._ids) > 4 * _WINDOW:
            # Nothing is pending: a few tokens are enough to go on from.
            self._ids = last_whole(self._vocabulary, self._ids)
            self._shown = len(self._vocabulary.decode(self._ids))
        return new


def last_whole(vocabulary: Vocabulary, ids: Sequence[int]) -> list[int]:
    """The last few ids, cut between characters if there is such a place among the last forty.

    Decoders with byte fallback read a run of bytes as one: started inside a character, they lose
    the whole run.
    """
    for length in range(_WINDOW, min(len(ids), 5 * _WINDOW)):
        if _UNFINISHED not in vocabulary.decode(ids[-length:]):
            return list(ids[-length:])
    return list(ids[-5 * _WINDOW :])


def hold_back(text: str) -> int:
    """Where the last, possibly unfinished, word of ``text`` starts, the spaces before it included.

    What stands before that position can be handed over: no continuation changes how a tokenizer
    that splits at white space reads it.
    """
    position = len(text)
    while position > 0 and not text[position - 1].isspace():
        position -= 1
    while position > 0 and text[position - 1].isspace():
        position -= 1
    return position


def encode_after(vocabulary: Vocabulary, before: str, text: str) -> list[int] | None:
    """Ids of ``text`` where it follows ``before``, or ``None`` if the two do not come apart.

    They come apart when encoding both together starts with the ids of the first alone.
    """
    if not text:
        return []
    anchor = before[hold_back(before) :] if before else ""
    anchor = (anchor or before)[-64:] or "\n"
    first = vocabulary.encode(anchor)
    both = vocabulary.encode(anchor + text)
    if both[: len(first)] != first:
        return None
    return both[len(first) :]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of ids that two lists share at the start."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
