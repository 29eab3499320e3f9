"""How ragged rows are cut into calls."""

from __future__ import annotations

import itertools
import random

import pytest

from antiphon.backends.slots import split_by_length
from tests.tiny import loaded, random_ids


def cost(lengths: list[int], calls: list[tuple[int, int]], overhead: int) -> int:
    return sum(overhead + max(lengths[start:end]) * (end - start) for start, end in calls)


def every_split(rows: int) -> list[list[tuple[int, int]]]:
    splits = []
    for cuts in itertools.product((False, True), repeat=rows - 1):
        edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), rows]
        splits.append(list(itertools.pairwise(edges)))
    return splits


@pytest.mark.parametrize("overhead", [0, 1, 8, 32, 256])
def test_no_other_split_is_cheaper(overhead: int) -> None:
    numbers = random.Random(overhead)
    for _ in range(60):
        most = numbers.choice([3, 20, 120])
        lengths = [numbers.randint(1, most) for _ in range(numbers.randint(1, 8))]
        calls = split_by_length(lengths, overhead)
        assert [row for start, end in calls for row in range(start, end)] == list(
            range(len(lengths))
        )
        best = min(cost(lengths, split, overhead) for split in every_split(len(lengths)))
        assert cost(lengths, calls, overhead) == best, lengths


def test_equal_rows_go_in_one_call_and_very_different_ones_apart() -> None:
    assert split_by_length([5] * 20, 32) == [(0, 20)]
    assert split_by_length([1, 1, 1, 500], 32) == [(0, 3), (3, 4)]
    assert split_by_length([1, 1, 1, 500], 10_000) == [(0, 4)]


def test_padding_is_counted_as_idle() -> None:
    session = loaded().new_session()
    lanes = [session.open() for _ in range(3)]
    with session.batch(lanes) as batch:
        batch.extend(random_ids([4, 9, 7]))
    assert [lane.idle for lane in lanes] == [5, 0, 2]
    assert [lane.prefill for lane in lanes] == [4, 9, 7]
