"""How sure a comparison is: intervals of means and ratios, paired tests, Holm's correction.

Items are what is drawn at random, so items are what is resampled. Scores come by seed (a seed is a
repetition of the whole experiment). If an item occurs in several seeds, its scores there are not
independent; all functions take ``items``, names by which they know it again, and then move those
scores together.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Items: TypeAlias = Sequence[Sequence[Hashable]]
"""Names of the items of each seed, in the order of the scores."""

_CHUNK = 2**21  # numbers held at once while resampling: 16 MiB
_TINY = sys.float_info.min


@dataclass(frozen=True)
class Interval:
    """A mean (or ratio) and the bounds of its interval."""

    mean: float
    low: float
    high: float


def mean_interval(
    scores_by_seed: Sequence[ArrayLike],
    *,
    items: Items | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of the seeds' means and its bootstrap percentile interval.

    Items are resampled within each seed and the seeds are kept as they are. Resampling seeds as
    well would be the textbook choice with many of them; of three, every ninth resample would hold
    one seed three times, and the interval would say more about that than about the method. So the
    interval is for *these* seeds on other items. How much training varies is seen from the
    per-seed means, which belong beside it. With one seed this is the plain bootstrap.

    Scores that are all 0 or all 1 leave the bootstrap nothing to vary; then the far bound is the
    exact binomial one (Clopper and Pearson).

    Args:
        scores_by_seed: one array of scores in [0, 1] a seed, not empty; lengths may differ.
        items: the items' names, shaped alike; items of the same name are resampled together.
            Without it every score is an item of its own.
        level: probability that the interval is to cover the mean.
        resamples: how many.
        seed: of the resampling.

    Raises:
        ValueError: no scores, or names that are not as many as the scores.
    """
    values, strata = _clusters(scores_by_seed, items)
    seeds = [np.asarray(s, dtype=np.float64) for s in scores_by_seed]
    mean = float(np.mean([s.mean() for s in seeds]))
    scores = np.concatenate(seeds)
    if (scores == scores[0]).all() and scores[0] in (0.0, 1.0):
        slack = 1 - ((1 - level) / 2) ** (1 / len(values))
        return Interval(1.0, 1 - slack, 1.0) if scores[0] else Interval(0.0, 0.0, slack)
    return _percentiles(mean, _resampled_sums(values, strata, resamples, seed)[:, 0], level)


def difference_interval(
    a_by_seed: Sequence[ArrayLike],
    b_by_seed: Sequence[ArrayLike],
    *,
    items: Items | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of ``a - b`` over the same items, resampled as in :func:`mean_interval`."""
    differences = [
        np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
        for a, b in zip(a_by_seed, b_by_seed, strict=True)
    ]
    values, strata = _clusters(differences, items)
    drawn = _resampled_sums(values, strata, resamples, seed)[:, 0]
    return _percentiles(float(values.sum()), drawn, level)


def ratio_interval(
    a_by_seed: Sequence[ArrayLike],
    b_by_seed: Sequence[ArrayLike],
    *,
    items: Items | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval | None:
    """Mean of ``a`` to mean of ``b`` over the same items, resampled as in :func:`mean_interval`.

    Returns:
        ``None`` where the ratio has no meaning: ``b`` has a mean of 0 or below, in the data or in
        any resample.
    """
    above, strata = _clusters(a_by_seed, items)
    below, _ = _clusters(b_by_seed, items)
    drawn = _resampled_sums(np.concatenate([above, below], axis=1), strata, resamples, seed)
    if below.sum() <= 0 or (drawn[:, 1] <= 0).any():
        return None
    return _percentiles(float(above.sum() / below.sum()), drawn[:, 0] / drawn[:, 1], level)


def paired_p_value(
    a: ArrayLike,
    b: ArrayLike,
    *,
    items: Sequence[Hashable] | None = None,
    resamples: int = 100_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of "``a`` and ``b`` score alike on the same items": the sign-flip test.

    If the methods are alike, each item's difference could as well have the other sign. The p-value
    is the share of all sign patterns whose sum is at least as far from 0 as the observed one.
    Where all scores are 0 or 1 it is computed exactly; for distinct items that is McNemar's exact
    test (binomial). Otherwise ``resamples`` patterns are drawn, and the observed one counts as one
    more, so that p is never 0.

    Args:
        a, b: scores of two methods, item by item.
        items: the items' names, of the same length; differences of one name flip together.
        resamples: patterns drawn where p is not exact.
        seed: of the drawing.

    Raises:
        ValueError: lengths differ.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"scores of shapes {first.shape} and {second.shape} are no pairs")
    sums: Floats = first - second
    if items is not None:
        names, owner = _number(items)
        if len(owner) != len(sums):
            raise ValueError(f"{len(owner)} names for {len(sums)} pairs")
        sums = _total_by(owner, sums, names)
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    scores = np.concatenate([first, second])
    if ((scores == 0) | (scores == 1)).all():
        return _exact_sign_flip(np.abs(sums).astype(np.int64), abs(int(sums.sum())))
    observed = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # ties are as far as the observed one
    rng = np.random.default_rng(seed)
    far = 0
    for count in _portions(resamples, len(sums)):
        signs = rng.integers(0, 2, size=(count, len(sums)), dtype=np.int8)
        far += int((np.abs(2 * (signs @ sums) - sums.sum()) >= observed).sum())
    return (far + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values of a family of tests, each in its own place."""
    corrected = [0.0] * len(p_values)
    least = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def pass_at(solved: ArrayLike, samples: int, n: int) -> Floats:
    """Probability that ``n`` of an item's ``samples`` hold a right one (pass@n, unbiased).

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.

    Args:
        solved: right samples of each item, integers in [0, samples].
        samples: drawn for each item.
        n: at most ``samples``.

    Raises:
        ValueError: ``n`` is above ``samples`` or below 1.
    """
    if not 1 <= n <= samples:
        raise ValueError(f"{n} of {samples} samples")
    wrong = samples - np.asarray(solved, dtype=np.int64)
    missed = np.array([math.comb(w, n) / math.comb(samples, n) for w in range(samples + 1)])
    result: Floats = 1 - missed[wrong]
    return result


def _number(names: Sequence[Hashable]) -> tuple[int, NDArray[np.int64]]:
    """How many different names there are, and each one's number in order of appearance."""
    numbers: dict[Hashable, int] = {}
    owner = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
    return len(numbers), owner


def _total_by(owner: NDArray[np.int64], values: Floats, count: int) -> Floats:
    """Sum of each owner's values, ``(count,)``."""
    return np.bincount(owner, weights=values, minlength=count).astype(np.float64)


def _clusters(
    scores_by_seed: Sequence[ArrayLike], items: Items | None
) -> tuple[Floats, NDArray[np.int64]]:
    """What each item adds to the mean of the seeds' means, ``(items, 1)``, and its stratum.

    A stratum is the set of seeds in which the item occurs, so a resample has as many items in
    every seed as the data.
    """
    scores = [np.asarray(s, dtype=np.float64) for s in scores_by_seed]
    if not scores or any(s.ndim != 1 or not len(s) for s in scores):
        raise ValueError("every seed needs a list of scores")
    parts = np.concatenate([s / (len(s) * len(scores)) for s in scores])
    seed_of = np.repeat(np.arange(len(scores)), [len(s) for s in scores])
    if items is None:
        return parts[:, None], seed_of
    if [len(names) for names in items] != [len(s) for s in scores]:
        raise ValueError("names and scores differ in number")
    count, owner = _number([name for names in items for name in names])
    values = _total_by(owner, parts, count)
    seen = np.zeros((count, len(scores)), dtype=np.int64)
    np.add.at(seen, (owner, seed_of), 1)
    _, strata = np.unique(seen, axis=0, return_inverse=True)
    return values[:, None], strata.reshape(-1)


def _resampled_sums(values: Floats, strata: NDArray[np.int64], resamples: int, seed: int) -> Floats:
    """Column sums of ``resamples`` resamples with replacement, ``(resamples, columns)``.

    Scores take few values, so a resample is drawn as how often each value comes up: the same
    distribution as drawing items one by one, at a fraction of the work and memory.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros((resamples, values.shape[1]))
    for stratum in np.unique(strata):
        own = values[strata == stratum]
        kinds, counts = np.unique(own, axis=0, return_counts=True)
        start = 0
        for count in _portions(resamples, len(kinds)):
            drawn = rng.multinomial(len(own), counts / len(own), size=count)
            total[start : start + count] += drawn @ kinds
            start += count
    return total


def _portions(total: int, width: int) -> Iterator[int]:
    """Parts of ``total`` rows of ``width`` numbers that fit into memory at once."""
    size = max(1, _CHUNK // width)
    for start in range(0, total, size):
        yield min(size, total - start)


def _percentiles(mean: float, drawn: Floats, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _exact_sign_flip(sizes: NDArray[np.int64], observed: int) -> float:
    """P(|sum of randomly signed sizes| >= observed); at least the smallest normal float."""
    distribution = np.ones(1)  # of the sum, from minus its maximum to its maximum
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = _coin_flips(int(count))
        distribution = np.convolve(distribution, steps)
    middle = len(distribution) // 2
    if observed == 0:
        return 1.0
    return float(min(1.0, max(_TINY, 2 * distribution[middle + observed :].sum())))


def _coin_flips(count: int) -> Floats:
    """P(k heads of ``count``) for every k."""
    logs = np.array([math.lgamma(k + 1) for k in range(count + 1)])
    result: Floats = np.exp(logs[count] - logs - logs[::-1] - count * math.log(2))
    return result
