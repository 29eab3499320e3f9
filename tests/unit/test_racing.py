"""The adaptive mode: its error rates by enumeration, and the same decisions live and replayed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import combinations, combinations_with_replacement, permutations

import numpy as np
import pytest

from antiphon.backends.sampling import derive_seed
from antiphon.decoding.boundaries import EveryTokens
from antiphon.decoding.engine import TurnOptions
from antiphon.decoding.pool import CandidatePool
from antiphon.evaluation.generation import Item
from antiphon.training.racing import Race, replay
from antiphon.training.rollouts import Rollouts, Start
from antiphon.types import GREEDY
from tests.scripted import EOS, Scripted, letters

Scores = list[list[float]]


# -- the wager ---------------------------------------------------------------------------------
def populations(size: int, values: Sequence[float], total: float) -> Iterator[tuple[float, ...]]:
    """Multisets of differences with this sum."""
    for chosen in combinations_with_replacement(values, size):
        if math.isclose(sum(chosen), total, abs_tol=1e-12):
            yield chosen


@pytest.mark.parametrize(
    ("size", "values"),
    [
        (5, (-1.0, -0.5, 0.0, 0.5, 1.0)),
        (6, (-1.0, -1 / 3, 0.0, 1 / 3, 1.0)),
        (7, (-1.0, 0.0, 1.0)),
        (8, (-1.0, 1.0)),
    ],
)
def test_the_wagers_capital_is_fair_if_the_leader_leads_by_nothing(
    size: int, values: Sequence[float]
) -> None:
    """Every order of every small population of differences that sum to zero: after any number of
    draws the mean capital is 1, and it is never too often high (Ville)."""
    race = Race(size, 0.0, 1.0)
    found = 0
    for population in populations(size, values, 0.0):
        orders = sorted(set(permutations(population)))
        paths = [[race._capital(order[:seen]) for seen in range(1, size)] for order in orders]
        assert all(math.isfinite(capital) for path in paths for capital in path)
        for at_once in zip(*paths, strict=True):
            assert statistics.fmean(at_once) <= 1 + 1e-9
            # What can no longer be refuted is given up; until then the wager is fair.
            if all(at_once):
                assert statistics.fmean(at_once) == pytest.approx(1)
        highest = [max(path) for path in paths]
        for bound in (1.5, 2, 4, 8, 16, 40):
            assert sum(top >= bound for top in highest) / len(orders) <= 1 / bound
        found += 1
    assert found >= 4 or values == (-1.0, 1.0)


def test_the_wager_loses_where_the_leader_is_behind() -> None:
    race = Race(6, 0.0, 1.0)
    for population in populations(6, (-1.0, 0.0, 1.0), -2.0):
        ends = [race._capital(order[:5]) for order in set(permutations(population))]
        assert statistics.fmean(ends) < 1


def test_the_wager_wins_where_the_leader_leads() -> None:
    race = Race(32, 0.0, 1.0)
    assert race._capital([0.5] * 16) > 100
    assert race._capital([1.0] * 16) > 10_000
    # More than half of all that there is was drawn: what is left cannot make up for it.
    assert race._capital([1.0] * 17) == math.inf
    assert race._capital([-1.0] * 17) == 0
    assert race._capital([]) == 1


def test_a_path_by_hand() -> None:
    """Two draws of four, range 0 to 2: differences 2 and 0 are values 1 and 1/2; means to bet
    against are 1/2 and (2 - 1) / 3."""
    capitals = [
        (1 + share / 0.5 * (1 - 0.5)) * (1 + share / (1 / 3) * (0.5 - 1 / 3))
        for share in (0.1, 0.25, 0.5, 0.75, 0.95)
    ]
    got = Race(4, 0.0, 2.0)._capital([2.0, 0.0])
    assert got == pytest.approx(statistics.fmean(capitals))


def test_rounding_does_not_refute() -> None:
    """Six draws of three quarters of what one may be, as sums of tenths: just what is allowed."""
    race = Race(9, 0.0, 1.0)
    lead = [0.1 + 0.2 + 0.2] * 6  # 0.5000000000000001, or less
    assert math.isfinite(race._capital([*lead, -1.0, -1.0]))
    assert race._capital([*lead, -0.5]) == math.inf


# -- losing ------------------------------------------------------------------------------------
def run(race: Race, scores: Scores) -> tuple[set[int], list[int]]:
    """Branches that lost before the end, and completions seen of each; nothing has ended."""
    running, seen = list(range(len(scores))), [0] * len(scores)
    lost: set[int] = set()
    for end in race.rounds():
        for index in running:
            seen[index] = end
        shown = [found[:count] for found, count in zip(scores, seen, strict=True)]
        left = race.still_running(shown)
        if left:
            lost |= set(running) - set(left)
        elif end < race.completions and not tied_so_far(race, shown, running):
            leader = max(running, key=lambda index: sum(shown[index]))
            lost |= set(running) - {leader}
        running = left
        if not running:
            break
    return lost, seen


def tied_so_far(race: Race, shown: Scores, running: Sequence[int]) -> bool:
    """Whether those that were still running have all scored alike."""
    return len({tuple(shown[index]) for index in running}) == 1


@pytest.mark.parametrize("error_rate", [0.1, 0.3, 0.5, 0.9])
def test_the_best_of_two_is_lost_no_more_often_than_promised(error_rate: float) -> None:
    """Over all orders of small populations of pairs, by the best branch of each."""
    race = Race(7, 0.0, 1.0, error_rate, tie_share=0.01)
    rejections = 0
    columns = [(0.0, 1.0), (1.0, 0.0), (0.5, 0.0)]
    for population in combinations_with_replacement(columns, 7):
        means = [sum(column[branch] for column in population) for branch in (0, 1)]
        best = means.index(max(means))
        orders, losses = set(permutations(population)), 0
        for order in orders:
            lost, _ = run(race, [[column[branch] for column in order] for branch in (0, 1)])
            losses += best in lost
            rejections += bool(lost)
        assert losses <= error_rate * len(orders)
    assert rejections > 0 or error_rate < 0.3


def test_the_best_of_three_is_lost_no_more_often_than_promised() -> None:
    race = Race(6, 0.0, 1.0, error_rate=0.6, tie_share=0.01)
    rejections = 0
    for population in [
        [(1, 0, 0)] * 2 + [(0, 1, 0)] * 2 + [(0, 0, 1)] * 2,
        [(1, 0, 1)] * 3 + [(0, 1, 0)] * 3,
        [(1, 0, 0)] * 4 + [(0, 1, 1)] * 2,
        [(1, 1, 0)] * 5 + [(0, 0, 1)],
        [(1, 0.5, 0)] * 2 + [(0, 0.5, 1)] * 4,
    ]:
        sums = [sum(column[branch] for column in population) for branch in range(3)]
        best, orders = sums.index(max(sums)), set(permutations(population))
        losses = 0
        for order in orders:
            lost, _ = run(race, [[float(c[branch]) for c in order] for branch in range(3)])
            losses += best in lost
            rejections += bool(lost)
        assert losses <= 0.6 * len(orders)
    assert rejections > 0


def test_a_clear_winner_ends_the_race() -> None:
    race = Race(32, 0.0, 1.0)
    lost, seen = run(race, [[0.0] * 32, [1.0] * 32, [0.0] * 32])
    assert lost == {0, 2}
    assert seen[0] == seen[1] == seen[2] < 32


def test_a_hopeless_branch_leaves_and_the_others_go_on() -> None:
    rng = np.random.default_rng(0)
    draws = rng.random(32)
    race = Race(32, 0.0, 1.0)
    close = [(draws < 0.6).astype(float).tolist(), (draws[::-1] < 0.6).astype(float).tolist()]
    _, seen = run(race, [*close, [0.0] * 32])
    assert seen[0] == seen[1] == 32
    assert seen[2] < 32


# -- ties --------------------------------------------------------------------------------------
def unseen(population: int, differing: int, seen: int) -> float:
    """Chance that a sample shows none of those that differ, by counting all samples."""
    samples = list(combinations(range(population), seen))
    return sum(min(sample) >= differing for sample in samples) / len(samples)


@pytest.mark.parametrize("size", [6, 10, 12])
@pytest.mark.parametrize("tie_share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("error_rate", [0.05, 0.1, 0.3])
def test_a_tie_is_called_where_a_difference_would_have_shown(
    size: int, tie_share: float, error_rate: float
) -> None:
    race = Race(size, 0.0, 1.0, error_rate, tie_share)
    differing = math.ceil(tie_share * size)
    for seen in range(4, size):
        alike = ([0.25, 0.5, 1.0, 0.0] * 3)[:seen]
        ended = race.still_running([list(alike), list(alike)]) == []
        assert ended == (unseen(size, differing, seen) <= error_rate)
        other = [*alike[:-1], alike[-1] + 0.125]
        assert race.still_running([alike, other]) == [0, 1], "a single difference is no tie"


def test_a_tie_needs_all_that_are_left() -> None:
    race = Race(10, 0.0, 1.0, error_rate=0.3, tie_share=0.5)
    one = [0.0, 1.0, 0.0, 1.0]
    assert race.still_running([one, one]) == []
    assert race.still_running([one, one, [0.0, 1.0, 1.0, 1.0]]) == [0, 1, 2]
    # Those that have left (fewer scores than the others) do not count.
    assert race.still_running([[*one, 1.0, 1.0], [*one, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]) == []


# -- rounds and ends ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("completions", "rounds"),
    [
        (1, [1]),
        (3, [3]),
        (4, [4]),
        (5, [4, 5]),
        (9, [4, 6, 9]),
        (32, [4, 6, 9, 14, 21, 32]),
        (33, [4, 6, 9, 14, 21, 32, 33]),
    ],
)
def test_rounds(completions: int, rounds: list[int]) -> None:
    assert Race(completions, 0.0, 1.0).rounds() == rounds


def test_nothing_runs_on_after_the_last_round() -> None:
    assert Race(4, 0.0, 1.0).still_running([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]]) == []


def test_branches_that_ended_race_without_running() -> None:
    race = Race(32, 0.0, 1.0)
    mixed = [0.0, 1.0, 1.0, 0.0]
    assert race.still_running([[1.0], mixed, [0.0]]) == [1]
    assert race.still_running([[1.0], [0.0] * 14]) == []  # it has lost against one that ended
    assert race.still_running([[1.0], [1.0] * 4]) == [1]
    assert race.still_running([[1.0], [1.0] * 21]) == []  # tied with one that ended


# -- replayed ----------------------------------------------------------------------------------
def share_of_a(text: str) -> float:
    return float(text.count("a") > 0.45 * len(text))


class Letters:
    """Scores 1 where a good part of an answer is ``a``."""

    name, fingerprint, low, high = "letters", "letters", 0.0, 1.0

    def check(self, items: Sequence[Item]) -> None:
        """Every item will do."""

    def score(self, texts: Sequence[str], items: Sequence[Item]) -> list[float]:
        return list(map(share_of_a, texts))


def ends_sometimes(letter: str, every: int) -> Scripted:
    """Writes one letter, and ends its answer where the text has a certain length."""

    def script(ids: list[int]) -> int:
        return EOS if sum(ids) % every == 0 else ord(letter)

    return Scripted(letter, script)


POOLS = {
    "clear": {name: Scripted(name, letters(name)) for name in "abc"},
    "twins": {"a": Scripted("a", letters("a")), **{n: Scripted(n, letters("x")) for n in "bc"}},
    "ends": {name: ends_sometimes(name, 23) for name in "abc"},
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("error_rate", [0.02, 0.1, 0.4])
def test_a_replay_does_what_the_race_did(name: str, error_rate: float) -> None:
    pool = CandidatePool(POOLS[name], GREEDY)
    options = TurnOptions(max_new_tokens=20, boundary=EveryTokens(4))
    starts = [Start(Item(f"question {n}"), derive_seed(5, n)) for n in range(24)]
    race = Race(32, 0.0, 1.0, error_rate, tie_share=0.1)
    plain = Rollouts(pool, options, Letters(), completions=32).collect(starts)
    live = Rollouts(pool, options, Letters(), completions=32, race=race).collect(starts)
    saved = 0
    for whole, raced in zip(plain, live, strict=True):
        scores = [branch.scores for branch in whole.branches]
        texts = [branch.turn.text if branch.turn else "" for branch in whole.branches]
        used, label = replay(race, scores, texts, [branch.ended for branch in whole.branches])
        assert raced.work.completions == used
        assert raced.work.plain_completions == whole.work.completions
        utilities = [branch.utility for branch in raced.branches]
        assert utilities.index(max(utilities)) == label
        for branch, other in zip(raced.branches, whole.branches, strict=True):
            assert branch.scores == other.scores[: len(branch.scores)]
            assert branch.ended == other.ended
        saved += whole.work.completions - used
    assert saved > 0


def test_a_replay_labels_as_plain_collecting_does_where_all_is_run() -> None:
    """Means of the same scores in another order are the same; the first of them is the label."""
    scores = [[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]]
    assert sum(scores[0]) != sum(scores[1]), "as floats they differ"
    assert replay(Race(3, 0.0, 1.0), scores, ["x", "y"], [False, False]) == (6, 0)


def test_a_replay_counts_twins_once() -> None:
    race = Race(3, 0.0, 1.0)
    scores = [[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    assert replay(race, scores, ["x", "y", "x"], [False] * 3) == (6, 1)
    # The same words, but what came of them shows that something else was different.
    other = [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    assert replay(race, other, ["x", "y", "x"], [False] * 3) == (9, 2)
    # A branch that ended costs nothing more, and is nobody's twin.
    assert replay(race, [[1.0], [0.0, 1.0, 0.0]], ["x", "x"], [True, False]) == (3, 0)
    assert replay(race, [[0.5], [1.0]], ["x", "y"], [True, True]) == (0, 1)


@pytest.mark.parametrize("error_rate", [0.05, 0.2])
def test_labels_are_lost_no_more_often_than_promised(error_rate: float) -> None:
    """Simulated branches of all kinds: how often what is lost is worth more than a tie may hide."""
    rng = np.random.default_rng(1)
    race = Race(32, 0.0, 1.0, error_rate)
    trials, lost, used = 1000, 0, 0
    for _ in range(trials):
        luck = rng.random(32)
        rates = rng.beta(0.7, 0.7) + rng.normal(0, rng.choice([0.02, 0.1, 0.3]), 3)
        noise = rng.random((3, 32)) < 0.5
        scores = [
            np.where(mixed, luck < rate, rng.random(32) < rate).astype(float).tolist()
            for rate, mixed in zip(rates, noise, strict=True)
        ]
        count, label = replay(race, scores, ["x", "y", "z"], [False] * 3)
        means = [statistics.fmean(branch) for branch in scores]
        lost += max(means) - means[label] > race.tie_share
        used += count
    # Both rules may err, each at this rate; three standard deviations of a count beside it.
    bound = 2 * error_rate
    assert lost <= trials * bound + 3 * math.sqrt(trials * bound * (1 - bound))
    assert lost <= trials * error_rate, "and in fact far less often"
    assert used < 0.9 * trials * 3 * 32
