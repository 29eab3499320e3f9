"""Rows whose draws come from several seeds one after another, as those of forks do."""

from __future__ import annotations

from collections.abc import Mapping

from antiphon.backends.sampling import CHOICES, TOKENS, uniforms
from antiphon.decoding.rows import Row

_MANY = 400


def draw_by(row: Row, seeds: Mapping[int, int]) -> Row:
    """Let a fresh row draw from a seed's numbers once it has taken so many turns, each number at
    its own place in the response.

    Tokens go by turns too: a draft may draw a few tokens beyond its end and drop them again.
    """
    tokens = {seed: uniforms(seed, TOKENS, _MANY) for seed in seeds.values()}
    choices = {seed: uniforms(seed, CHOICES, _MANY) for seed in seeds.values()}

    def seed_now() -> int:
        return seeds[max(turns for turns in seeds if turns <= row.turns_taken)]

    def token_uniform(position: int) -> float:
        return float(tokens[seed_now()][min(position, row.max_new_tokens - 1)])

    def choice_uniform() -> float:
        return float(choices[seed_now()][row.turns_taken])

    row.token_uniform = token_uniform  # type: ignore[method-assign]
    row.choice_uniform = choice_uniform  # type: ignore[method-assign]
    return row
