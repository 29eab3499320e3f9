"""A row that was forked, paused or resumed goes on exactly like one that was written in one go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch

from antiphon.backends.recurrent import RecurrentSession
from antiphon.backends.slots import SlotSession
from antiphon.backends.transformers import LoadedModel
from antiphon.decoding.boundaries import EntropyAbove, EveryTokens, SentenceEnd
from antiphon.decoding.engine import Engine, Finished, Piece, TurnOptions
from antiphon.decoding.policies import Policy, RoundRobin, Schedule, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.rows import Row
from antiphon.decoding.switcher import LMSwitcher
from antiphon.types import GREEDY, Completion, ModelUsage, SamplingParams
from tests.draws import draw_by
from tests.scripted import Asked, letters
from tests.tiny import backend, build, loaded, three, tokenizer, written

# Six tokens to draw from: the last bits of a sum, which depend on the batch, decide nothing.
SIX = SamplingParams(temperature=1.0, top_p=1.0, top_k=6)
QUERIES = ["the quick brown fox", "a", "what is two plus two?", "over the old road. "]
SEEDS = [11, 7, 5, 3]
TOKENS, SEGMENT = 24, 4


# -- pools -------------------------------------------------------------------------------------
def mixed() -> CandidatePool:
    """Two that share a vocabulary, and two others: text is exchanged."""
    return CandidatePool(
        {
            "fox": backend("fox", loaded("llama", 0)),
            "sea": backend("sea", loaded("llama", 1), tokens=tokenizer("bytes", "sea")),
            "more sea": backend("more sea", loaded("gpt2", 2), tokens=tokenizer("bytes", "sea")),
            "piece": backend(
                "piece", loaded("llama", 2, 400), tokens=tokenizer("metaspace", "sea", 400)
            ),
        },
        SamplingParams(temperature=1.5, top_p=1.0),  # words end sooner
    )


def adapters() -> CandidatePool:
    """Two adapters and their base: one set of weights."""
    pytest.importorskip("peft")
    from tests.lora import adapted

    weights = adapted()
    return CandidatePool(
        {n or "base": backend(n or "base", weights, adapter=n) for n in (None, "red", "blue")},
        SIX,
    )


POOLS: dict[str, Callable[[], CandidatePool]] = {
    "attention": lambda: three("llama", SIX),
    "windows": lambda: three("gemma3_text", SIX),
    "recurrent": lambda: three("lfm2", SIX),
    "adapters": adapters,
    "mixed": mixed,
}


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> CandidatePool:
    return POOLS[request.param]()


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


def assert_released(sessions: list[Any]) -> None:
    """No lane is held any more."""
    assert sessions
    for session in sessions:
        if isinstance(session, SlotSession):
            assert sorted(session._free) == list(range(session.store.slots))
        else:
            assert isinstance(session, RecurrentSession)
            assert session._caches == {}


# -- running -----------------------------------------------------------------------------------
def engine_of(pool: CandidatePool, policy: Policy | None = None, **options: Any) -> Engine:
    # Words of random models are long, and in mixed pools segments go on to the end of a word.
    tokens = 60 if "piece" in pool else TOKENS
    options = {"max_new_tokens": tokens, "boundary": EveryTokens(SEGMENT), **options}
    return Engine(pool.candidates(), policy or Uniform(), TurnOptions(**options))


def in_one_go(engine: Engine, rows: list[Row]) -> list[Completion]:
    done = {e.index: e.completion for e in engine.run(rows) if isinstance(e, Finished)}
    return [done[row.index] for row in rows]


def advance(engine: Engine, rows: list[Row], writers: Any) -> None:
    """Until every row has finished or paused; each is handed back once."""
    back = [event for event in engine.advance(rows, writers) if not isinstance(event, Piece)]
    assert sorted(map(id, back)) == sorted(map(id, rows))


def after(turns: int) -> Callable[[Row], bool]:
    return lambda row: row.turns_taken >= turns


def essence(done: Completion) -> tuple[object, ...]:
    parts = [(s.candidate, s.text, s.token_ids, dict(s.probabilities)) for s in done.segments]
    return (done.text, done.finish_reason, parts)


def positions(usage: dict[str, ModelUsage]) -> dict[str, int]:
    return {name: of.positions for name, of in usage.items() if of.positions}


def total(*usages: dict[str, int]) -> dict[str, int]:
    names = {name for usage in usages for name in usage}
    return {name: sum(usage.get(name, 0) for usage in usages) for name in names}


# -- forks -------------------------------------------------------------------------------------
@pytest.mark.parametrize("read", [False, True], ids=["", "read by all"])
def test_a_fork_goes_on_like_a_row_that_wrote_the_same(
    pool: CandidatePool, read: bool, sessions: list[Any]
) -> None:
    engine = engine_of(pool)
    parents = engine.rows(QUERIES, SEEDS)
    writers = engine.open(2, engine.longest(parents))  # fewer than there will be
    for index, row in enumerate(parents):
        row.pause = after(index)  # the first pauses before anything is written
    advance(engine, parents, writers)
    if read:
        engine.read(parents, writers)
    turns = [row.turns_taken for row in parents]
    assert turns == [0, 1, 2, 3] and all(row.finish is None for row in parents)
    forks = [engine.fork(row, writers, [row.seed, 100, 200]) for row in parents]
    advance(engine, [fork for family in forks for fork in family], writers)
    got = [[fork.completion(engine.names) for fork in family] for family in forks]
    for row in [*parents, *(fork for family in forks for fork in family)]:
        engine.release(row, writers)
    assert_released(sessions)
    queries = [query for query in QUERIES for _ in range(3)]
    fresh = engine.rows(queries, [0] * len(queries))
    for place, row in enumerate(fresh):
        seed = SEEDS[place // 3]
        draw_by(row, {0: seed, turns[place // 3]: [seed, 100, 200][place % 3]})
    wanted = in_one_go(engine, fresh)
    assert [essence(done) for family in got for done in family] == [*map(essence, wanted)]
    assert all(len({done.text for done in family}) == 3 for family in got)
    assert_released(sessions)


@pytest.mark.parametrize("released", [False, True], ids=["forks held", "forks released"])
def test_forks_change_nothing_for_their_parent(
    pool: CandidatePool, released: bool, sessions: list[Any]
) -> None:
    engine = engine_of(pool)
    wanted = in_one_go(engine, engine.rows(QUERIES, SEEDS))
    parents = engine.rows(QUERIES, SEEDS)
    writers = engine.open(20, engine.longest(parents))
    for row in parents:
        row.pause = after(2)
    advance(engine, parents, writers)
    engine.read(parents, writers)
    forks = [fork for row in parents for fork in engine.fork(row, writers, [1, 2])]
    held = [id(fork.ids[0]) for fork in forks] + [id(row.ids[0]) for row in parents]
    assert len(set(held)) == len(held)
    advance(engine, forks, writers)
    if released:
        for fork in forks:
            engine.release(fork, writers)
    for row in parents:
        assert (row.tokens, row.finish) == (sum(len(turn.ids) for turn in row.turns), None)
        row.pause = None
    advance(engine, parents, writers)
    assert [essence(row.completion(engine.names)) for row in parents] == [*map(essence, wanted)]
    for row in [*parents, *([] if released else forks)]:
        engine.release(row, writers)
    assert_released(sessions)


def test_forks_of_forks(pool: CandidatePool) -> None:
    engine = engine_of(pool)
    rows = engine.rows(QUERIES[:1], SEEDS[:1])
    writers = engine.open(1, engine.longest(rows))
    seeds, row = {0: SEEDS[0]}, rows[0]
    for depth in range(1, 4):
        row.pause = after(depth)
        advance(engine, [row], writers)
        [fork] = engine.fork(row, writers, [100 + depth])
        seeds[row.turns_taken] = 100 + depth
        engine.release(row, writers)
        row = fork
    advance(engine, [row], writers)
    [fresh] = engine.rows(QUERIES[:1], SEEDS[:1])
    [want] = in_one_go(engine, [draw_by(fresh, seeds)])
    assert essence(row.completion(engine.names)) == essence(want)


def test_a_fork_has_nothing_of_its_own_yet(pool: CandidatePool) -> None:
    engine = engine_of(pool)
    [row] = engine.rows(QUERIES[:1], SEEDS[:1])
    writers = engine.open(4, engine.longest([row]))
    row.pause = after(2)
    advance(engine, [row], writers)
    engine.read([row], writers)
    row.appointed = 1
    one, two = engine.fork(row, writers, [8, 9])
    assert (one.index, one.seed, two.index, two.seed) == (0, 8, 1, 9)
    assert one.appointed is None and one.pause is None
    assert one.usage == {} and one.views.keys() == row.views.keys()
    assert one.text == row.text and one.ids == row.ids
    one.turns[-1].text += "!"
    assert row.turns[-1].text == two.turns[-1].text != one.turns[-1].text
    lanes = [lane for each in (row, one, two) for lane in each.lanes.values()]
    assert len({id(lane) for lane in lanes}) == 3 * len(row.lanes)
    assert all(lane.prefill == lane.decode == lane.idle == 0 for lane in one.lanes.values())


# -- what is read ------------------------------------------------------------------------------
def test_forks_read_only_what_their_parent_has_not(pool: CandidatePool) -> None:
    """Parent up to the fork, and fork: together the positions of a row written in one go."""
    engine = engine_of(pool)
    wanted = in_one_go(engine, engine.rows(QUERIES, SEEDS))
    rows = engine.rows(QUERIES, SEEDS)
    writers = engine.open(8, engine.longest(rows))
    for row in rows:
        row.pause = after(2)
    advance(engine, rows, writers)
    forks = [engine.fork(row, writers, [row.seed])[0] for row in rows]
    for row in rows:
        engine.release(row, writers)
    advance(engine, forks, writers)
    for row, fork, want in zip(rows, forks, wanted, strict=True):
        engine.release(fork, writers)
        assert len(fork.turns) > 2
        spent = total(positions(row.usage), positions(fork.usage))
        assert spent == positions(dict(want.usage))


@pytest.mark.parametrize("kind", ["attention", "windows", "recurrent", "adapters", "one by one"])
def test_what_all_have_read_is_never_read_again(kind: str) -> None:
    # Jamba's code restarts its state at a chunk, so its rows read one token at a time.
    pool = three("jamba", SIX) if kind == "one by one" else POOLS[kind]()
    engine = engine_of(pool)
    rows = engine.rows(QUERIES, SEEDS)
    writers = engine.open(20, engine.longest(rows))
    for row in rows:
        row.pause = after(2)
    advance(engine, rows, writers)
    engine.read(rows, writers)
    engine.read(rows, writers)  # nothing is new
    forks = {row: engine.fork(row, writers, [1, 2, 3]) for row in rows}
    for row in rows:
        engine.release(row, writers)
        read = {name: len(row.prompts[0]) + row.tokens for name in engine.names}
        assert positions(row.usage) == read
    advance(engine, [fork for family in forks.values() for fork in family], writers)
    for row, family in forks.items():
        for fork in family:
            engine.release(fork, writers)
            ends: dict[str, int] = {}
            at = 0
            for turn in fork.turns:
                at += len(turn.ids)
                ends[engine.names[turn.writer]] = at
            # The last token of a writer's last turn is read by nobody.
            new = {name: end - 1 - row.tokens for name, end in ends.items() if end > row.tokens}
            assert positions(fork.usage) == {name: count for name, count in new.items() if count}


def test_reading_again_costs_nothing_in_mixed_pools() -> None:
    engine = engine_of(mixed())
    rows = engine.rows(QUERIES, SEEDS)
    writers = engine.open(8, engine.longest(rows))
    for row in rows:
        row.pause = after(2)
    advance(engine, rows, writers)
    engine.read(rows, writers)
    before = [{k: (v.prefill, v.decode) for k, v in row.lanes.items()} for row in rows]
    views = [dict(row.views) for row in rows]
    engine.read(rows, writers)
    assert before == [{k: (v.prefill, v.decode) for k, v in row.lanes.items()} for row in rows]
    assert views == [row.views for row in rows]
    [fork] = engine.fork(rows[0], writers, [9])
    fork.pause = after(fork.turns_taken + 1)
    advance(engine, [fork], writers)
    lane = fork.lanes[fork.turns[-1].writer]
    assert lane.prefill == 0, "it draws from what it saw"


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_views_are_what_each_model_sees_after_the_whole_row(
    pool: CandidatePool, turns: int, sessions: list[Any]
) -> None:
    """Live rows and rows resumed from stored turns, both against one uncached call."""
    engine = engine_of(pool)
    live = engine.rows(QUERIES, SEEDS)
    writers = engine.open(8, engine.longest(live))
    for row in live:
        row.pause = after(turns)
    advance(engine, live, writers)
    engine.read(live, writers)
    resumed = engine.rows(QUERIES, [0] * len(QUERIES))
    for row, fresh in zip(live, resumed, strict=True):
        row.decode()
        fresh.resume(row.turns)
        assert fresh.ids == row.ids
        assert (fresh.tokens, fresh.turns_taken) == (row.tokens, row.turns_taken)
        assert fresh.text == row.text
    engine.read(resumed, writers)
    for row, fresh in zip(live, resumed, strict=True):
        assert set(row.views) == set(fresh.views) == set(range(len(pool)))
        for index, candidate in enumerate(engine.candidates):
            ids = [*row.prompts[index], *row.ids[candidate.group]]
            want = reference(candidate.backend, ids)
            for view in (row.views[index], fresh.views[index]):
                assert view.state is not None
                for got, right in zip((view.logits, view.state), want, strict=True):
                    assert float((got - right).abs().max()) < 1e-4 * float(right.abs().max())
    for row in [*live, *resumed]:
        engine.release(row, writers)
        assert row.views == {}
    assert_released(sessions)


@torch.no_grad()
def reference(one: Any, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and final hidden state behind the last id, from one uncached call."""
    model = one.loaded.model
    names = {"adapter_names": [one.adapter or "__base__"]} if one.loaded.adapters else {}
    out = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True, **names)
    return out.logits[0, -1], out.hidden_states[-1][0, -1]


def test_resumed_rows_go_on_like_those_that_wrote_the_turns(pool: CandidatePool) -> None:
    engine = engine_of(pool)
    wanted = in_one_go(engine, engine.rows(QUERIES, SEEDS))
    live = engine.rows(QUERIES, SEEDS)
    writers = engine.open(4, engine.longest(live))
    for row in live:
        row.pause = after(3)
    advance(engine, live, writers)
    resumed = engine.rows(QUERIES, SEEDS)
    for row, fresh in zip(live, resumed, strict=True):
        row.decode()
        fresh.resume(row.turns)
    for got, want in zip(in_one_go(engine, resumed), wanted, strict=True):
        assert essence(got) == essence(want)


def test_a_context_that_is_too_short_leaves_no_view() -> None:
    short = LoadedModel(build("llama", seed=5, max_position_embeddings=24), "short")
    pool = CandidatePool({"long": backend("long"), "short": backend("short", short)}, GREEDY)
    engine = engine_of(pool, Schedule(["long"]))
    [row] = engine.rows(["the quick brown fox"], [1])
    writers = engine.open(1, engine.longest([row]))
    prompt = len(row.prompts[1])
    seen = []
    for turns in range(6):
        row.pause = after(turns)
        advance(engine, [row], writers)
        engine.read([row], writers)
        assert 0 in row.views
        seen.append((prompt + row.tokens <= 24, 1 in row.views))
    assert all(fits == shown for fits, shown in seen)
    assert len(set(seen)) == 2


# -- pauses ------------------------------------------------------------------------------------
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "round robin": {"policy": RoundRobin()},
    "switcher": {"policy": LMSwitcher(backend("switcher", loaded("llama", 9)))},
    "sentences": {"boundary": SentenceEnd(6)},
    "entropy": {"boundary": EntropyAbove(5.3, 8)},
    "stop": {"stop": ("e", "th")},
    "first, last, final prompt": {"first": "c", "last": "a", "final_prompt": " so"},
    "text": {"exchange": "text"},
    "ends": {"eos": True},
    "hand-overs": {"eos": True, "on_eos": "handover"},
    "ends, final prompt": {"eos": True, "final_prompt": " so", "last": "b"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_pausing_at_every_boundary_changes_nothing(name: str, sessions: list[Any]) -> None:
    options = dict(OPTIONS[name])
    policy, eos = options.pop("policy", None), options.pop("eos", False)
    engine = engine_of(three(sampling=SIX), policy, **options)
    if eos:  # ids that these models often write end their turns
        often = [written(done)[6] for done in in_one_go(engine, engine.rows(QUERIES, SEEDS))]
        engine = engine_of(three(sampling=SIX, eos=often), policy, **options)
    wanted = in_one_go(engine, engine.rows(QUERIES, SEEDS))
    rows = engine.rows(QUERIES, SEEDS)
    writers = engine.open(len(rows), engine.longest(rows))
    pauses = 0
    while unfinished := [row for row in rows if row.finish is None]:
        for row in unfinished:
            row.pause = after(row.turns_taken + 1)
        advance(engine, unfinished, writers)
        pauses += 1
    for row in rows:
        engine.release(row, writers)
    assert pauses >= 2
    for row, want in zip(rows, wanted, strict=True):
        done = row.completion(engine.names)
        if name == "switcher":  # its probabilities differ in the last digits
            segments = [s.token_ids for s in done.segments]
            assert segments == [s.token_ids for s in want.segments]
        else:
            assert essence(done) == essence(want)
        assert positions(dict(done.usage)) == positions(dict(want.usage))
    assert_released(sessions)


def test_a_row_that_would_pause_at_once_is_handed_back_untouched(
    pool: CandidatePool, sessions: list[Any]
) -> None:
    engine = engine_of(pool)
    rows = engine.rows(QUERIES, SEEDS)
    writers = engine.open(2, engine.longest(rows))
    for row in rows:
        row.pause = lambda row: True
    advance(engine, rows, writers)
    assert all(row.turns == [] and row.lanes == {} and row.usage == {} for row in rows)
    assert_released(sessions)


def test_width_limits_rows_at_once_and_changes_nothing(pool: CandidatePool) -> None:
    engine = engine_of(pool)
    wanted = in_one_go(engine, engine.rows(QUERIES, SEEDS))
    rows = engine.rows(QUERIES, SEEDS)
    writers = engine.open(1, engine.longest(rows))
    at_once = 0
    for event in engine.advance(rows, writers, width=1):
        assert isinstance(event, Row)
        at_once = max(at_once, sum(bool(row.lanes) for row in rows))
        engine.release(event, writers)
    assert at_once == 1
    for row, want in zip(rows, wanted, strict=True):
        assert essence(row.completion(engine.names)) == essence(want)


def test_an_appointed_candidate_writes_one_segment() -> None:
    engine = engine_of(three(sampling=SIX), RoundRobin(), first="b")
    rows = engine.rows(QUERIES[:3], SEEDS[:3])
    for index, row in enumerate(rows):
        row.appointed = index
    done = in_one_go(engine, rows)
    for name, completion in zip("abc", done, strict=True):
        assert "".join(s.candidate for s in completion.segments) == name + "bcabc"
        assert completion.segments[0].probabilities == {}


def test_leaving_early_releases_all_lanes(pool: CandidatePool, sessions: list[Any]) -> None:
    engine = engine_of(pool)
    rows = engine.rows(QUERIES, SEEDS)
    with closing(engine.run(rows, stream=True)) as events:
        for _ in range(9):
            next(events)
        assert any(row.lanes for row in rows)
    assert_released(sessions)


def test_models_behind_servers_fork_too() -> None:
    """Nothing is kept for them; what they are asked is the whole text every time."""
    pool = CandidatePool({"near": backend("near"), "far": Asked("far", letters("x"))}, SIX)
    engine = engine_of(pool, RoundRobin())
    [want] = in_one_go(engine, engine.rows(["fox"], [3]))
    [row] = engine.rows(["fox"], [3])
    writers = engine.open(3, engine.longest([row]))
    row.pause = after(2)
    advance(engine, [row], writers)
    engine.read([row], writers)
    assert set(row.views) == {0}
    forks = engine.fork(row, writers, [3, 3])
    engine.release(row, writers)
    advance(engine, forks, writers)
    for fork in forks:
        assert essence(fork.completion(engine.names)) == essence(want)
