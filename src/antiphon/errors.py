"""Errors that say what was given, which rule it breaks and what to do about it.

Every error the library raises on purpose is an :class:`AntiphonError`. The command line prints its
message and remedy without a traceback and exits with :attr:`AntiphonError.exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AntiphonError(Exception):
    """Base of all deliberate errors.

    Args:
        message: what was given and which rule it breaks.
        remedy: what to do about it; printed on its own line.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message


class InputError(AntiphonError):
    """The caller gave something that breaks a rule: configuration, prompt, path, option."""

    exit_code = 2


class CapabilityError(InputError):
    """A model or backend lacks something that the method needs; raised before anything is loaded
    where the lack can be known by then."""


class UnsupportedModelError(CapabilityError):
    """An architecture that cannot be decoded exactly here, refused by name with the reason."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A remedy sentence that suggests the nearest known name, or lists them all."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}? Known: {', '.join(names)}"
    return f"known: {', '.join(names)}" if names else "none are known"
