"""The cost that is promised: every candidate reads each position of a row at most once."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.backends.slots import SlotSession
from antiphon.backends.transformers import LoadedModel
from antiphon.decoding.boundaries import Boundary, EntropyAbove, EveryTokens, SentenceEnd
from antiphon.decoding.policies import Fixed, RoundRobin, Schedule, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.switcher import LMSwitcher
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import GREEDY, SamplingParams
from tests.scripted import EOS, Scripted
from tests.tiny import IDS, as_query, backend, loaded, random_ids, three, written

PROMPTS = random_ids([9, 1, 17, 5])
QUERIES = [as_query(prompt) for prompt in PROMPTS]


@pytest.mark.parametrize(
    "policy", [Uniform(), RoundRobin(), Fixed("b")], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("segment", [1, 4, 50])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "lfm2"])
def test_no_position_is_read_twice(kind: str, segment: int, policy: object) -> None:
    method = SwitchGeneration(
        three(kind, SamplingParams(), prompt=IDS),
        policy,
        max_new_tokens=30,
        boundary=EveryTokens(segment),
    )
    for prompt, done in zip(PROMPTS, method.generate(QUERIES), strict=True):
        whole = len(prompt) + len(written(done))
        for name, usage in done.usage.items():
            writes = [part.candidate == name for part in done.segments]
            assert usage.positions <= whole - 1, "the last token is read by nobody"
            # It has read all that stood before its last turn, and its turn.
            last = max(place for place, own in enumerate(writes) if own)
            read = len(prompt) + sum(len(part.token_ids) for part in done.segments[: last + 1])
            assert usage.positions == read - 1
        total = sum(usage.positions for usage in done.usage.values())
        assert total <= 3 * whole


def test_who_is_never_chosen_reads_nothing() -> None:
    method = SwitchGeneration(
        three(sampling=GREEDY, prompt=IDS), Schedule(["a", "c"]), max_new_tokens=60
    )
    for done in method.generate(QUERIES):
        assert set(done.usage) == {"a", "c"}


def test_one_model_alone_reads_as_often_as_generate_does() -> None:
    pool = CandidatePool({"one": backend("one", prompt=IDS)}, GREEDY)
    for segment in (1, 7, 50):
        method = SwitchGeneration(pool, max_new_tokens=30, boundary=EveryTokens(segment))
        for prompt, done in zip(PROMPTS, method.generate(QUERIES), strict=True):
            assert done.usage["one"].positions == len(prompt) + 29


@pytest.mark.parametrize("boundary", [SentenceEnd(50), EntropyAbove(0.01, 50)], ids=str)
def test_look_ahead_costs_no_position(boundary: Boundary) -> None:
    """A dropped token was drawn, not read; the next turn of the same model goes on from there."""
    if isinstance(boundary, SentenceEnd):
        text = b"One. Two. Three. Four. Five."
        script = Scripted("one", lambda ids: text[len(ids) - 1] if len(ids) <= len(text) else EOS)
        (done,) = SwitchGeneration(
            CandidatePool({"one": script}, GREEDY), boundary=boundary
        ).generate(["?"])
        assert len(done.segments) == 5
        assert done.usage["one"].positions <= 1 + len(text)
        return
    pool = CandidatePool({"one": backend("one", loaded(), prompt=IDS)}, GREEDY)
    method = SwitchGeneration(pool, max_new_tokens=30, boundary=boundary)
    for prompt, done in zip(PROMPTS, method.generate(QUERIES), strict=True):
        assert len(done.segments) > 10
        assert done.usage["one"].positions <= len(prompt) + 30


def test_a_hand_over_costs_no_position() -> None:
    """After an end of sequence the writer has read all; its next turn reads only what is new."""
    scripts = {
        "a": lambda ids: ord("a") if ids[-1] != ord("a") else EOS,
        "b": lambda ids: ord("b") if ids[-1] != ord("b") else EOS,
    }
    pool = CandidatePool({n: Scripted(n, s) for n, s in scripts.items()}, GREEDY)
    method = SwitchGeneration(pool, RoundRobin(), max_new_tokens=20, on_eos="handover")
    (done,) = method.generate(["?"])
    assert done.text == "ab" * 10
    assert all(usage.positions <= 20 for usage in done.usage.values())


def test_positions_of_stopped_rows_are_counted_as_idle_or_not_computed() -> None:
    """Rows that end early neither go on costing nor disturb what is counted for others."""
    eos = [
        written(d)[4]
        for d in SwitchGeneration(
            CandidatePool({"one": backend("one", prompt=IDS)}, GREEDY), max_new_tokens=12
        ).generate(QUERIES)
    ][:2]
    pool = CandidatePool({"one": backend("one", prompt=IDS, eos=eos)}, GREEDY)
    done = SwitchGeneration(pool, max_new_tokens=40).generate(QUERIES)
    assert {d.finish_reason for d in done} == {"eos", "length"}
    for prompt, completion in zip(PROMPTS, done, strict=True):
        ended = completion.finish_reason == "eos"
        length = len(prompt) + len(written(completion))
        assert completion.usage["one"].positions == (length if ended else length - 1)


@pytest.mark.parametrize("segment", [1, 4, 16])
def test_storage_does_not_grow_with_the_number_of_segments(
    segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n + 1 caches of the size that was reserved, and one workspace for all."""
    sessions: list[SlotSession] = []
    new_session = LoadedModel.new_session

    def keep(self: LoadedModel) -> Any:
        session = new_session(self)
        assert isinstance(session, SlotSession)
        sessions.append(session)
        return session

    monkeypatch.setattr(LoadedModel, "new_session", keep)
    names = ("one", "two", "three")
    pool = CandidatePool({n: backend(n, loaded(seed=i), prompt=IDS) for i, n in enumerate(names)})
    switcher = LMSwitcher(backend("switcher", loaded(seed=9), prompt=IDS))
    method = SwitchGeneration(pool, switcher, max_new_tokens=48, boundary=EveryTokens(segment))
    method.generate(QUERIES)
    longest = max(map(len, PROMPTS)) + 48
    assert len(sessions) == 4
    for session in sessions:
        assert session.store.slots == len(QUERIES)
        if session is not sessions[0]:  # the switcher's, made first, holds tags as well
            assert session.store.columns == longest + 1
    tags = max(
        len(a) + len(b)
        for a, b in zip(
            method.engine.policy.text._begin, method.engine.policy.text._end, strict=True
        )
    )
    segments = -(-48 // segment) + 1
    allowed = longest + segments * tags + len(method.engine.policy.text.question) + 2
    assert sessions[0].store.columns <= allowed
