"""Stored traces as rows, without any model: for what a switcher would have read there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from antiphon.backends.base import Backend, ModelInfo
from antiphon.backends.loading import load_vocabulary, resolve_adapter, tokenizer_source
from antiphon.config import CandidateConfig
from antiphon.decoding.exchange import Exchange, group_by_vocabulary
from antiphon.decoding.rows import Candidate, Row
from antiphon.training.store import StoredInstance
from antiphon.types import Query, SamplingParams


@dataclass(frozen=True)
class _Reader:
    """A candidate of which only the vocabulary is known; it is never run."""

    info: ModelInfo

    def render(self, query: Query) -> list[int]:
        raise NotImplementedError


class StoredRows:
    """Turns instances of one pool into rows that a switcher can read.

    Args:
        candidates: the pool; only its tokenizers are loaded.
        exchange: how the pool passes on its segments.
        max_new_tokens: most tokens of a response.
    """

    def __init__(
        self, candidates: Sequence[CandidateConfig], exchange: Exchange, max_new_tokens: int
    ) -> None:
        pool = []
        for config in candidates:
            base, adapter = resolve_adapter(config, config.name)
            vocabulary = load_vocabulary(tokenizer_source(base, adapter), config, config.name)
            info = ModelInfo(config.name, "", vocabulary, None, frozenset())
            pool.append(Candidate(config.name, _Reader(info), SamplingParams()))
        self._readers: list[Backend] = group_by_vocabulary(pool, exchange)
        self._groups = [candidate.group for candidate in pool]
        self._max_new_tokens = max_new_tokens

    def row(self, instance: StoredInstance) -> Row:
        """The instance's query and trace."""
        row = Row(0, instance.query, 0, [], self._max_new_tokens, self._readers, self._groups)
        row.resume(instance.turns)
        return row
