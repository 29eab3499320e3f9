"""The rollout oracle: at every boundary, the candidate whose branch does best in rollouts.

It scores rollouts with the right answer at hand, so it is no method but a ceiling: what a switcher
could reach that knew each segment's worth exactly as the labels do (Switch Generation, arXiv
2510.09913, "Learning", applied at use).
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.backends.sampling import derive_seed
from antiphon.decoding.rows import Row
from antiphon.errors import InputError
from antiphon.training.rollouts import Instance, Rollouts, Start
from antiphon.types import Completion


def best_choices(rollouts: Rollouts, starts: Sequence[Start]) -> list[Completion]:
    """Answer every query with the best choice at every boundary.

    Args:
        rollouts: the pool, the score and how many completions a branch.
        starts: queries with what the score needs; their seeds fix all draws.

    Returns:
        One completion a start, in order. Its usage is that of the answer alone, without rollouts.

    Raises:
        InputError: a query is too long, or a segment's writer is given by the options.
    """
    engine = rollouts.engine
    options = rollouts.options
    if options.first or options.last or options.final_prompt:
        raise InputError(
            "the oracle chooses the writer of every segment, and `first`, `last` or `final_prompt` "
            "gives one",
            remedy="leave those out",
        )
    rows = engine.rows(
        [start.item.query for start in starts], [derive_seed(s.seed, "oracle") for s in starts]
    )
    longest = engine.longest(rows)
    at_once, batch = rollouts.fit(longest, len(rows))
    done: list[Completion] = []
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once]
        done += _answer(rollouts, starts[first : first + at_once], part, longest, batch)
    return done


def _answer(
    rollouts: Rollouts, starts: Sequence[Start], rows: list[Row], longest: int, batch: int
) -> list[Completion]:
    engine = rollouts.engine
    writers = engine.open(len(rows) * rollouts.rows_of_one(batch), longest)
    asked = dict(zip(rows, starts, strict=True))
    while asked:
        instances = []
        for row, start in asked.items():
            seed = derive_seed(start.seed, row.turns_taken)
            instances.append(Instance(Start(start.item, seed), list(row.turns)))
        rollouts.judge(instances, list(asked), writers, batch)
        for row, instance in zip(asked, instances, strict=True):
            utilities = [branch.utility for branch in instance.branches]
            row.appointed = utilities.index(max(utilities))
            row.pause = lambda row, turns=row.turns_taken: row.turns_taken > turns
        for _ in engine.advance(list(asked), writers):
            pass
        asked = {row: start for row, start in asked.items() if row.finish is None}
    for row in rows:
        engine.release(row, writers)
    return [row.completion(engine.names) for row in rows]
