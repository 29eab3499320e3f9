"""Who wrote what and when; which items turn-taking solves that no candidate solves alone, or loses.

*Luck.* Some items that every candidate misses would come out right if the best one were only asked
again. So the share that a method solves is set beside the share that independent samples
(temperature 0.7) of the best single model solve: one sample, and as many as there are candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antiphon.evaluation.statistics import (
    Floats,
    difference_interval,
    mean_interval,
    pass_at,
)
from antiphon.reports.switch.records import SINGLES, Answers, BySeed

POLICIES = ("lm_switcher", "hidden_switcher", "untuned", "uniform", "oracle")


def share_by_position(main: Mapping[str, BySeed]) -> dict[str, Any]:
    """Who writes the first segment, the second, ...

    Returns:
        By policy: ``shares`` (by candidate, one share a position; they sum to 1 at every position)
        and ``answers`` (how many answers get that far).
    """
    found: dict[str, Any] = {}
    for policy in POLICIES:
        rows = [row for a in main[policy].values() for row in a.writers]
        length = max(map(len, rows), default=0)
        counts = [Counter(row[i] for row in rows if len(row) > i) for i in range(length)]
        names = in_order({name for count in counts for name in count})
        found[policy] = {
            "shares": {name: [c[name] / c.total() for c in counts] for name in names},
            "answers": [count.total() for count in counts],
        }
    return found


def in_order(names: set[str]) -> list[str]:
    """Candidates in the order of the pipeline, others behind them."""
    return sorted(names, key=lambda n: (SINGLES.index(n) if n in SINGLES else len(SINGLES), n))


Masks = dict[int, NDArray[np.bool_]]


def missed_by_all(main: Mapping[str, BySeed]) -> Masks:
    """By seed, which items no single model gets right."""
    return {
        seed: ~np.any([right(main[name][seed]) for name in SINGLES], axis=0)
        for seed in main[SINGLES[0]]
    }


def right(answers: Answers) -> NDArray[np.bool_]:
    """Which items are right; an item is, if its score is 1."""
    return answers.scores >= 1


def solved(
    main: Mapping[str, BySeed], best: str, resamples: Mapping[str, BySeed]
) -> dict[str, Any]:
    """Items that every single model misses, and who solves them.

    Returns:
        ``items`` and their ``share_of_all``; ``lm_switcher`` and every other method that is no
        single: ``count``, ``share``, ``low``, ``high``; ``luck``: see :func:`_luck`, with
        ``beyond``: LM switcher minus as many samples as there are singles, on the same items.
    """
    masks = missed_by_all(main)
    found = _counted(masks)
    for name, by_seed in main.items():
        if name not in SINGLES:
            found[name] = _share({s: right(a) for s, a in by_seed.items()}, by_seed, masks)
    found["luck"] = _luck(main["lm_switcher"], best, resamples, masks)
    return found


def lost(main: Mapping[str, BySeed], best: str, resamples: Mapping[str, BySeed]) -> dict[str, Any]:
    """Items that some single model gets right, and who of the others misses them.

    Returns:
        ``items`` and their ``share_of_all``; methods as in :func:`solved`; ``had_by``: of the
        items that the LM switcher loses, how many each single model has (an item may count for
        several); ``one_resample``: share of the items that one sample of the best single misses.
    """
    masks = {seed: ~mask for seed, mask in missed_by_all(main).items()}
    found = _counted(masks)
    for name, by_seed in main.items():
        if name not in SINGLES:
            found[name] = _share({s: ~right(a) for s, a in by_seed.items()}, by_seed, masks)
    ours = main["lm_switcher"]
    found["had_by"] = {
        name: int(sum((right(a) & ~right(ours[s]) & masks[s]).sum() for s, a in by_seed.items()))
        for name, by_seed in ((name, main[name]) for name in SINGLES)
    }
    luck = _luck(ours, best, resamples, masks)
    found["one_resample"] = None if luck is None else 1 - luck["one"]
    return found


def _counted(masks: Masks) -> dict[str, Any]:
    items, everything = sum(int(m.sum()) for m in masks.values()), sum(map(len, masks.values()))
    return {"items": items, "share_of_all": items / everything}


def _share(hits: Masks, by_seed: BySeed, masks: Masks) -> dict[str, Any]:
    """How many of the masked items are hit; the share is over all items, each seed's as one pool.

    The set of items is taken as given, so the interval is for other items of that kind.
    """
    inside = [hits[s][masks[s]] for s in by_seed]
    flat = np.concatenate(inside).astype(np.float64)
    names = [name for s in by_seed for name in _chosen(by_seed[s].ids, masks[s])]
    found: dict[str, Any] = {"count": int(flat.sum()), "share": None, "low": None, "high": None}
    if len(flat):
        interval = mean_interval([flat], items=[names])
        found |= {"share": interval.mean, "low": interval.low, "high": interval.high}
    return found


def _chosen(names: Sequence[str], mask: NDArray[np.bool_]) -> list[str]:
    return [name for name, inside in zip(names, mask, strict=True) if inside]


@dataclass(frozen=True)
class _Sampled:
    """Samples of one seed: right ones of each item, and how many were drawn."""

    hits: NDArray[np.int64]
    drawn: int

    def share(self, n: int, mask: NDArray[np.bool_]) -> Floats:
        """For each masked item, the chance that one of ``n`` samples is right."""
        return pass_at(self.hits[mask], self.drawn, n)


def _luck(
    ours: BySeed, best: str, resamples: Mapping[str, BySeed], masks: Masks
) -> dict[str, Any] | None:
    """What sampling the best single again would solve of the masked items.

    Returns:
        ``None`` without samples (or items); else ``model``; ``samples``: drawn an item (the
        fewest of any seed); ``seeds`` that have some; ``one``: expected share for one sample;
        ``as_many``: ``n`` (the number of singles) and the expected ``share`` for the best of so
        many, ``None`` if fewer were drawn; ``beyond``: interval of ours minus that, same items.
    """
    by_seed: dict[int, _Sampled] = {}
    for seed in masks:
        files = [right(found[seed]) for found in resamples.values() if seed in found]
        if files and masks[seed].any():
            by_seed[seed] = _Sampled(np.sum(files, axis=0, dtype=np.int64), len(files))
    if not by_seed:
        return None
    least, n = min(s.drawn for s in by_seed.values()), len(SINGLES)
    names = [name for s in by_seed for name in _chosen(ours[s].ids, masks[s])]
    mine = np.concatenate([right(ours[s])[masks[s]] for s in by_seed]).astype(np.float64)
    found: dict[str, Any] = {
        "model": best,
        "seeds": list(by_seed),
        "samples": least,
        "items": len(mine),
        "one": float(np.concatenate([d.share(1, masks[s]) for s, d in by_seed.items()]).mean()),
        "as_many": {"n": n, "share": None},
        "beyond": None,
    }
    if least >= n:
        theirs = np.concatenate([d.share(n, masks[s]) for s, d in by_seed.items()])
        found["as_many"]["share"] = float(theirs.mean())
        found["beyond"] = asdict(difference_interval([mine], [theirs], items=[names]))
    return found
