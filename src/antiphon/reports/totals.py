"""Sums over completions."""

from __future__ import annotations

from collections.abc import Iterable

from antiphon.types import Completion, ModelUsage


def total_usage(completions: Iterable[Completion]) -> dict[str, ModelUsage]:
    """Usage summed over completions, by model."""
    total: dict[str, ModelUsage] = {}
    for completion in completions:
        for name, usage in completion.usage.items():
            total.setdefault(name, ModelUsage()).add(usage)
    return total
