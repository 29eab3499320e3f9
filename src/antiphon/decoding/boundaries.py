"""When a segment ends. The paper cuts after every k tokens; readers asked for adaptive lengths.

A rule sees one row at a time and only its own segment, so a row's segments never depend on its
batch. It is asked after every token drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from antiphon.backends.base import Vocabulary
from antiphon.errors import InputError

Verdict = Literal["go on", "after", "before"]
"""``after``: the newest token is the segment's last. ``before``: the segment ended before it, and
it is dropped (whoever is chosen next draws that position again)."""


class TokenTraits:
    """What rules need to know of tokens' texts, looked up once a token."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._texts: dict[int, str] = {}

    def text(self, token: int) -> str:
        """The token's text, as in the middle of a text."""
        if token not in self._texts:
            self._texts[token] = self._vocabulary.token_text(token)
        return self._texts[token]


class Boundary(Protocol):
    """A segment rule.

    Attributes:
        cap: most tokens of a segment; the engine ends it there whatever the rule says.
        needs_entropy: whether ``entropy`` must be computed (it needs full logits).
    """

    @property
    def cap(self) -> int: ...

    @property
    def needs_entropy(self) -> bool: ...

    def verdict(self, segment: Sequence[int], traits: TokenTraits, entropy: float) -> Verdict:
        """Asked after each token.

        Args:
            segment: its tokens so far, the newest last.
            traits: texts of the writer's tokens.
            entropy: of the distribution the newest token was drawn from, in nats; 0 if the rule
                does not need it.
        """


_CLOSERS = "\"'”’)]»"
"""What may stand between the end of a sentence and the space after it."""


def _check_cap(cap: int) -> None:
    if cap < 1:
        raise InputError(
            f"segment_tokens is {cap}; a segment has at least one token",
            remedy="give 1 (switch at every token) or more; the paper uses 50",
        )


@dataclass(frozen=True)
class EveryTokens:
    """Ends after every ``cap`` tokens (the paper's rule, with 50)."""

    cap: int = 50
    needs_entropy = False

    def __post_init__(self) -> None:
        _check_cap(self.cap)

    def verdict(self, segment: Sequence[int], traits: TokenTraits, entropy: float) -> Verdict:
        return "go on"


@dataclass(frozen=True)
class SentenceEnd:
    """Ends with a sentence or a line, or after ``cap`` tokens.

    A line ends behind its newline. A sentence ends where a token that starts with white space
    follows ``.``, ``!``, ``?`` or one of their full-width forms (closing quotes and brackets may
    stand between): so ``3.14`` is no end. That takes one token of look-ahead, which is dropped.
    """

    cap: int = 50
    minimum: int = 1
    needs_entropy = False

    def __post_init__(self) -> None:
        _check_cap(self.cap)

    def verdict(self, segment: Sequence[int], traits: TokenTraits, entropy: float) -> Verdict:
        newest = traits.text(segment[-1])
        if len(segment) > self.minimum:
            before = "".join(map(traits.text, segment[-6:-1])).rstrip(_CLOSERS)
            opens = newest[:1].isspace() and not newest.startswith("\n")
            if before.endswith((".", "!", "?")) and opens:
                return "before"
        if len(segment) >= self.minimum and (
            newest.endswith("\n") or newest.rstrip(_CLOSERS).endswith(("。", "！", "？"))
        ):
            return "after"
        return "go on"


@dataclass(frozen=True)
class EntropyAbove:
    """Ends before a token about which the writer is unsure, or after ``cap`` tokens.

    The segment ends before the first token whose next-token distribution has an entropy above
    ``threshold`` nats, once ``minimum`` tokens stand: the switcher is asked exactly where the
    writer does not know how to go on.
    """

    threshold: float
    cap: int = 50
    minimum: int = 1
    needs_entropy = True

    def __post_init__(self) -> None:
        _check_cap(self.cap)

    def verdict(self, segment: Sequence[int], traits: TokenTraits, entropy: float) -> Verdict:
        return "before" if len(segment) > self.minimum and entropy > self.threshold else "go on"
