"""How many responses fit into the memory given for key-value caches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from antiphon.backends.base import Steps
from antiphon.decoding.policies import Policy
from antiphon.decoding.rows import Candidate
from antiphon.errors import InputError

if TYPE_CHECKING:
    from antiphon.decoding.engine import TurnOptions


def free_memory(candidates: Sequence[Candidate]) -> int:
    """Bytes free where the first candidate's caches will be: its GPU's memory, or RAM."""
    for candidate in candidates:
        if isinstance(candidate.backend, Steps):
            device = getattr(candidate.backend.stepper, "device", torch.device("cpu"))
            if device.type == "cuda":
                return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 8 * 2**30


def row_bytes(
    candidates: Sequence[Candidate], policy: Policy, positions: int, segments: int
) -> int:
    """Key-value bytes of one response of this many positions: every candidate's, the policy's
    models', and one workspace of the largest of them."""
    sizes = [candidate.backend.info.bytes_per_position * positions for candidate in candidates]
    for backend, more in policy.models(segments):
        sizes.append(backend.info.bytes_per_position * (positions + more))
    return sum(sizes) + max(sizes)


def most_segments(options: TurnOptions) -> int:
    """Segments of a response that fills ``max_new_tokens`` with segments of full length. Rules
    that end segments earlier make more of them; storage then grows as it goes."""
    return -(-options.max_new_tokens // options.boundary.cap) + 1


def rows_at_once(
    candidates: Sequence[Candidate],
    policy: Policy,
    positions: int,
    options: TurnOptions,
    rows: int,
) -> int:
    """Responses to write at once, within ``options.memory_bytes`` and ``options.batch_rows``.

    Raises:
        InputError: the budget does not hold a single response.
    """
    need = row_bytes(candidates, policy, positions, most_segments(options))
    budget = options.memory_bytes
    if budget is None:
        budget = free_memory(candidates) // 2
    if need > budget:
        raise InputError(
            f"one response of up to {positions} positions needs {need / 2**20:.1f} MiB of "
            f"key-value caches, and the memory budget is {budget / 2**20:.1f} MiB",
            remedy="raise the memory budget, or lower max_new_tokens or the number of candidates",
        )
    return max(1, min(rows, options.batch_rows, budget // need if need else rows))
