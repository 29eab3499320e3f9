"""Scores of the lab's questions for rollouts and evaluation: ``--metric`` takes their paths.

``antiphon.lab.metrics:exact`` is 1 for the right final answer; ``antiphon.lab.metrics:partial``
gives credit for right steps, which tells traces apart long before the answer is right;
``antiphon.lab.metrics:closeness`` is the likeness to the right answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from antiphon.lab.world import Question, partial_score, score


def exact(text: str, fields: Mapping[str, Any]) -> float:
    """1.0 if the final answer is exactly right, else 0.0."""
    return score(_question(fields), text)


def partial(text: str, fields: Mapping[str, Any]) -> float:
    """Credit in [0, 1] for the share of right steps."""
    return partial_score(_question(fields), text)


def closeness(text: str, fields: Mapping[str, Any]) -> float:
    """Likeness in [0, 1] of the text to the complete right answer; never quite flat, so that even
    hardly trained checkpoints can be told apart."""
    checks, answer = [str(check) for check in fields["checks"]], str(fields["answer"])
    right = "; ".join(checks) + ("=" + answer if checks and checks[-1] in _sums(checks) else "")
    return SequenceMatcher(None, right or answer, text.strip(), autojunk=False).ratio()


def _sums(checks: list[str]) -> list[str]:
    return [check for check in checks if "+" in check]


def _question(fields: Mapping[str, Any]) -> Question:
    return Question(
        id="",
        skill=str(fields["skill"]),
        split="",
        text="",
        lead="",
        answer=str(fields["answer"]),
        gold_trace="",
        checks=tuple(fields["checks"]),
    )


exact.needs = partial.needs = closeness.needs = ("skill", "answer", "checks")  # type: ignore[attr-defined]
