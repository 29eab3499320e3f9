"""Sums over completions."""

from __future__ import annotations

from collections.abc import Iterable

from antiphon.types import Completion, ModelUsage


def add_usage(total: dict[str, ModelUsage], completion: Completion) -> None:
    """Add a completion's usage to a running total by model."""
    for name, usage in completion.usage.items():
        total.setdefault(name, ModelUsage()).add(usage)


def total_usage(completions: Iterable[Completion]) -> dict[str, ModelUsage]:
    """Usage summed over completions, by model."""
    total: dict[str, ModelUsage] = {}
    for completion in completions:
        add_usage(total, completion)
    return total
