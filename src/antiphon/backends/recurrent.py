"""Sessions for hybrid and state-space models: every row has a cache of its own.

A recurrent state cannot be cropped, and padding would enter it, so rows are computed one by one.
Forking copies the state. Cropping re-reads the row from its first token when it is next used; the
positions that costs are counted like all others. Exact, and slower than attention models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from antiphon.backends.base import Lane


@dataclass(frozen=True)
class RecurrentLayout:
    """``chunks``: whether several tokens may be read at once by a row that has a state."""

    chunks: bool


Reading = tuple[torch.Tensor, "torch.Tensor | None"]
"""Last logits ``[1, vocabulary]`` and the hidden states behind them ``[1, hidden]``, if shown."""

RowForward = Callable[[torch.Tensor, torch.Tensor, Any, "str | None"], Reading]
"""``forward(ids [1, n], positions [1, n], cache, adapter)`` -> :data:`Reading`."""


class RecurrentBatch:
    """See :class:`antiphon.backends.base.Batch`."""

    def __init__(self, session: RecurrentSession, lanes: Sequence[Lane]) -> None:
        self._session = session
        self.lanes = list(lanes)
        self._idle = [False] * len(lanes)
        self.states: torch.Tensor | None = None

    def extend(self, chunks: Sequence[Sequence[int]]) -> torch.Tensor:
        if len(chunks) != len(self.lanes) or max(map(len, chunks)) < 1:
            raise ValueError("one chunk for every row of the batch, and a token in one of them")
        rows: list[Reading | None] = []
        for lane, chunk in zip(self.lanes, chunks, strict=True):
            if not chunk:
                rows.append(None)
                continue
            reading, computed = self._session.read(lane, list(chunk))
            lane.prefill += computed
            rows.append(reading)
        return self._with_blanks(rows)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        rows: list[Reading | None] = []
        for lane, token, idle in zip(self.lanes, tokens.tolist(), self._idle, strict=True):
            if idle:  # nothing is computed for a row that has stopped
                rows.append(None)
                continue
            reading, computed = self._session.read(lane, [token])
            lane.decode += computed
            rows.append(reading)
        return self._with_blanks(rows)

    def _with_blanks(self, rows: Sequence[Reading | None]) -> torch.Tensor:
        """Stack logits and keep states; rows for which nothing was computed are zero."""
        logits, states = next(row for row in rows if row is not None)
        blank = (torch.zeros_like(logits), None if states is None else torch.zeros_like(states))
        whole = [blank if row is None else row for row in rows]
        shown = [states for _, states in whole if states is not None]
        self.states = torch.cat(shown) if len(shown) == len(whole) else None
        return torch.cat([logits for logits, _ in whole])

    def keep(self, rows: Sequence[int]) -> None:
        self.lanes = [self.lanes[row] for row in rows]
        self._idle = [self._idle[row] for row in rows]

    def idle(self, row: int) -> None:
        self._idle[row] = True


class RecurrentSession:
    """See :class:`antiphon.backends.base.Session`."""

    crops = False

    def __init__(
        self,
        forward: RowForward,
        new_cache: Callable[[], Any],
        layout: RecurrentLayout,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._new_cache = new_cache
        self._layout = layout
        self._device = device
        self._caches: dict[int, Any] = {}
        self._next = 0

    def open(self, adapter: str | None = None) -> Lane:
        lane = Lane(self._next, adapter)
        self._caches[lane.slot] = None
        self._next += 1
        return lane

    def reserve(self, lanes: int, positions: int) -> None:
        """States have a fixed size; there is nothing to reserve."""

    def release(self, lane: Lane) -> None:
        del self._caches[lane.slot]
        lane.slot = -1

    def crop(self, lane: Lane, length: int) -> None:
        if not 0 <= length <= len(lane.ids):
            raise ValueError(f"cannot crop a lane of {len(lane.ids)} tokens to {length}")
        if length < len(lane.ids):
            del lane.ids[length:]
            self._caches[lane.slot] = None

    def fork(self, lane: Lane, copies: int) -> list[Lane]:
        new = [self.open(lane.adapter) for _ in range(copies)]
        for fork in new:
            fork.ids = list(lane.ids)
            self._caches[fork.slot] = copy.deepcopy(self._caches[lane.slot])
        return new

    @contextmanager
    def batch(self, lanes: Sequence[Lane]) -> Iterator[RecurrentBatch]:
        slots = [lane.slot for lane in lanes]
        if not slots or len(set(slots)) != len(slots) or min(slots) < 0:
            raise ValueError("a batch needs distinct, open lanes")
        yield RecurrentBatch(self, lanes)

    def read(self, lane: Lane, chunk: list[int]) -> tuple[Reading, int]:
        """Read a chunk into a lane; returns what its end shows and the positions computed."""
        fresh = self._caches[lane.slot] is None
        tokens, start = (lane.ids + chunk, 0) if fresh else (chunk, len(lane.ids))
        if fresh:
            self._caches[lane.slot] = self._new_cache()
        lane.ids.extend(chunk)
        pieces = [tokens] if fresh or self._layout.chunks else [[token] for token in tokens]
        for piece in pieces:
            ids = torch.tensor([piece], device=self._device)
            positions = torch.arange(start, start + len(piece), device=self._device)[None]
            reading = self._forward(ids, positions, self._caches[lane.slot], lane.adapter)
            start += len(piece)
        return reading, len(tokens)
