"""Scores of the lab's questions for rollouts and evaluation: ``--metric`` takes their paths.

``antiphon.lab.metrics:exact`` is 1 for the right final answer; ``antiphon.lab.metrics:partial``
gives credit for right steps, which tells traces apart long before the answer is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from antiphon.lab.world import Question, partial_score, score


def exact(text: str, fields: Mapping[str, Any]) -> float:
    """1.0 if the final answer is exactly right, else 0.0."""
    return score(_question(fields), text)


def partial(text: str, fields: Mapping[str, Any]) -> float:
    """Credit in [0, 1] for the share of right steps."""
    return partial_score(_question(fields), text)


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


exact.needs = partial.needs = ("skill", "answer", "checks")  # type: ignore[attr-defined]
