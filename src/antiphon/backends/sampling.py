"""Drawing tokens so that a row's tokens depend on its seed alone, never on its batch.

Every token position of a row has its own uniform number, fixed by the row's seed (a counter-based
generator), and a token is drawn by inverting the distribution's cumulative sum at that number. So
the same seed gives the same tokens in a batch of 1 or 100, after a resume, and however the text is
cut into segments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from antiphon.types import SamplingParams

TOKENS = 0
"""Stream of the uniforms that draw tokens."""
CHOICES = 1
"""Stream of the uniforms that draw who speaks next."""


def derive_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed from a run's seed and what tells one use of it from another."""
    text = repr((int(seed), *map(str, parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def uniforms(seed: int, stream: int, count: int) -> np.ndarray:
    """``count`` float64 numbers in [0, 1): the first of an endless sequence fixed by the seed."""
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def draw(
    logits: torch.Tensor, params: Sequence[SamplingParams], uniform: torch.Tensor
) -> torch.Tensor:
    """Draw one token a row.

    Args:
        logits: ``[rows, vocabulary]``.
        params: one a row.
        uniform: ``[rows]`` float64 in [0, 1), on any device; unused by greedy rows.

    Returns:
        ``[rows]`` int64 token ids on the logits' device.
    """
    if all(p.greedy for p in params):
        return logits.argmax(dim=-1)
    weights = distribution(logits, params)
    # float64: over a large vocabulary a float32 cumulative sum moves its last bins visibly.
    cumulative = weights.double().cumsum(dim=-1)
    target = uniform.to(logits.device)[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True)[:, 0]
    drawn = index.clamp(max=logits.shape[-1] - 1)
    if any(p.greedy for p in params):
        greedy = torch.tensor([p.greedy for p in params], device=logits.device)
        drawn = torch.where(greedy, logits.argmax(dim=-1), drawn)
    return drawn


def distribution(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """``[rows, vocabulary]`` float32 probabilities after temperature and filters, renormalised.

    Greedy rows come back unfiltered; :func:`draw` never samples them.
    """

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float32)[:, None]

    temperature = column([p.temperature or 1.0 for p in params])
    scaled = logits.float() / temperature
    if any(p.top_k and not p.greedy for p in params):
        size = scaled.shape[-1]
        keep = [size if p.greedy or not p.top_k else min(p.top_k, size) for p in params]
        ranked = scaled.topk(max(keep), dim=-1).values
        kth = torch.tensor([k - 1 for k in keep], device=logits.device)[:, None]
        scaled = scaled.masked_fill(scaled < ranked.gather(1, kth), float("-inf"))
    weights = scaled.softmax(dim=-1)
    if any(p.top_p < 1 and not p.greedy for p in params):
        top_p = column([1.0 if p.greedy else p.top_p for p in params])
        ranked, order = weights.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(dim=-1) - ranked
        # A token stays while the mass before it is short of top_p; the first always does.
        drop = (before >= top_p) & (top_p < 1)
        weights = weights.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), 0.0)
    if any(p.min_p and not p.greedy for p in params):
        floor = column([0.0 if p.greedy else p.min_p for p in params])
        peak = weights.amax(dim=-1, keepdim=True)
        weights = weights.masked_fill(weights < floor * peak, 0.0)
    return weights / weights.sum(dim=-1, keepdim=True)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Shannon entropy in nats of each row's next-token distribution, ``[rows]``."""
    log_probabilities = logits.float().log_softmax(dim=-1)
    return -(log_probabilities.exp() * log_probabilities).nan_to_num(0.0).sum(dim=-1)
