"""Who speaks next."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from antiphon.decoding.boundaries import EveryTokens
from antiphon.decoding.policies import Fixed, Policy, RoundRobin, Schedule, Uniform, select
from antiphon.decoding.pool import CandidatePool
from antiphon.errors import InputError
from antiphon.methods.switch_generation import SwitchGeneration
from tests.scripted import Scripted, letters


def speakers(policy: Policy, tokens: int = 7, **options: object) -> str:
    pool = CandidatePool({name: Scripted(name, letters(name)) for name in "abc"})
    method = SwitchGeneration(
        pool, policy, max_new_tokens=tokens, boundary=EveryTokens(1), **options
    )
    return method.generate(["?"])[0].text


def test_fixed_lets_one_candidate_write_everything() -> None:
    assert speakers(Fixed("b")) == "b" * 7


def test_round_robin_goes_by_the_order_of_the_pool() -> None:
    assert speakers(RoundRobin()) == "abcabca"


def test_a_schedule_stays_with_its_last_name_or_starts_over() -> None:
    assert speakers(Schedule(["c", "a"])) == "caaaaaa"
    assert speakers(Schedule(["c", "a"], repeat=True)) == "cacacac"


def test_uniform_gives_every_candidate_the_same_share_and_says_so() -> None:
    text = speakers(Uniform(), tokens=600)
    counts = Counter(text)
    assert set(counts) == set("abc")
    assert all(abs(count - 200) < 60 for count in counts.values())
    pairs = Counter(itertools.pairwise(text))
    assert len(pairs) == 9, "a turn does not depend on the one before"
    pool = CandidatePool({name: Scripted(name, letters(name)) for name in "abc"})
    (done,) = SwitchGeneration(pool, Uniform(), max_new_tokens=3).generate(["?"])
    assert done.segments[0].probabilities == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


@pytest.mark.parametrize("policy", [Fixed("alignd"), Schedule(["base", "alignd"])])
def test_unknown_names_come_with_a_suggestion(policy: Policy) -> None:
    pool = CandidatePool({n: Scripted(n, letters("x")) for n in ("base", "aligned")})
    with pytest.raises(InputError, match="'alignd'") as caught:
        SwitchGeneration(pool, policy)
    assert "did you mean 'aligned'" in caught.value.remedy


def test_an_empty_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        Schedule([])


# -- select ------------------------------------------------------------------------------------
def test_select_without_top_p_takes_the_best() -> None:
    for number in (0.0, 0.5, 0.999):
        assert select(np.array([0.2, 0.5, 0.3]), number, None) == 1


def test_select_breaks_ties_by_order() -> None:
    assert select(np.array([0.25, 0.25, 0.25, 0.25]), 0.9, None) == 0


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1.0, {0, 1, 2, 3}), (0.9, {0, 1, 2}), (0.8, {0, 1}), (0.5, {0}), (0.01, {0})],
)
def test_select_draws_from_the_smallest_set_of_that_mass(top_p: float, kept: set[int]) -> None:
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    grid = (np.arange(20_000) + 0.5) / 20_000
    counts = Counter(select(weights, float(number), top_p) for number in grid)
    assert set(counts) == kept
    mass = sum(weights[index] for index in kept)
    for index, count in counts.items():
        assert count / 20_000 == pytest.approx(weights[index] / mass, abs=1e-3)


def test_select_reaches_no_candidate_outside_at_the_edges() -> None:
    weights = np.array([0.0, 1.0, 0.0])
    for number in (0.0, 1 - 2**-53):
        assert select(weights, number, 1.0) == 1
