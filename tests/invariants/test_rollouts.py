"""Rollouts with shared prefixes give exactly what completions written alone give."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from antiphon.backends.sampling import CHOICES, TOKENS, derive_seed, draw, uniforms
from antiphon.backends.slots import SlotSession
from antiphon.backends.transformers import LoadedModel
from antiphon.backends.vocabulary import TokenizerVocabulary
from antiphon.decoding.boundaries import EveryTokens, SentenceEnd
from antiphon.decoding.engine import Engine, Finished, TurnOptions
from antiphon.decoding.memory import most_segments, row_bytes
from antiphon.decoding.policies import Decision, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.rows import Row, Turn
from antiphon.errors import InputError
from antiphon.evaluation.generation import Item
from antiphon.training.racing import Race
from antiphon.training.rollouts import Instance, Rollouts, Start, Work
from antiphon.types import FORCED, GREEDY, Completion, SamplingParams
from tests.draws import draw_by
from tests.scripted import EOS, Scripted, always, letters
from tests.tiny import backend, copies, fresh_logits, loaded, three, tokenizer, written

# Six tokens to draw from: the last bits of a sum, which depend on the batch, decide nothing.
SIX = SamplingParams(temperature=1.0, top_p=1.0, top_k=6)
QUERIES = ["the quick brown fox", "what is two plus two?", "a"]
CAP, MOST = 4, 24


def worth(text: str) -> float:
    """A score that any change of the text is likely to change."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2**40 / 2**40


class Recorded:
    """A scorer that notes what it was given."""

    name, fingerprint, low, high = "recorded", "recorded", 0.0, 1.0

    def __init__(self, score: Callable[[str], float] = worth) -> None:
        self._score = score
        self.texts: dict[str, list[str]] = {}

    def check(self, items: Sequence[Item]) -> None:
        """Every item will do."""

    def score(self, texts: Sequence[str], items: Sequence[Item]) -> list[float]:
        for text, item in zip(texts, items, strict=True):
            self.texts.setdefault(str(item.query), []).append(text)
        return [self._score(text) for text in texts]


# -- pools -------------------------------------------------------------------------------------
def mixed() -> CandidatePool:
    return CandidatePool(
        {
            "fox": backend("fox", loaded("llama", 0)),
            "sea": backend("sea", loaded("llama", 1), tokens=tokenizer("bytes", "sea")),
            "more fox": backend("more fox", loaded("gpt2", 2)),
        },
        SIX,
    )


def adapters() -> CandidatePool:
    pytest.importorskip("peft")
    from tests.lora import adapted

    weights = adapted()
    return CandidatePool(
        {n or "base": backend(n or "base", weights, adapter=n) for n in (None, "red", "blue")},
        SIX,
    )


@cache
def ending() -> CandidatePool:
    """Candidates that end their turns now and then, each on ids of its own."""
    options = TurnOptions(400, EveryTokens(CAP))
    [done] = in_one_go(three(sampling=SIX), options, QUERIES[:1])
    often = [token for token, _ in Counter(written(done)).most_common(24)]
    return CandidatePool(
        {
            name: backend(name, loaded("llama", seed), eos=often[seed::3])
            for seed, name in enumerate("abc")
        },
        SIX,
    )


def settings(**over: Any) -> TurnOptions:
    return TurnOptions(**{"max_new_tokens": MOST, "boundary": EveryTokens(CAP), **over})


CASES: dict[str, tuple[Callable[[], CandidatePool], TurnOptions]] = {
    "attention": (lambda: three("llama", SIX), settings()),
    "recurrent": (lambda: three("lfm2", SIX), settings()),
    "adapters": (adapters, settings()),
    "mixed": (mixed, settings(max_new_tokens=60)),
    "sentences": (lambda: three("llama", SIX), settings(boundary=SentenceEnd(CAP))),
    "stop": (lambda: three("llama", SIX), settings(stop=("e", "o"))),
    "first": (lambda: three("llama", SIX), settings(first="b")),
    "last": (lambda: three("llama", SIX), settings(last="c")),
    "all of them": (
        lambda: three("llama", SIX),
        settings(first="b", last="c", final_prompt=" so"),
    ),
    "ends": (ending, settings()),
    "ends, final prompt": (ending, settings(final_prompt=" so")),
    "ends, last": (ending, settings(final_prompt=" so", last="a", first="b")),
    "hand-overs": (ending, settings(on_eos="handover")),
}


def starts_of(queries: Sequence[str], seed: int = 0) -> list[Start]:
    return [Start(Item(query), derive_seed(seed, n)) for n, query in enumerate(queries)]


# -- the same, written alone -------------------------------------------------------------------
@dataclass(frozen=True)
class Wanted:
    """Completion ``number`` of the branch of a candidate that speaks at a turn."""

    start: Start
    turn: int
    candidate: int
    number: int = 0


class Retold(Uniform):
    """Uniform, but for one turn of each row, in which a candidate is given."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self.wanted = wanted

    def choose(self, rows: Sequence[Row]) -> list[Decision | None]:
        given = [self.wanted[row.index] for row in rows]
        return [
            Decision(want.candidate) if row.turns_taken == want.turn else chosen
            for row, want, chosen in zip(rows, given, super().choose(rows), strict=True)
        ]


def in_one_go(
    pool: CandidatePool, options: TurnOptions, queries: Sequence[str], seeds: Sequence[int] = ()
) -> list[Completion]:
    """Random switching, without a pause."""
    engine = Engine(pool.candidates(), Uniform(), options)
    rows = engine.rows(queries, seeds or range(len(queries)))
    done = {e.index: e.completion for e in engine.run(rows) if isinstance(e, Finished)}
    return [done[index] for index in range(len(queries))]


def turns_before(pool: CandidatePool, options: TurnOptions, instance: Instance) -> int:
    """Turns that random switching takes for a trace; some may have said nothing."""
    engine = Engine(pool.candidates(), Uniform(), options)
    start, tokens = instance.start, sum(len(turn.ids) for turn in instance.turns)
    [row] = engine.rows([start.item.query], [derive_seed(start.seed, "trace")])
    row.pause = lambda row: row.tokens >= tokens
    for _ in engine.run([row]):
        pass
    return row.turns_taken


def alone(pool: CandidatePool, options: TurnOptions, wanted: Sequence[Wanted]) -> list[Row]:
    """Completions of branches, each from its query on: no fork, no pause, nothing shared."""
    engine = Engine(pool.candidates(), Retold(wanted), options)
    rows = engine.rows([want.start.item.query for want in wanted], [0] * len(wanted))
    for row, want in zip(rows, wanted, strict=True):
        seeds = {
            0: derive_seed(want.start.seed, "trace"),
            want.turn: derive_seed(want.start.seed, "branch"),
            want.turn + 1: derive_seed(want.start.seed, "completion", want.number),
        }
        draw_by(row, seeds)
    for _ in engine.run(rows):
        pass
    return rows


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_completions_written_alone(case: str) -> None:
    make, options = CASES[case]
    pool, starts, scorer = make(), starts_of(QUERIES), Recorded()
    rollouts = Rollouts(pool, options, scorer, completions=2, cut=(0.2, 0.8))
    made = rollouts.collect(starts)
    assert [instance.start for instance in made] == starts
    endings = set()
    for start, instance in zip(starts, made, strict=True):
        turn = turns_before(pool, options, instance)
        assert turn == len(instance.turns) or case == "hand-overs"
        assert len(instance.branches) == len(pool)
        wanted = [
            Wanted(start, turn, candidate, number)
            for candidate, branch in enumerate(instance.branches)
            for number in range(1 if branch.ended else 2)
        ]
        if case == "attention":  # really alone; other invariants say that batches do not matter
            rows = [row for want in wanted for row in alone(pool, options, [want])]
        else:
            rows = alone(pool, options, wanted)
        texts = [row.completion(pool.names).text for row in rows]
        assert Counter(texts) == Counter(scorer.texts[str(start.item.query)])
        assert len(set(texts)) > 1
        scores = [score for branch in instance.branches for score in branch.scores]
        assert scores == list(map(worth, texts))
        for row, want in zip(rows, wanted, strict=True):
            ids = [(part.writer, part.ids) for part in row.turns]
            trace = [(part.writer, part.ids) for part in instance.turns]
            branch = instance.branches[want.candidate].turn
            spoken = trace if branch is None else [*trace, (branch.writer, branch.ids)]
            assert ids[: len(spoken)] == spoken
        endings |= {branch.ended for branch in instance.branches}
    assert endings == {True, False} or case not in ("ends", "stop")


def test_scores_equal_uncached_calls_token_by_token() -> None:
    """Nothing of the engine is used: prompts, draws and models alone."""
    pool, scorer = three("llama", SIX), Recorded()
    [start] = starts_of(["what is two plus two?"])
    [instance] = Rollouts(pool, settings(), scorer, completions=2, cut=(0.5, 0.5)).collect([start])
    models = [loaded("llama", seed).model for seed in range(3)]
    prompt = tokenizer().encode(start.item.query)
    trace = [token for turn in instance.turns for token in turn.ids]

    def segment(ids: list[int], candidate: int, seed: int) -> list[int]:
        numbers = uniforms(seed, TOKENS, MOST)
        for _ in range(min(CAP, MOST - len(ids))):
            logits = fresh_logits(models[candidate], prompt + ids)[None]
            drawn = draw(logits, [SIX], torch.tensor([numbers[len(ids)]]))
            ids = [*ids, int(drawn)]
        return ids

    for candidate, branch in enumerate(instance.branches):
        first = segment(trace, candidate, derive_seed(start.seed, "branch"))
        assert branch.turn is not None
        assert list(branch.turn.ids) == first[len(trace) :]
        for number, score in enumerate(branch.scores):
            seed = derive_seed(start.seed, "completion", number)
            ids, turn = first, len(instance.turns) + 1
            while len(ids) < MOST:
                ids = segment(ids, int(3 * uniforms(seed, CHOICES, turn + 1)[turn]), seed)
                turn += 1
            assert score == worth(TokenizerVocabulary(tokenizer()).decode(ids))


# -- traces ------------------------------------------------------------------------------------
def expected_trace(done: Completion, options: TurnOptions, share: float, final: int) -> int:
    """Turns of a random-switch response that are its trace; ``final``: tokens of the final prompt.

    A live one ends at the last boundary from which a full segment fits below the cut, a response
    that had ended by then where the same share of its own length lies.
    """
    lengths = [len(part.token_ids) for part in done.segments]
    cut, least = share * options.max_new_tokens, int(options.first is not None)
    if options.last or options.final_prompt:
        cut = min(cut, options.max_new_tokens - CAP - final - 1)
    free = len(lengths)  # segments before the final prompt
    if final:
        free = [part.candidate == FORCED for part in done.segments].index(True)
    # A segment of full length did not end the answer: who was asked next ended it, in silence.
    asked = done.finish_reason == "eos" or bool(final)
    silent_end = asked and (free == 0 or lengths[free - 1] == CAP)
    for turns in range(least, free + silent_end):
        if sum(lengths[:turns]) + CAP > cut:
            return turns
    kept, cut = 0, share * sum(lengths)
    while kept < free - 1:
        if sum(lengths[: kept + 1]) > cut and kept >= least:
            break
        kept += 1
    return kept


@pytest.mark.parametrize("share", [0.1, 0.35, 0.9])
@pytest.mark.parametrize(
    "case", ["attention", "first", "last", "all of them", "ends", "ends, last"]
)
def test_traces_end_at_a_boundary_below_the_cut(case: str, share: float) -> None:
    make, options = CASES[case]
    pool, starts = make(), starts_of([*QUERIES, "over the road", "it is", "fox"])
    rollouts = Rollouts(pool, options, Recorded(), completions=1, cut=(share, share))
    made = rollouts.collect(starts)
    seeds = [derive_seed(start.seed, "trace") for start in starts]
    whole = in_one_go(pool, options, [str(start.item.query) for start in starts], seeds)
    final = len(tokenizer().encode(options.final_prompt))
    for done, instance in zip(whole, made, strict=True):
        turns = expected_trace(done, options, share, final)
        got = [(pool.names[turn.writer], turn.ids, turn.text) for turn in instance.turns]
        assert got == [(s.candidate, s.token_ids, s.text) for s in done.segments[:turns]]
        assert all(turn.writer >= 0 for turn in instance.turns)
        if got and options.first:
            assert got[0][0] == options.first


def test_cuts_are_drawn_between_the_two_shares() -> None:
    pool = CandidatePool({name: Scripted(name, letters(name)) for name in "ab"}, GREEDY)
    options = TurnOptions(max_new_tokens=100, boundary=EveryTokens(1))
    starts = starts_of(["?"] * 80)
    rollouts = Rollouts(pool, options, Recorded(), completions=1, cut=(0.1, 0.9))
    lengths = [sum(len(turn.ids) for turn in made.turns) for made in rollouts.collect(starts)]
    assert min(lengths) in range(10, 18) and max(lengths) in range(82, 91)
    assert 43 < sum(lengths) / 80 < 57
    again = Rollouts(pool, options, Recorded(), completions=1).collect(starts[7:9])
    assert [sum(len(turn.ids) for turn in made.turns) for made in again] == lengths[7:9]


def test_an_ended_trace_is_cut_back_by_its_own_length() -> None:
    text = b"0123456789"
    script = {n: lambda ids: text[len(ids) - 1] if len(ids) <= len(text) else EOS for n in "ab"}
    pool = CandidatePool({n: Scripted(n, script[n]) for n in "ab"}, GREEDY)
    options = TurnOptions(max_new_tokens=1000, boundary=EveryTokens(3))
    for share, kept in ((0.1, ""), (0.35, "012"), (0.65, "012345"), (0.9, "012345678")):
        rollouts = Rollouts(pool, options, Recorded(), completions=2, cut=(share, share))
        [instance] = rollouts.collect(starts_of(["?"]))
        assert "".join(turn.text for turn in instance.turns) == kept
        assert [branch.ended for branch in instance.branches] == [kept == "012345678"] * 2


@pytest.mark.parametrize("case", ["last", "all of them", "ends, last"])
def test_the_last_segment_stays_whose_it_is(case: str) -> None:
    make, options = CASES[case]
    pool, starts = make(), starts_of([*QUERIES, "over the road", "fox"])
    scorer = Recorded()
    made = Rollouts(pool, options, scorer, completions=2, cut=(0.1, 0.9)).collect(starts)
    if options.final_prompt:
        texts = [text for texts in scorer.texts.values() for text in texts]
        assert all(options.final_prompt in text for text in texts)
    for start, instance in zip(starts, made, strict=True):
        wanted = [Wanted(start, len(instance.turns), candidate) for candidate in range(len(pool))]
        rows = alone(pool, options, wanted)
        for candidate, (branch, row) in enumerate(zip(instance.branches, rows, strict=True)):
            assert branch.turn is None or branch.turn.writer == candidate
            done = row.completion(pool.names)
            assert branch.scores[0] == worth(done.text)
            writers = [part.candidate for part in done.segments]
            if options.final_prompt:
                assert writers.count(FORCED) == 1
                writers = writers[writers.index(FORCED) + 1 :]
                assert len(writers) <= 1
            if options.last:
                assert writers[-1:] in ([options.last], [])


# -- branches ----------------------------------------------------------------------------------
def test_every_branch_is_really_run() -> None:
    """Also where candidates are the same model and all is greedy."""
    scorer = Recorded()
    rollouts = Rollouts(copies(3, backend("one")), settings(), scorer, completions=4)
    made = rollouts.collect(starts_of(QUERIES))
    for instance in made:
        assert [len(branch.scores) for branch in instance.branches] == [4, 4, 4]
        assert instance.work.completions == instance.work.plain_completions == 12
        assert len({score for branch in instance.branches for score in branch.scores}) == 1
    assert [len(texts) for texts in scorer.texts.values()] == [12, 12, 12]


def test_completions_of_one_number_share_their_draws() -> None:
    """Of copies of one model every branch has the same luck, and no two numbers have."""
    one = backend("one")
    pool = CandidatePool(dict.fromkeys("abc", one), SIX)
    [instance] = Rollouts(pool, settings(), Recorded(), completions=5).collect(starts_of(["a"]))
    first, *others = [branch.scores for branch in instance.branches]
    assert len(set(first)) == 5
    assert others == [first, first]


def test_a_branch_that_ends_is_its_own_completion() -> None:
    scripts = {"a": always(EOS), "b": letters("b"), "c": lambda ids: 99 if ids[-1] != 99 else EOS}
    pool = CandidatePool({n: Scripted(n, s) for n, s in scripts.items()}, GREEDY)
    scorer = Recorded()
    options = settings(boundary=EveryTokens(2), max_new_tokens=8)
    rollouts = Rollouts(pool, options, scorer, completions=5, cut=(0.0, 0.0))
    [instance] = rollouts.collect(starts_of(["?"]))
    a, b, c = instance.branches
    assert instance.turns == []
    assert (a.turn, a.ended, a.scores, a.standard_error) == (None, True, [worth("")], 0.0)
    assert (c.ended, c.scores) == (True, [worth("c")])
    assert c.turn is not None and c.turn.text == "c"
    assert (b.ended, len(b.scores)) == (False, 5)
    assert (instance.work.completions, instance.work.plain_completions) == (5, 5)
    assert scorer.texts["?"][:2] == ["", "c"]
    mean = sum(b.scores) / 5
    assert b.utility == pytest.approx(mean)
    spread = math.sqrt(sum((score - mean) ** 2 for score in b.scores) / 4 / 5)
    assert b.standard_error == pytest.approx(spread)


def test_all_branches_may_end_at_once() -> None:
    pool = CandidatePool({n: Scripted(n, always(EOS)) for n in "ab"}, GREEDY)
    for race in (None, Race(3, 0.0, 1.0)):
        rollouts = Rollouts(pool, settings(), Recorded(), completions=3, race=race)
        [instance] = rollouts.collect(starts_of(["?"]))
        assert [branch.scores for branch in instance.branches] == [[worth("")]] * 2


def test_a_hand_over_is_a_branch_without_words() -> None:
    """Who ends its turn at once hands it over; what the others make of that is its worth."""
    scripts = {"a": always(EOS), "b": letters("b")}
    pool = CandidatePool({n: Scripted(n, s) for n, s in scripts.items()}, GREEDY)
    options = settings(boundary=EveryTokens(2), max_new_tokens=6, on_eos="handover")
    rollouts = Rollouts(pool, options, Recorded(), completions=3, cut=(0.4, 0.4))
    [instance] = rollouts.collect(starts_of(["?"]))
    silent, other = instance.branches
    assert "".join(turn.text for turn in instance.turns) == "bb"
    assert (silent.turn, silent.ended) == (None, False)
    assert silent.scores == other.scores == [worth("bbbbbb")] * 3


# -- batches and memory ------------------------------------------------------------------------
RACE = Race(6, 0.0, 1.0, error_rate=0.4, tie_share=0.5)


def essence(made: Sequence[Instance]) -> list[object]:
    return [
        (
            [(turn.writer, turn.ids, turn.text) for turn in instance.turns],
            [
                (branch.turn and branch.turn.ids, branch.ended, branch.scores)
                for branch in instance.branches
            ],
            vars(instance.work),
        )
        for instance in made
    ]


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every session that is opened."""
    made: list[Any] = []
    new_session = LoadedModel.new_session

    def keep(self: LoadedModel) -> Any:
        made.append(new_session(self))
        return made[-1]

    monkeypatch.setattr(LoadedModel, "new_session", keep)
    return made


@pytest.mark.parametrize("case", ["recurrent", "adapters", "mixed", "ends, last"])
def test_what_is_computed_together_changes_nothing(case: str, sessions: list[Any]) -> None:
    make, options = CASES[case]
    pool, starts = make(), starts_of(QUERIES)
    rollouts = Rollouts(pool, options, Recorded(), completions=3)
    together = essence(rollouts.collect(starts))
    apart = [essence(rollouts.collect([start]))[0] for start in starts]
    backwards = essence(rollouts.collect(starts[::-1]))[::-1]
    assert together == apart == backwards
    for session in sessions:  # every lane was released
        if isinstance(session, SlotSession):
            assert sorted(session._free) == list(range(session.store.slots))
        else:
            assert session._caches == {}


@pytest.mark.parametrize(
    ("rows", "batch", "race"),
    [(7, 1, RACE), (10, 2, None), (21, 5, RACE), (45, 6, None)],
    ids=str,
)
def test_a_small_memory_budget_gives_the_same_rows(
    rows: int, batch: int, race: Race | None, sessions: list[Any]
) -> None:
    pool, starts = three("llama", SIX), starts_of(QUERIES)

    def scorer() -> Recorded:
        return Recorded(lambda text: round(worth(text)))

    free = Rollouts(pool, settings(), scorer(), completions=6, race=race)
    wanted = essence(free.collect(starts))
    longest = free.engine.longest(free.engine.rows(QUERIES, [0] * 3))
    need = row_bytes(pool.candidates(), Uniform(), longest, most_segments(settings()))
    small = settings(memory_bytes=rows * need + need // 2)
    tight = Rollouts(pool, small, scorer(), completions=6, race=race)
    assert tight.fit(longest, 3) == (max(1, rows // 22) if batch == 6 else 1, batch)
    sessions.clear()
    assert essence(tight.collect(starts)) == wanted
    assert sessions and all(session.store.slots <= rows for session in sessions)


def test_a_budget_for_less_than_one_completion_a_branch_is_refused() -> None:
    pool = three("llama", SIX)
    rollouts = Rollouts(pool, settings(memory_bytes=1000), Recorded(), completions=2)
    with pytest.raises(InputError, match="one completion of each of 3 branches needs"):
        rollouts.collect(starts_of(QUERIES))


def test_one_candidate_is_no_choice() -> None:
    with pytest.raises(InputError, match="the pool has 1"):
        Rollouts(CandidatePool({"a": backend()}), settings(), Recorded())


# -- work --------------------------------------------------------------------------------------
def test_work_of_a_scripted_pool_counted_by_hand() -> None:
    """Prompt 1, trace 4, branch 2, completion 2 tokens; two candidates, two completions."""
    pool = CandidatePool({name: Scripted(name, letters(name)) for name in "ab"}, GREEDY)
    options = TurnOptions(max_new_tokens=8, boundary=EveryTokens(2))
    scorer = Recorded()
    rollouts = Rollouts(pool, options, scorer, completions=2, cut=(0.5, 0.5))
    [instance] = rollouts.collect(starts_of(["?"], seed=3))
    work = instance.work
    assert [len(turn.ids) for turn in instance.turns] == [2, 2]
    # Both read prompt and trace (5 each), both read both branches (2 each), and the writer of a
    # completion's one segment reads all of it but its last token.
    assert work.positions == 2 * 5 + 2 * 2 * 2 + 4 * 1 == 22
    # Two turns of the trace (2 and 4 positions), a branch each (6), a turn a completion (8).
    assert work.rereading == (2 + 4) + 2 * 6 + 4 * 8 == 50
    # Alone each candidate reads the prompt and all up to its last letter, the letter not: that is
    # the place of its last letter, counted from 1.
    assert work.unshared == sum(
        text.rfind(name) + 1 for text in scorer.texts["?"] for name in "ab" if name in text
    )
    assert (work.completions, work.plain_completions) == (4, 4)
    assert work.tokens == 4 + 2 * 2 + 4 * 2
    for model in (one.stepper for one in pool.backends.values()):
        assert isinstance(model.open_lanes, int) and model.open_lanes == 0


@pytest.mark.parametrize("case", ["recurrent", "adapters", "first"])
def test_positions_are_those_that_sharing_needs(case: str) -> None:
    make, options = CASES[case]
    pool, starts, k = make(), starts_of(QUERIES), 2
    made = Rollouts(pool, options, Recorded(), completions=k).collect(starts)
    names = pool.names
    for start, instance in zip(starts, made, strict=True):
        prompt = len(tokenizer().encode(str(start.item.query)))
        trace = sum(len(turn.ids) for turn in instance.turns)
        shared, unshared = len(names) * (prompt + trace), 0
        reread = rereading(prompt, instance.turns, 0)
        first, wanted = len(instance.turns), []
        for candidate, branch in enumerate(instance.branches):
            assert branch.turn is not None and not branch.ended
            shared += len(names) * len(branch.turn.ids)
            reread += rereading(prompt, [*instance.turns, branch.turn], first)
            wanted += [Wanted(start, first, candidate, number) for number in range(k)]
        for row in alone(pool, options, wanted):
            reread += rereading(prompt, row.turns, first + 1)
            begun = trace + len(row.turns[first].ids)
            for end in last_ends(row.turns).values():
                unshared += prompt + end - 1
                shared += max(0, end - 1 - begun)
        work = instance.work
        assert (work.positions, work.rereading, work.unshared) == (shared, reread, unshared)


def rereading(prompt: int, turns: Sequence[Turn], first: int) -> int:
    """Positions if every writer from turn ``first`` on reads all that stands before its turn."""
    ends = [sum(len(turn.ids) for turn in turns[: n + 1]) for n in range(len(turns))]
    return sum(prompt + end - 1 for end in ends[first:])


def last_ends(turns: Sequence[Turn]) -> dict[int, int]:
    """Where each writer's last turn ends, in tokens of the response."""
    ends, at = {}, 0
    for turn in turns:
        at += len(turn.ids)
        ends[turn.writer] = at
    return ends


def test_work_adds_up() -> None:
    pool = three("llama", SIX)
    made = Rollouts(pool, settings(), Recorded(), completions=2).collect(starts_of(QUERIES))
    whole = Work()
    for instance in made:
        whole.add(instance.work)
    assert vars(whole) == {
        name: sum(getattr(instance.work, name) for instance in made) for name in vars(whole)
    }
    assert whole.positions < whole.rereading and whole.positions < whole.unshared


# -- adaptive ----------------------------------------------------------------------------------
def test_twins_are_run_once_and_scored_alike() -> None:
    one = backend("one")
    pool = CandidatePool({"a": one, "b": backend("b", loaded("llama", 1)), "c": one}, SIX)
    starts = starts_of(QUERIES)
    plain = Rollouts(pool, settings(), Recorded(), completions=3).collect(starts)
    race = Race(3, 0.0, 1.0)
    raced = Rollouts(pool, settings(), Recorded(), completions=3, race=race).collect(starts)
    for one_way, other in zip(plain, raced, strict=True):
        assert [b.scores for b in one_way.branches] == [b.scores for b in other.branches]
        assert (one_way.work.completions, other.work.completions) == (9, 6)
        assert other.work.plain_completions == 9
        assert other.work.positions < one_way.work.positions


def test_the_same_words_with_different_endings_are_no_twins() -> None:
    """One of them ended its answer, and owes only the final prompt; the other goes on."""
    text = {"a": b"x.", "b": b"x. y and so on, and so on"}
    scripts = {
        n: (lambda ids, n=n: text[n][len(ids) - 1] if len(ids) <= len(text[n]) else EOS)
        for n in "ab"
    }
    pool = CandidatePool({n: Scripted(n, s) for n, s in scripts.items()}, GREEDY)
    options = TurnOptions(20, SentenceEnd(8), final_prompt=" So")
    found = []
    for race in (None, Race(2, 0.0, 1.0)):
        rollouts = Rollouts(pool, options, Recorded(), completions=2, cut=(0, 0), race=race)
        [instance] = rollouts.collect(starts_of(["?"]))
        assert [b.turn and b.turn.text for b in instance.branches] == ["x.", "x."]
        found.append([branch.scores for branch in instance.branches])
    assert found[0][0] != found[0][1]
    assert found[1] == found[0]


def test_the_same_ids_of_two_vocabularies_are_no_twins() -> None:
    fox, sea = TokenizerVocabulary(tokenizer()), TokenizerVocabulary(tokenizer("bytes", "sea"))
    token = next(
        token
        for token in range(270, 320)
        if fox.decode([token]) != sea.decode([token])
        if (fox.decode([token]) + sea.decode([token])).isalpha()
    )
    pool = CandidatePool(
        {
            "fox": Scripted("fox", always(token), vocabulary=fox, eos=[2]),
            "sea": Scripted("sea", always(token), vocabulary=sea, eos=[2]),
        },
        GREEDY,
    )
    options = TurnOptions(120, EveryTokens(4))  # without spaces a segment goes on for 36 tokens
    found = []
    for race in (None, Race(2, 0.0, 1.0)):
        rollouts = Rollouts(pool, options, Recorded(), completions=2, cut=(0, 0), race=race)
        [instance] = rollouts.collect(starts_of(["the"]))
        ids = [branch.turn.ids for branch in instance.branches if branch.turn]
        assert ids[0] == ids[1]
        found.append([branch.scores for branch in instance.branches])
    assert found[0][0] != found[0][1]
    assert found[1] == found[0]
