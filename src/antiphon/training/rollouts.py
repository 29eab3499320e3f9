"""What each candidate's next segment is worth: the outcomes of random-switch rollouts.

Switch Generation (arXiv 2510.09913), "Learning", steps 1 to 3:

    trace       uniform random switching writes t, cut at 10-90 % of the maximum length
    branch i    candidate i writes one segment after t
    s_i         mean score of k completions of branch i by uniform random switching

Prefixes are shared. The trace is written once; every candidate reads all of it once; each branch
forks it, and is read once by every candidate; its k completions fork the branch. Every branch of
every candidate is really run.

Choices where the paper is silent:

* a trace ends at a segment boundary, because that is where a switcher is asked: the last one from
  which a full segment still fits below the cut;
* a response that ends before the cut is cut at the same share of its own length;
* completion ``j`` of all branches shares its draws (common random numbers), so that branches are
  compared under the same luck;
* a branch that ends the response has one completion, itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from antiphon.backends.sampling import derive_seed, uniforms
from antiphon.decoding.engine import Engine, Piece, TurnOptions, Writers
from antiphon.decoding.memory import free_memory, most_segments, row_bytes
from antiphon.decoding.policies import Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.rows import Row, Turn
from antiphon.errors import InputError
from antiphon.evaluation.generation import Item
from antiphon.evaluation.scoring import Scorer
from antiphon.training.racing import Race


@dataclass(frozen=True)
class Start:
    """One instance to be: a query, and the seed that fixes everything drawn for it."""

    item: Item
    seed: int


@dataclass
class Branch:
    """One candidate's segment after the trace, and how its completions scored."""

    turn: Turn | None
    ended: bool
    scores: list[float] = field(default_factory=list)

    @property
    def utility(self) -> float:
        """Mean score."""
        return statistics.fmean(self.scores)

    @property
    def standard_error(self) -> float:
        """Of the mean; 0 where there is a single completion (a branch that ended)."""
        if len(self.scores) < 2:
            return 0.0
        return statistics.stdev(self.scores) / math.sqrt(len(self.scores))


@dataclass
class Work:
    """Positions computed, beside what the same completions would have cost otherwise.

    Attributes:
        positions: computed: one token of one row through one model.
        rereading: if every segment's writer read the whole text again, as public implementations
            do; traces and branches written once.
        unshared: if every completion were written alone, from its query on, each candidate reading
            each position once.
        completions: run.
        plain_completions: that plain collecting runs (the same without ``adaptive``).
        tokens: written.
    """

    positions: int = 0
    rereading: int = 0
    unshared: int = 0
    completions: int = 0
    plain_completions: int = 0
    tokens: int = 0

    def add(self, other: Work) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Instance:
    """A trace and what each candidate's next segment is worth.

    Attributes:
        start: where it came from.
        turns: the trace.
        branches: one a candidate, in the pool's order.
        work: what it cost.
    """

    start: Start
    turns: list[Turn] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    work: Work = field(default_factory=Work)


class Rollouts:
    """Runs rollouts for instances of one pool.

    Args:
        pool: at least two candidates.
        options: how turns are taken.
        scorer: what an answer is worth.
        completions: k.
        cut: shortest and longest trace, as shares of ``max_new_tokens``.
        race: the adaptive rules; ``None`` for plain collecting.

    Raises:
        InputError: fewer than two candidates, or the options do not fit the pool.
    """

    def __init__(
        self,
        pool: CandidatePool,
        options: TurnOptions,
        scorer: Scorer,
        *,
        completions: int = 32,
        cut: tuple[float, float] = (0.1, 0.9),
        race: Race | None = None,
    ) -> None:
        if len(pool) < 2:
            raise InputError(
                f"a switcher chooses among candidates, and the pool has {len(pool)}",
                remedy="give at least two",
            )
        self.engine = Engine(pool.candidates(), Uniform(), options)
        self.options = options
        special = bool(options.last or options.final_prompt)
        first = options.boundary.cap if options.first else 0
        if special and options.max_new_tokens - self.engine.reserved - 1 < first:
            raise InputError(
                "nobody is ever asked who speaks next: between the first and the last segment, "
                f"which are given, a response of {options.max_new_tokens} tokens has no boundary",
                remedy="raise max_new_tokens, or leave out `first`, `last` and `final_prompt`",
            )
        self.scorer = scorer
        self.completions = completions
        self.cut = cut
        self.race = race

    # -- a window of instances -----------------------------------------------------------------
    def collect(self, starts: Sequence[Start]) -> list[Instance]:
        """Run all rollouts of these instances.

        Returns:
            One instance a start, in order.

        Raises:
            InputError: a query is too long, or one instance does not fit into memory.
        """
        queries = [start.item.query for start in starts]
        rows = self.engine.rows(queries, [derive_seed(s.seed, "trace") for s in starts])
        longest = self.engine.longest(rows)
        at_once, batch = self.fit(longest, len(starts))
        made: list[Instance] = []
        for first in range(0, len(starts), at_once):
            part = slice(first, first + at_once)
            writers = self.engine.open(len(rows[part]) * self.rows_of_one(batch), longest)
            made += self._run(starts[part], rows[part], writers, batch)
        return made

    def rows_of_one(self, batch: int) -> int:
        """Rows held at once for an instance: its trace, its branches, their completions."""
        return 1 + len(self.engine.names) * (batch + 1)

    def fit(self, longest: int, instances: int) -> tuple[int, int]:
        """Instances at once, and completions of a branch at once, within the memory budget.

        Raises:
            InputError: it does not hold one completion of each branch.
        """
        candidates, names = self.engine.candidates, self.engine.names
        need = row_bytes(candidates, self.engine.policy, longest, most_segments(self.options))
        budget = self.options.memory_bytes or free_memory(candidates) // 2
        rows = budget // need if need else 10**9
        if rows >= self.rows_of_one(self.completions):
            return min(instances, rows // self.rows_of_one(self.completions)), self.completions
        batch = (rows - 1) // len(names) - 1
        if batch < 1:
            raise InputError(
                f"one completion of each of {len(names)} branches needs "
                f"{self.rows_of_one(1) * need / 2**20:.1f} MiB of key-value caches, and the memory "
                f"budget is {budget / 2**20:.1f} MiB",
                remedy="raise the memory budget, or lower max_new_tokens",
            )
        return 1, batch

    def _run(
        self, starts: Sequence[Start], rows: list[Row], writers: Writers, batch: int
    ) -> list[Instance]:
        instances = [Instance(start) for start in starts]
        traces = self._write_traces(instances, rows, writers)
        self.judge(instances, traces, writers, batch)
        for instance, trace in zip(instances, traces, strict=True):
            self._release(instance, trace, writers)
        return instances

    def judge(
        self, instances: list[Instance], traces: list[Row], writers: Writers, batch: int
    ) -> None:
        """Find what each candidate's next segment is worth; the traces stay as they are.

        Args:
            instances: get their branches.
            traces: theirs, at a boundary.
            writers: of the traces.
            batch: completions of a branch at once.
        """
        self.engine.read(traces, writers)
        branches = self._write_branches(instances, traces, writers)
        self._score_ended(instances, branches, writers)
        running = {key: row for key, row in branches.items() if row.finish is None}
        self.engine.read(list(running.values()), writers)
        for place, _ in running:
            instances[place].work.plain_completions += self.completions
        twins = self._let_twins_rest(instances, running, writers)
        ends = self.race.rounds() if self.race else [self.completions]
        done = 0
        for end in ends:
            while done < end and running:
                now = min(end, done + batch)
                self._complete(instances, running, range(done, now), writers)
                done = now
            self._leave(instances, running, writers)
        for (place, _), row in running.items():
            self._release(instances[place], row, writers)
        for (place, candidate), twin in twins.items():
            found = instances[place].branches
            found[candidate].scores = list(found[twin].scores)

    # -- the three stages ----------------------------------------------------------------------
    def _write_traces(
        self, instances: list[Instance], rows: list[Row], writers: Writers
    ) -> list[Row]:
        low, high = self.cut
        draws = [uniforms(instance.start.seed, _CUTS, 1)[0] for instance in instances]
        shares = [low + (high - low) * draw for draw in draws]
        for row, share in zip(rows, shares, strict=True):
            row.pause = self._pause(share * row.max_new_tokens)
        self._advance(rows, writers)
        traces = []
        for instance, row, share in zip(instances, rows, shares, strict=True):
            _count(instance.work, row, 0)
            if row.finish is not None:
                row = self._cut_back(row, share * row.tokens)
            row.decode()
            instance.turns = list(row.turns)
            traces.append(row)
        return traces

    def _pause(self, cut: float) -> Any:
        """Whether a trace ends here: another full segment might reach beyond the cut."""
        cap, first = self.options.boundary.cap, int(self.options.first is not None)
        special = bool(self.options.last or self.options.final_prompt)
        # Who writes the first or the last segment may be fixed; then nobody is asked there.
        latest = self.options.max_new_tokens - self.engine.reserved - 1 if special else math.inf

        def pause(row: Row) -> bool:
            if row.last_turn or row.turns_taken < first:
                return False
            return row.tokens + cap > min(cut, latest)

        return pause

    def _cut_back(self, row: Row, cut: float) -> Row:
        """A finished response as a trace: its whole turns up to the cut; never the one that ended
        it, behind which nobody is asked (only forced text and the last segment may follow)."""
        kept: list[Turn] = []
        tokens = 0
        for turn in list(takewhile(lambda turn: turn.writer >= 0, row.turns))[:-1]:
            if tokens + len(turn.ids) > cut and (kept or not self.options.first):
                break
            kept.append(turn)
            tokens += len(turn.ids)
        [trace] = self.engine.rows([row.query], [row.seed], first=row.index)
        trace.resume(kept)
        trace.lanes, trace.usage = row.lanes, row.usage
        return trace

    def _write_branches(
        self,
        instances: list[Instance],
        traces: list[Row],
        writers: Writers,
    ) -> dict[tuple[int, int], Row]:
        """One segment by every candidate after every trace; by (instance, candidate)."""
        count = len(self.engine.names)
        branches: dict[tuple[int, int], Row] = {}
        for place, (instance, trace) in enumerate(zip(instances, traces, strict=True)):
            seed = derive_seed(instance.start.seed, "branch")
            for candidate, row in enumerate(self.engine.fork(trace, writers, [seed] * count)):
                row.appointed = candidate
                row.pause = _after(trace.turns_taken)
                branches[place, candidate] = row
        self._advance(list(branches.values()), writers)
        for (place, _), row in branches.items():
            row.decode()
            instance = instances[place]
            written = row.turns[len(instance.turns) :]
            turn = next((turn for turn in written if turn.writer >= 0), None)
            instance.branches.append(Branch(turn, row.finish is not None))
            _count(instance.work, row, len(instance.turns))
        return branches

    def _score_ended(
        self,
        instances: list[Instance],
        branches: dict[tuple[int, int], Row],
        writers: Writers,
    ) -> None:
        """A branch that ended the response is its own completion."""
        ended = [(key, row) for key, row in branches.items() if row.finish is not None]
        for (place, _), row in ended:
            self._release(instances[place], row, writers)
        self._score(instances, [key for key, _ in ended], [row for _, row in ended])

    def _complete(
        self,
        instances: list[Instance],
        running: dict[tuple[int, int], Row],
        numbers: range,
        writers: Writers,
    ) -> None:
        """Run these completions of every running branch to their ends, and score them."""
        keys: list[tuple[int, int]] = []
        rows: list[Row] = []
        for key, branch in running.items():
            seed = instances[key[0]].start.seed
            seeds = [derive_seed(seed, "completion", number) for number in numbers]
            for row in self.engine.fork(branch, writers, seeds):
                keys.append(key)
                rows.append(row)
        before = {key: len(row.turns) for key, row in running.items()}
        owner = {id(row): instances[place] for (place, _), row in zip(keys, rows, strict=True)}
        for event in self.engine.advance(rows, writers):
            if not isinstance(event, Piece):
                self._release(owner[id(event)], event, writers)
        for key, row in zip(keys, rows, strict=True):
            work = instances[key[0]].work
            _count(work, row, before[key])
            work.unshared += _alone(row)
            work.completions += 1
        self._score(instances, keys, rows)

    def _score(
        self, instances: list[Instance], keys: list[tuple[int, int]], rows: list[Row]
    ) -> None:
        texts = [row.completion(self.engine.names).text for row in rows]
        items = [instances[place].start.item for place, _ in keys]
        for (place, candidate), score in zip(keys, self.scorer.score(texts, items), strict=True):
            instances[place].branches[candidate].scores.append(score)

    def _let_twins_rest(
        self,
        instances: list[Instance],
        running: dict[tuple[int, int], Row],
        writers: Writers,
    ) -> dict[tuple[int, int], int]:
        """Of branches that wrote the same, keep the first running (adaptive mode); the others, each
        with the one it will share the scores of."""
        twins: dict[tuple[int, int], int] = {}
        for place, candidate in list(running) if self.race else []:
            found, mine = instances[place].branches, running[place, candidate]
            for other in range(candidate):
                theirs = running.get((place, other))
                if theirs is None or not (found[candidate].turn and found[other].turn):
                    continue
                # The whole trace, in every vocabulary: the same ids of two vocabularies are other
                # texts, and behind a branch that ended its answer stands the final prompt.
                if mine.ids == theirs.ids:
                    twins[place, candidate] = other
                    self._release(instances[place], running.pop((place, candidate)), writers)
                    break
        return twins

    def _leave(
        self,
        instances: list[Instance],
        running: dict[tuple[int, int], Row],
        writers: Writers,
    ) -> None:
        """Let go of branches whose further completions would tell nothing (adaptive mode)."""
        if self.race is None:
            return
        for place in sorted({place for place, _ in running}):
            found = instances[place].branches
            raced = [index for index, branch in enumerate(found) if branch.scores]
            going_on = self.race.still_running([found[index].scores for index in raced])
            kept = {raced[index] for index in going_on}
            for key in [key for key in running if key[0] == place and key[1] not in kept]:
                self._release(instances[place], running.pop(key), writers)

    def _advance(self, rows: list[Row], writers: Writers) -> None:
        for _ in self.engine.advance(rows, writers):
            pass

    def _release(self, instance: Instance, row: Row, writers: Writers) -> None:
        self.engine.release(row, writers)
        instance.work.positions += sum(usage.positions for usage in row.usage.values())
        instance.work.tokens += sum(usage.tokens_written for usage in row.usage.values())


def _count(work: Work, row: Row, first: int) -> None:
    """What this row's turns from ``first`` on cost if each writer read the whole text again."""
    before = sum(len(turn.ids) for turn in row.turns[:first])
    for turn in row.turns[first:]:
        if turn.writer >= 0 and turn.ids:
            work.rereading += len(row.prompts[turn.writer]) + before + len(turn.ids) - 1
        before += len(turn.ids)


def _alone(row: Row) -> int:
    """Positions of this response written from its query on, sharing nothing."""
    ends: dict[int, int] = {}
    tokens = 0
    for turn in row.turns:
        tokens += len(turn.ids)
        if turn.writer >= 0:
            ends[turn.writer] = tokens
    return sum(len(row.prompts[writer]) + end - 1 for writer, end in ends.items())


_CUTS = 2
"""Stream of the uniforms that cut traces (see :mod:`antiphon.backends.sampling`)."""


def _after(turns: int) -> Any:
    return lambda row: row.turns_taken > turns
