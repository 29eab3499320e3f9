"""``Batch.states`` are the final hidden states behind the logits, as ``transformers`` has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from antiphon.backends.base import Lane, Session
from antiphon.backends.transformers import LoadedModel
from tests.tiny import ATTENTION, RECURRENT, build, loaded, random_ids

ALL = (*ATTENTION, *RECURRENT)


@torch.no_grad()
def last_state(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """The last hidden state behind the last id, from one uncached call."""
    tokens = torch.tensor([list(ids)])
    out = model(input_ids=tokens, use_cache=False, output_hidden_states=True)
    return out.hidden_states[-1][0, -1]


def assert_states(model: LoadedModel, lanes: Sequence[Lane], states: torch.Tensor | None) -> None:
    """States of all rows equal an uncached call's, within 1e-4 of their scale."""
    assert states is not None
    assert states.shape == (len(lanes), model.config.hidden_size)
    assert states.dtype == model.dtype
    for lane, state in zip(lanes, states, strict=True):
        want = last_state(model.model, lane.ids)
        assert float((state - want).abs().max()) < 1e-4 * float(want.abs().max())


def opened(session: Session, count: int) -> list[Lane]:
    return [session.open() for _ in range(count)]


@pytest.mark.parametrize("kind", ALL)
def test_ragged_chunks_gathered_lanes_and_steps(kind: str) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = opened(session, 5)
    with session.batch(lanes) as batch:
        batch.extend(random_ids([3, 14, 1, 40, 6]))
        assert_states(model, lanes, batch.states)
    gathered = [lanes[4], lanes[0], lanes[2]]
    with session.batch(gathered) as batch:
        batch.extend(random_ids([2, 1, 11], seed=1))
        assert_states(model, gathered, batch.states)
        for step in range(2):
            batch.step(torch.tensor([20 + step, 30 + step, 40 + step]))
        states = batch.states
    assert_states(model, gathered, states)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "opt", "lfm2"])
def test_states_follow_the_rows_that_are_kept_and_skip_the_idle(kind: str) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = opened(session, 4)
    with session.batch(lanes) as batch:
        batch.extend(random_ids([5, 12, 2, 7]))
        batch.keep([0, 2, 3])
        batch.step(torch.tensor([8, 9, 10]))
        kept = batch.states
        batch.idle(1)
        batch.step(torch.tensor([11, 99, 13]))
        states = batch.states
    assert kept is not None and states is not None
    assert_states(model, [lanes[0], lanes[3]], states[[0, 2]])
    # The idle row's last state is the one before it stopped.
    assert_states(model, [lanes[2]], kept[1:2])


@pytest.mark.parametrize("kind", ["llama", "mistral", "mamba2"])
def test_an_empty_chunk_disturbs_no_other_rows_state(kind: str) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = opened(session, 3)
    with session.batch(lanes) as batch:
        batch.extend(random_ids([60, 4, 9]))
    with session.batch(lanes) as batch:
        batch.extend([[], [7], random_ids([40], seed=1)[0]])
        states = batch.states
    assert states is not None
    assert states.shape[0] == 3
    assert_states(model, lanes[1:], states[1:])


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_states_are_of_the_latest_call_only(kind: str) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = opened(session, 2)
    with session.batch(lanes) as batch:
        assert batch.states is None
        batch.extend(random_ids([4, 4]))
        first = batch.states
        batch.step(torch.tensor([5, 6]))
        second = batch.states
    assert_states(model, lanes, second)
    assert first is not None
    for lane, state in zip(lanes, first, strict=True):
        want = last_state(model.model, lane.ids[:-1])
        assert torch.allclose(state, want, atol=1e-4), "an earlier call's states are not changed"


def test_scoring_leaves_no_states_behind() -> None:
    """What :meth:`LoadedModel.score` saw is not taken for what a session read."""
    model = loaded()
    model.score([5, 6, 7], 1)
    assert model._take_states() is None


@pytest.mark.parametrize("kind", ["llama", "mamba2"])
def test_models_without_an_output_layer_show_none(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = build(kind)
    monkeypatch.setattr(type(bare), "get_output_embeddings", lambda self: None)
    model = LoadedModel(bare, "bare")
    session = model.new_session()
    lanes = opened(session, 2)
    with session.batch(lanes) as batch:
        logits = batch.extend(random_ids([3, 9]))
        assert batch.states is None
        batch.step(torch.tensor([5, 6]))
        assert batch.states is None
    assert logits.shape == (2, 320)


def test_states_come_in_the_models_dtype() -> None:
    model = LoadedModel(build("llama").to(torch.bfloat16), "half")
    session = model.new_session()
    lane = session.open()
    with session.batch([lane]) as batch:
        logits = batch.extend(random_ids([9]))
        states = batch.states
    assert states is not None
    assert (states.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    want = last_state(model.model, lane.ids)
    assert torch.allclose(states[0].float(), want.float(), atol=0.1)


def test_rows_under_several_adapters_show_their_own_states() -> None:
    pytest.importorskip("peft")
    from tests.lora import adapted

    model = adapted()
    session = model.new_session()
    names = [None, "red", "blue"]
    lanes = [session.open(name) for name in names]
    [ids] = random_ids([9])
    with session.batch(lanes) as batch:
        batch.extend([ids] * 3)
        states = batch.states
    assert states is not None
    for name, state in zip(names, states, strict=True):
        model.model.set_adapter(name or "red")
        if name is None:
            with model.model.disable_adapter():
                want = last_state(model.model, ids)
        else:
            want = last_state(model.model, ids)
        assert torch.allclose(state, want, atol=1e-4 * float(want.abs().max()))
    assert float((states[0] - states[1]).abs().max()) > 0.1
    assert float((states[1] - states[2]).abs().max()) > 0.1
