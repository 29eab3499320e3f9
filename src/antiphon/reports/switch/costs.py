"""What methods compute: positions (tokens pushed through a model) and seconds.

*Cost of a decision.* Asking a switcher costs more than the switcher's own positions: candidates
may read more as well. Both are caught by comparing with uniform random turns, which ask nobody::

    extra a token     = positions a written token - those of the uniform run    (all models)
    cost a decision   = max(0, extra a token * written tokens / decisions)

Seconds likewise; they depend on the machine, positions do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from antiphon.reports.switch.records import BySeed

SWITCHERS = ("lm_switcher", "hidden_switcher")


def cost(by_seed: BySeed) -> dict[str, Any]:
    """Positions and seconds a written token, over all seeds and items.

    Returns:
        ``positions_per_token``, ``seconds_per_token``: all models together; ``models``: positions
        a written token by model; ``tokens``: written; ``tokens_per_answer``; ``decisions``.
    """
    runs = by_seed.values()
    tokens = sum(a.written for a in runs)
    answers = sum(len(a.ids) for a in runs)
    positions: dict[str, float] = {}
    for a in runs:
        for model, amount in a.positions.items():
            positions[model] = positions.get(model, 0) + amount
    seconds = sum(sum(a.seconds.values()) for a in runs)
    return {
        "positions_per_token": _each(sum(positions.values()), tokens),
        "seconds_per_token": _each(seconds, tokens),
        "models": {model: _each(amount, tokens) for model, amount in positions.items()},
        "tokens": tokens,
        "tokens_per_answer": _each(tokens, answers),
        "decisions": sum(a.decisions for a in runs),
    }


def decision_costs(main: Mapping[str, BySeed]) -> dict[str, Any]:
    """Cost of a decision of both switchers, and hidden-state to LM as ``ratio``, ``seconds_ratio``.

    ``None`` where nothing was decided, written or, for a ratio, spent.
    """
    uniform = cost(main["uniform"])
    found: dict[str, Any] = {}
    for name in SWITCHERS:
        own = cost(main[name])
        found[name] = {
            f"{unit}_per_decision": _extra(own, uniform, f"{unit}_per_token")
            for unit in ("positions", "seconds")
        }
        found[name]["decisions"] = own["decisions"]
        found[name]["tokens_per_decision"] = (
            own["tokens"] / own["decisions"] if own["decisions"] else None
        )
    lm, hidden = (found[name] for name in SWITCHERS)
    for unit, ratio in (("positions", "ratio"), ("seconds", "seconds_ratio")):
        above, below = hidden[f"{unit}_per_decision"], lm[f"{unit}_per_decision"]
        found[ratio] = above / below if above is not None and below else None
    return found


def _extra(own: Mapping[str, Any], uniform: Mapping[str, Any], unit: str) -> float | None:
    ours, theirs = own[unit], uniform[unit]
    if not own["decisions"] or ours is None or theirs is None:
        return None
    extra: float = (ours - theirs) * own["tokens"] / own["decisions"]
    return max(0.0, extra)


def _each(amount: float, count: int) -> float | None:
    return float(amount) / count if count else None
