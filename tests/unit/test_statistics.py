"""Intervals that cover, p-values that were computed by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from antiphon.evaluation.statistics import (
    Interval,
    difference_interval,
    holm,
    mean_interval,
    paired_p_value,
    pass_at,
    ratio_interval,
)


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_interval_is_that_of_the_normal_approximation() -> None:
    scores = np.repeat([1.0, 0.0], [600, 400])
    found = mean_interval([scores])
    error = math.sqrt(0.6 * 0.4 / 1000)
    assert found.mean == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - 1.96 * error, abs=0.003)
    assert found.high == pytest.approx(0.6 + 1.96 * error, abs=0.003)
    assert mean_interval([scores]) == found, "the same at every call"


def test_interval_equals_resampling_item_by_item() -> None:
    scores = np.random.default_rng(1).random(40)
    rng = np.random.default_rng(2)
    drawn = scores[rng.integers(0, 40, (40_000, 40))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = mean_interval([scores], resamples=40_000)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """3 seeds of 150 items whose true means differ: stratified, the spread of the seeds is no
    uncertainty of the mean over these seeds."""
    rng = np.random.default_rng(0)
    truth = np.array([0.2, 0.5, 0.8])
    hits, widths = 0, []
    for trial in range(400):
        seeds = [(rng.random(150) < p).astype(float) for p in truth]
        found = mean_interval(seeds, resamples=1000, seed=trial)
        hits += found.low <= truth.mean() <= found.high
        widths.append(width(found))
    assert 0.92 <= hits / 400 <= 0.98
    error = math.sqrt(np.sum(truth * (1 - truth) / 150)) / 3
    assert np.mean(widths) == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_seeds_count_the_same_however_long() -> None:
    assert mean_interval([[1.0] * 10, [0.0] * 990]).mean == pytest.approx(0.5)


def test_items_that_come_again_in_other_seeds_are_no_new_evidence() -> None:
    scores = np.repeat([1.0, 0.0], [120, 80])
    names = [f"item {i}" for i in range(200)]
    once = mean_interval([scores])
    thrice = mean_interval([scores] * 3, items=[names] * 3)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=0.006)
    fresh = mean_interval([scores] * 3)
    assert width(fresh) == pytest.approx(width(once) / math.sqrt(3), rel=0.08)
    own = [[f"{seed} {name}" for name in names] for seed in range(3)]
    assert mean_interval([scores] * 3, items=own) == fresh


def test_items_that_overlap_partly() -> None:
    """Strata are the sets of seeds of an item: 100 of both seeds, 100 of each alone."""
    first = [*range(100), *range(100, 200)]
    second = [*range(100), *range(200, 300)]
    scores = [np.repeat([1.0, 0.0], [50, 50]).tolist() * 2] * 2
    found = mean_interval(scores, items=[first, second], resamples=40_000)
    # A shared item moves both halves of the mean: variances 4 to 1.
    error = math.sqrt(100 * 0.25 * 4 + 200 * 0.25) / 400
    assert width(found) == pytest.approx(2 * 1.96 * error, rel=0.05)


@pytest.mark.parametrize(("score", "low", "high"), [(0.0, 0.0, 0.3085), (1.0, 0.6915, 1.0)])
def test_all_right_or_all_wrong_is_not_certain(score: float, low: float, high: float) -> None:
    """Clopper and Pearson's bound for 0 of 10 is 30.85 %."""
    found = mean_interval([[score] * 10])
    assert found.mean == score
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], []]])
def test_no_scores_no_interval(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="every seed needs"):
        mean_interval(scores)
    with pytest.raises(ValueError, match="differ in number"):
        mean_interval([[1.0]], items=[["a", "b"]])


def test_differences_and_ratios_are_paired() -> None:
    rng = np.random.default_rng(3)
    b = (rng.random(500) < 0.5).astype(float)
    a = np.where(rng.random(500) < 0.1, 1.0, b)
    difference = difference_interval([a], [b])
    assert difference.mean == pytest.approx((a - b).mean())
    error = (a - b).std() / math.sqrt(500)
    assert width(difference) == pytest.approx(2 * 1.96 * error, rel=0.06)
    ratio = ratio_interval([a], [b])
    assert ratio is not None
    assert ratio.mean == pytest.approx(a.mean() / b.mean())
    assert 1 < ratio.low < ratio.mean < ratio.high
    same = ratio_interval([b], [b])
    assert same is not None
    assert (same.low, same.high) == pytest.approx((1.0, 1.0))
    assert ratio_interval([a], [np.zeros(500)]) is None
    assert ratio_interval([[1.0] * 5], [[1.0, 0.0, 0.0, 0.0, 0.0]]) is None, "0 in some resamples"


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (5, 0, 2 / 32),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),
        (0, 0, 1.0),
        (1, 0, 1.0),
    ],
)
def test_right_or_wrong_is_mcnemars_exact_test(wins: int, losses: int, p: float) -> None:
    a = [1.0] * wins + [0.0] * losses + [1.0, 0.0] * 7
    b = [0.0] * wins + [1.0] * losses + [1.0, 0.0] * 7
    assert paired_p_value(a, b) == pytest.approx(p)
    assert paired_p_value(b, a) == pytest.approx(p)


def test_items_that_come_again_flip_together() -> None:
    """Sums by item 2, 1, 1, -1: of 16 patterns, enumerated here, those at least as far out."""
    a = [1.0, 1.0, 1.0, 1.0, 0.0]
    b = [0.0, 0.0, 0.0, 0.0, 1.0]
    sums = (2, 1, 1, -1)
    patterns = list(itertools.product((-1, 1), repeat=4))
    far = sum(abs(np.dot(signs, sums)) >= 3 for signs in patterns)
    assert paired_p_value(a, b, items=["x", "x", "y", "z", "w"]) == pytest.approx(far / 16)
    # One item three times is one coin: no evidence at all.
    assert paired_p_value([1.0] * 3, [0.0] * 3, items=["x"] * 3) == 1.0


def test_partial_scores_are_permuted() -> None:
    a, b = [0.9, 0.8, 0.75, 0.6, 0.5], [0.1, 0.3, 0.25, 0.7, 0.4]
    differences = np.subtract(a, b)
    patterns = np.array(list(itertools.product((-1, 1), repeat=5)))
    exact = np.mean(np.abs(patterns @ differences) >= abs(differences.sum()) - 1e-9)
    assert paired_p_value(a, b, resamples=50_000) == pytest.approx(exact, abs=0.01)
    assert paired_p_value(a, a) == 1.0


def test_p_is_never_zero() -> None:
    assert 0 < paired_p_value(np.ones(3000), np.zeros(3000)) < 1e-300
    assert paired_p_value([0.5] * 60, [0.0] * 60, resamples=999) == pytest.approx(1 / 1000)


def test_p_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(4)
    low = 0
    for _ in range(400):
        a, b = (rng.random((2, 300)) < 0.6).astype(float)
        low += paired_p_value(a, b) <= 0.05
    assert low / 400 <= 0.075


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired_p_value([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="names for"):
        paired_p_value([1.0], [0.0], items=["a", "b"])


def test_holm_by_hand() -> None:
    """0.01 x 4; 0.015 x 3 = 0.045; 0.03 x 2 = 0.06; 0.04 x 1 is below the step before."""
    assert holm([0.03, 0.01, 0.04, 0.015]) == pytest.approx([0.06, 0.04, 0.06, 0.045])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_pass_at_by_hand() -> None:
    """4 samples: none right; one right, so 2 of 4 miss it in half of the pairs; all right."""
    assert pass_at([0, 1, 2, 4], 4, 2) == pytest.approx([0, 0.5, 5 / 6, 1])
    assert pass_at([0, 3, 4], 4, 1) == pytest.approx([0, 0.75, 1])
    for n in (0, 5):
        with pytest.raises(ValueError, match="of 4 samples"):
            pass_at([1], 4, n)
