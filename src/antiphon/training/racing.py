"""When enough completions of a branch have been seen: the adaptive mode of collecting.

Plain collecting runs ``k`` completions of every branch and labels the branch of the highest mean.
The race draws the same completions in rounds and stops where that label is clear. Completion ``j``
of all branches shares its draws, so branches are compared pair by pair, and what is left to be seen
of a pair is a finite population of ``k`` differences, sampled without replacement. Three rules:

* **twins**: branches whose segments are the same tokens are the same text with the same draws to
  come, so one of them is run for all (exact; plain collecting runs each of them).
* **lost**: a branch leaves when a wager against "the leader is no better than this branch over all
  ``k`` completions" has multiplied its stake by ``(n - 1) / error_rate``. The wager's capital is a
  non-negative supermartingale under that hypothesis, so by Ville's inequality, and a union over the
  ``n - 1`` rivals of the branch that plain collecting would label, that branch is lost with
  probability at most ``error_rate``, however often one looks (Waudby-Smith and Ramdas,
  "Estimating means of bounded random variables by betting", JRSS B 2024, section 5).
* **tie**: an instance ends when all branches left have scored alike in every completion so far, and
  if they differed in ``tie_share`` of the ``k`` completions, that would have gone unseen with
  probability at most ``error_rate`` (hypergeometric, exact).

What remains undecided runs to ``k`` completions, as in plain collecting.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_STAKES = (0.1, 0.25, 0.5, 0.75, 0.95)
"""Shares of the largest admissible wager; the capital is spread evenly over them."""
_NOTHING = 1e-9
"""Sums of scores are rounded: what is closer to 0 than this is 0."""


@dataclass(frozen=True)
class Race:
    """The rules of one run.

    Attributes:
        completions: of every branch in plain collecting (k).
        low, high: range of a score.
        error_rate: see the module's description.
        tie_share: likewise.
    """

    completions: int
    low: float
    high: float
    error_rate: float = 0.1
    tie_share: float = 0.1

    def rounds(self) -> list[int]:
        """Completions seen after each round: 4, 6, 9, 14, 21, ... up to k."""
        seen, ends = 4, []
        while seen < self.completions:
            ends.append(seen)
            seen = math.ceil(1.5 * seen)
        return [*ends, self.completions]

    def still_running(self, scores: Sequence[Sequence[float]]) -> list[int]:
        """Branches whose next completions are worth running; empty when the label is clear.

        Args:
            scores: of every branch, those seen so far, in the order of the shared draws. A branch
                that ended by itself has one score for all its completions. A branch that has lost
                has fewer than the others.
        """
        seen = max(map(len, scores))
        if seen >= self.completions:
            return []
        left = [index for index, found in enumerate(scores) if len(found) in (1, seen)]
        paired = {i: list(scores[i]) * (seen if len(scores[i]) == 1 else 1) for i in left}
        leader = max(left, key=lambda index: sum(paired[index]))
        wins = (len(scores) - 1) / self.error_rate
        kept = [leader]
        for index in left:
            if index == leader:
                continue
            lead = [a - b for a, b in zip(paired[leader], paired[index], strict=True)]
            if self._capital(lead) < wins:
                kept.append(index)
        if len(kept) == 1 or self._tied([paired[index] for index in kept], seen):
            return []
        return [index for index in sorted(kept) if len(scores[index]) > 1 or seen == 1]

    def _capital(self, lead: Sequence[float]) -> float:
        """What one unit became that was wagered on a positive mean of all k differences."""
        width = self.high - self.low
        values = [(difference / width + 1) / 2 for difference in lead]
        capital = [1.0] * len(_STAKES)
        drawn = 0.0
        for place, value in enumerate(values):
            # Mean of what is left to be drawn, if the mean of all k were just one half.
            mean = (self.completions / 2 - drawn) / (self.completions - place)
            if mean <= _NOTHING:  # what was drawn is all that the hypothesis allows
                if value > _NOTHING or mean < -_NOTHING:
                    return math.inf
                continue
            if mean >= 1:
                return 0.0  # and here it cannot be refuted any more
            for number, share in enumerate(_STAKES):
                capital[number] *= max(0.0, 1 + share / mean * (value - mean))
            drawn += value
        return sum(capital) / len(capital)

    def _tied(self, paired: Sequence[Sequence[float]], seen: int) -> bool:
        alike = all(len(set(column)) == 1 for column in zip(*paired, strict=True))
        differing = math.ceil(self.tie_share * self.completions)
        hidden = math.comb(max(0, self.completions - differing), seen)
        return alike and hidden / math.comb(self.completions, seen) <= self.error_rate


def replay(
    race: Race, scores: Sequence[Sequence[float]], segments: Sequence[str], ended: Sequence[bool]
) -> tuple[int, int]:
    """What the race would have done with an instance that was collected plainly.

    Args:
        race: the rules.
        scores: of every completion, by branch (one score where a branch ended).
        segments: what the branches wrote.
        ended: whether that ended the response.

    Returns:
        Completions that the race would have run, and its label.
    """
    twins = set()
    for index, text in enumerate(segments):
        # The same text may stand in other tokens, or have ended differently: scores tell.
        same = [o for o in range(index) if text == segments[o] and scores[index] == scores[o]]
        if not ended[index] and any(not ended[o] for o in same):
            twins.add(index)
    raced = [index for index in range(len(scores)) if index not in twins]
    seen = [list(scores[i][:1]) if ended[i] else [] for i in raced]
    running = [place for place, index in enumerate(raced) if not ended[index]]
    used = 0
    for end in race.rounds():
        for place in running:
            used += end - len(seen[place])
            seen[place] = list(scores[raced[place]][:end])
        left = race.still_running(seen) if running else []
        running = [place for place in running if place in left]
    means = [statistics.fmean(found) for found in seen]
    return used, raced[means.index(max(means))]
