"""Drawing: the distribution is ``transformers``'s, frequencies follow it, rows are independent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from antiphon.backends.sampling import (
    CHOICES,
    TOKENS,
    derive_seed,
    distribution,
    draw,
    entropy,
    uniforms,
)
from antiphon.types import GREEDY, SamplingParams


def random_logits(rows: int, size: int = 60, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, size, generator=generator)


def warped(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The same filters as ``generate`` applies them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    return warpers(torch.zeros(len(logits), 1, dtype=torch.long), logits).softmax(-1)


COMBINATIONS = [
    SamplingParams(temperature, top_p, top_k, min_p)
    for temperature, top_p, top_k, min_p in itertools.product(
        (0.3, 0.7, 1.0, 1.8), (1.0, 0.9, 0.3), (0, 1, 7), (0.0, 0.05, 0.4)
    )
]


@pytest.mark.parametrize("params", COMBINATIONS, ids=str)
def test_distribution_equals_the_warpers_of_generate(params: SamplingParams) -> None:
    logits = random_logits(12)
    got = distribution(logits, [params] * 12)
    torch.testing.assert_close(got, warped(logits, params), rtol=1e-5, atol=1e-7)


def test_rows_with_different_parameters_do_not_touch_each_other() -> None:
    params = [*COMBINATIONS, GREEDY]
    logits = random_logits(len(params))
    got = distribution(logits, params)
    for row, own in enumerate(params[:-1]):
        alone = warped(logits[row : row + 1], own)[0]
        torch.testing.assert_close(got[row], alone, rtol=1e-5, atol=1e-7)


def test_frequencies_follow_the_distribution() -> None:
    params = SamplingParams(temperature=0.9, top_p=0.95)
    logits = random_logits(1, size=20, seed=4)
    weights = distribution(logits, [params])[0].double().numpy()
    count = 40_000
    numbers = torch.from_numpy(uniforms(11, TOKENS, count))
    tokens = draw(logits.expand(count, -1), [params] * count, numbers)
    seen = np.bincount(tokens.numpy(), minlength=20)
    assert (seen[weights == 0] == 0).all()
    kept = weights > 0
    assert kept.sum() >= 5
    expected = weights[kept] / weights[kept].sum() * count
    chi_square = ((seen[kept] - expected) ** 2 / expected).sum()
    # Mean k-1, standard deviation sqrt(2(k-1)): five deviations, with a fixed seed.
    free = kept.sum() - 1
    assert chi_square < free + 5 * np.sqrt(2 * free)


@pytest.mark.parametrize("number", [0.0, 1e-12, 0.5, 1 - 2**-53])
def test_filtered_tokens_are_never_drawn(number: float) -> None:
    logits = random_logits(50, seed=2)
    logits[:, :3] = float("-inf")
    logits[:, -3:] = float("-inf")
    for params in (SamplingParams(1.0, 1.0), SamplingParams(0.7, 0.5), SamplingParams(2.0, 1.0, 4)):
        weights = distribution(logits, [params] * 50)
        tokens = draw(logits, [params] * 50, torch.full((50,), number, dtype=torch.float64))
        assert (weights.gather(1, tokens[:, None]) > 0).all()


def test_greedy_rows_in_mixed_batches_take_the_best_token() -> None:
    logits = random_logits(40)
    hot = SamplingParams(temperature=5.0, top_p=1.0, top_k=3, min_p=0.01)
    params = [GREEDY if row % 2 else hot for row in range(40)]
    numbers = torch.from_numpy(uniforms(0, TOKENS, 40))
    tokens = draw(logits, params, numbers)
    best = logits.argmax(-1)
    assert (tokens[1::2] == best[1::2]).all()
    assert (tokens[::2] != best[::2]).any()
    assert (draw(logits, [GREEDY] * 40, numbers) == best).all()


def test_a_row_draws_the_same_token_alone_and_in_any_batch() -> None:
    params = [COMBINATIONS[(7 * row) % len(COMBINATIONS)] for row in range(30)]
    logits = random_logits(30)
    numbers = torch.from_numpy(uniforms(5, TOKENS, 30))
    together = draw(logits, params, numbers)
    for row in range(30):
        one = slice(row, row + 1)
        assert draw(logits[one], params[one], numbers[one])[0] == together[row]


def test_uniforms_are_fixed_by_seed_and_stream_and_can_be_extended() -> None:
    first = uniforms(3, TOKENS, 10)
    assert (uniforms(3, TOKENS, 50)[:10] == first).all()
    assert (uniforms(4, TOKENS, 10) != first).any()
    assert (uniforms(3, CHOICES, 10) != first).any()
    assert first.dtype == np.float64
    assert ((first >= 0) & (first < 1)).all()
    assert len(uniforms(-1, TOKENS, 2)) == 2
    assert len(uniforms(2**63 + 5, TOKENS, 2)) == 2


def test_derived_seeds_tell_uses_apart() -> None:
    seeds = [derive_seed(s, part, n) for s in (0, 1) for part in ("a", "b", 1) for n in range(5)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "a", 0) == derive_seed(0, "a", 0)
    assert derive_seed(0, "ab", "c") != derive_seed(0, "a", "bc")


def test_entropy_is_that_of_the_distribution() -> None:
    assert entropy(torch.zeros(1, 8))[0] == pytest.approx(np.log(8))
    sure = torch.full((1, 8), float("-inf"))
    sure[0, 3] = 1.0
    assert entropy(sure)[0] == pytest.approx(0.0)
    logits = random_logits(3)
    want = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), want)


@pytest.mark.parametrize(
    ("params", "word"),
    [
        (SamplingParams(temperature=-1), "temperature"),
        (SamplingParams(temperature=float("nan")), "temperature"),
        (SamplingParams(top_p=0), "top_p"),
        (SamplingParams(top_p=1.1), "top_p"),
        (SamplingParams(top_k=-1), "top_k"),
        (SamplingParams(min_p=1.0), "min_p"),
    ],
    ids=str,
)
def test_impossible_parameters_are_named(params: SamplingParams, word: str) -> None:
    (problem,) = params.problems()
    assert word in problem
    assert not SamplingParams().problems()
    assert not GREEDY.problems()
