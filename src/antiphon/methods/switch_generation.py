"""Switch Generation: checkpoints of one pipeline take turns writing segments of one response.

Paper: "Don't Throw Away Your Pretrained Model" (arXiv 2510.09913, ICLR 2026).

    p_1..p_n = f(query q, trace t, candidates C)      asked again at every segment boundary
    c ~ top-p(p);  t <- t + c.generate(q, t, k tokens)

Symbols to names: f ``policy`` (the paper's is :class:`~antiphon.decoding.switcher.LMSwitcher`),
C ``pool``, k ``segment_tokens``, t the trace of a :class:`~antiphon.types.Completion`.

Deviations from the paper's released code, each on purpose:

* a partial answer is continued in the assistant turn, not pasted into the user turn;
* token ids are passed on, so no space is added at a boundary and no word is split;
* a candidate's end of sequence ends the response (or hands over: ``on_eos="handover"``);
* the switcher is read by its next-token probabilities, never by free text;
* first and last speaker are options, not fixed.

Needs: every candidate ``Steps`` (fast) or ``Generates``; an LM switcher ``Steps``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from antiphon.backends.sampling import derive_seed
from antiphon.decoding.engine import Engine, Finished, Piece, TurnOptions
from antiphon.decoding.policies import Policy, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.errors import InputError
from antiphon.types import Completion, Query


class SwitchGeneration:
    """Turn-taking over a pool.

    Args:
        pool: the candidates.
        policy: who speaks next; uniform at random if left out.
        options: see :class:`~antiphon.decoding.engine.TurnOptions`.
        fields: its single fields instead: ``max_new_tokens``, ``boundary``, ``first``, ``last``,
            ``final_prompt``, ``on_eos``, ``stop``, ``exchange``, ``batch_rows``, ``memory_bytes``.

    Raises:
        InputError, CapabilityError: the options fit neither the pool nor each other.

    Example:
        >>> pool = CandidatePool.load({"P": "base/", "A": "aligned/"})  # doctest: +SKIP
        >>> method = SwitchGeneration(pool, max_new_tokens=64)  # doctest: +SKIP
        >>> method.generate(["Who wrote Faust?"])  # doctest: +SKIP
    """

    def __init__(
        self,
        pool: CandidatePool,
        policy: Policy | None = None,
        options: TurnOptions | None = None,
        **fields: Any,
    ) -> None:
        if options is not None and fields:
            raise TypeError("give either options or single fields, not both")
        self.pool = pool
        self.engine = Engine(
            pool.candidates(), policy or Uniform(), options or TurnOptions(**fields)
        )

    def generate(
        self, queries: Sequence[Query], *, seed: int = 0, seeds: Sequence[int] | None = None
    ) -> list[Completion]:
        """Answer every query.

        Args:
            queries: plain strings or chats.
            seed: fixes all draws; row ``i`` gets a seed of its own from it and ``i``.
            seeds: each row's own seed instead; the same seed and query give the same answer in any
                batch.

        Returns:
            One completion a query, in order.

        Raises:
            InputError: a query is empty or too long; nothing was computed.
        """
        done: dict[int, Completion] = {}
        for event in self.run(queries, seed=seed, seeds=seeds):
            if isinstance(event, Finished):
                done[event.index] = event.completion
        return [done[index] for index in range(len(queries))]

    def stream(self, query: Query, *, seed: int = 0) -> Iterator[tuple[str, str]]:
        """Answer one query; yields ``(candidate, text)`` pieces as they are written."""
        for event in self.run([query], seeds=[derive_seed(seed, 0)], stream=True):
            if isinstance(event, Piece):
                yield event.candidate, event.text

    def run(
        self,
        queries: Sequence[Query],
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        stream: bool = False,
    ) -> Iterator[Piece | Finished]:
        """As :meth:`generate`, yielding completions as they finish, in any order."""
        if isinstance(queries, str):
            raise TypeError("queries is a list; for one query use [query]")
        own = [derive_seed(seed, index) for index in range(len(queries))]
        if seeds is not None and len(seeds) != len(queries):
            raise InputError(
                f"{len(seeds)} seeds for {len(queries)} queries",
                remedy="give one seed a query, or `seed` for all",
            )
        rows = self.engine.rows(queries, own if seeds is None else seeds)
        yield from self.engine.run(rows, stream=stream)
