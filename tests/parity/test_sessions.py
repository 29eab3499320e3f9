"""Sessions store exactly what an uncached forward call would compute, and count what they push."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from antiphon.backends.base import Lane, Session
from antiphon.backends.slots import SlotSession
from antiphon.backends.transformers import LoadedModel
from tests.tiny import build, fresh_logits, loaded, random_ids

ATTENTION = ("llama", "mistral", "gemma3_text", "gpt2", "opt")
HYBRID = ("jamba", "lfm2")
ALL = (*ATTENTION, *HYBRID)


def assert_same(model: LoadedModel, lane_ids: Sequence[int], logits: torch.Tensor) -> None:
    """Logits after a row's last token equal an uncached call's, within 1e-4 of their scale."""
    want = fresh_logits(model.model, lane_ids)
    scale = float(want.abs().max())
    assert float((logits - want).abs().max()) < 1e-4 * scale


def extend(session: Session, lanes: list[Lane], chunks: list[list[int]]) -> torch.Tensor:
    with session.batch(lanes) as batch:
        return batch.extend(chunks)


@pytest.mark.parametrize("kind", ALL)
def test_ragged_chunks_equal_uncached_calls(kind: str) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = [session.open() for _ in range(4)]
    texts: list[list[int]] = [[] for _ in lanes]
    for turn, lengths in enumerate([(3, 1, 12, 7), (1, 9, 2, 2), (10, 1, 1, 25), (1, 1, 1, 1)]):
        chunks = random_ids(lengths, seed=turn)
        logits = extend(session, lanes, chunks)
        for text, lane, chunk, row in zip(texts, lanes, chunks, logits, strict=True):
            text += chunk
            assert lane.ids == text
            assert_same(model, text, row)
    assert [lane.prefill for lane in lanes] == [15, 12, 16, 35]
    assert [lane.decode for lane in lanes] == [0] * 4


@pytest.mark.parametrize("kind", ALL)
def test_steps_after_chunks_equal_uncached_calls_and_are_counted(kind: str) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = [session.open() for _ in range(3)]
    chunks = random_ids([5, 1, 11])
    steps = random_ids([12] * 3, seed=1)
    with session.batch(lanes) as batch:
        batch.extend(chunks)
        for step in range(12):
            logits = batch.step(torch.tensor([row[step] for row in steps]))
            for chunk, row, got in zip(chunks, steps, logits, strict=True):
                assert_same(model, chunk + row[: step + 1], got)
        more = random_ids([2, 6, 1], seed=2)
        logits = batch.extend(more)
    for lane, chunk, row, rest, got in zip(lanes, chunks, steps, more, logits, strict=True):
        assert lane.ids == chunk + row + rest
        assert_same(model, lane.ids, got)
        assert (lane.prefill, lane.decode) == (len(chunk) + len(rest), 12)


@pytest.mark.parametrize("kind", ALL)
def test_forks_equal_a_fresh_prefill_and_go_their_own_ways(kind: str) -> None:
    model = loaded(kind)
    session = model.new_session()
    trunk, other = session.open(), session.open()
    extend(session, [trunk, other], random_ids([13, 4]))
    forks = session.fork(trunk, 3)
    assert [(f.prefill, f.decode, f.idle) for f in forks] == [(0, 0, 0)] * 3
    assert [f.ids for f in forks] == [trunk.ids] * 3
    tails = random_ids([1, 5, 9], seed=1)
    logits = extend(session, forks, tails)
    for fork, tail, row in zip(forks, tails, logits, strict=True):
        assert fork.ids == random_ids([13])[0] + tail
        assert_same(model, fork.ids, row)
        assert fork.prefill == len(tail)
    (row,) = extend(session, [trunk], [[7]])
    assert_same(model, random_ids([13])[0] + [7], row)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("length", [0, 1, 6, 17, 18])
def test_crop_equals_never_having_read_the_rest(kind: str, length: int) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = [session.open(), session.open()]
    texts = random_ids([18, 5])
    extend(session, lanes, texts)
    session.crop(lanes[0], length)
    assert lanes[0].ids == texts[0][:length]
    new = random_ids([12, 2], seed=1)
    logits = extend(session, lanes, new)
    for text, chunk, row in zip([texts[0][:length], texts[1]], new, logits, strict=True):
        assert_same(model, text + chunk, row)
    if kind in ATTENTION:
        assert [lane.prefill for lane in lanes] == [18 + 12, 5 + 2]
    elif length < 18:  # a state that cannot be cropped is built anew, and that is counted
        assert [lane.prefill for lane in lanes] == [18 + length + 12, 5 + 2]


@pytest.mark.parametrize("kind", ["llama", "jamba"])
@pytest.mark.parametrize("length", [-1, 6])
def test_crop_beyond_the_stored_tokens_is_refused(kind: str, length: int) -> None:
    session = loaded(kind).new_session()
    lane = session.open()
    extend(session, [lane], [[5, 6, 7, 8, 9]])
    with pytest.raises(ValueError, match="cannot crop"):
        session.crop(lane, length)


@pytest.mark.parametrize("kind", ALL)
def test_a_released_slot_shows_nothing_of_its_former_row(kind: str) -> None:
    model = loaded(kind)
    session = model.new_session()
    first, second = session.open(), session.open()
    extend(session, [first, second], random_ids([30, 9]))
    slot = first.slot
    session.release(first)
    again = session.open()
    if isinstance(session, SlotSession):
        assert again.slot == slot, "the storage is used again"
    assert (again.ids, again.prefill, again.decode, again.idle) == ([], 0, 0, 0)
    new = random_ids([4, 3], seed=5)
    logits = extend(session, [again, second], new)
    assert_same(model, new[0], logits[0])
    assert_same(model, random_ids([30, 9])[1] + new[1], logits[1])


@pytest.mark.parametrize("kind", ALL)
def test_released_lanes_cannot_be_used(kind: str) -> None:
    session = loaded(kind).new_session()
    lane = session.open()
    session.release(lane)
    with pytest.raises(ValueError, match="open lanes"), session.batch([lane]):
        pass


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("stay", [[0, 1, 2], [0, 2, 4], [3], [1, 4]])
def test_rows_that_are_kept_go_on_exactly(kind: str, stay: list[int]) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = [session.open() for _ in range(5)]
    chunks = random_ids([3, 14, 1, 8, 6])
    with session.batch(lanes) as batch:
        batch.extend(chunks)
        batch.step(torch.tensor([9, 10, 11, 12, 13]))
        batch.keep(stay)
        for step in range(10):
            logits = batch.step(torch.tensor([20 + row + step for row in stay]))
    tails = {row: [9 + row, *(20 + row + step for step in range(10))] for row in stay}
    for row, got in zip(stay, logits, strict=True):
        assert lanes[row].ids == chunks[row] + tails[row]
        assert_same(model, lanes[row].ids, got)
        assert lanes[row].decode == 11
    # The rows that left are as they were.
    gone = [row for row in range(5) if row not in stay]
    if gone:
        logits = extend(session, [lanes[row] for row in gone], [[30]] * len(gone))
        for row, got in zip(gone, logits, strict=True):
            assert lanes[row].ids == [*chunks[row], 9 + row, 30]
            assert_same(model, lanes[row].ids, got)


@pytest.mark.parametrize("kind", ALL)
def test_idle_rows_forget_what_is_computed_for_them(kind: str) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = [session.open() for _ in range(3)]
    chunks = random_ids([5, 12, 2])
    with session.batch(lanes) as batch:
        batch.extend(chunks)
        batch.step(torch.tensor([7, 8, 9]))
        batch.idle(1)
        for step in range(9):
            logits = batch.step(torch.tensor([30 + step, 99, 50 + step]))
    assert lanes[1].ids == [*chunks[1], 8]
    assert [lane.decode for lane in lanes] == [10, 1, 10]
    if kind in ATTENTION:
        assert lanes[1].idle == 9
    for row in (0, 2):
        assert_same(model, lanes[row].ids, logits[row])
    later = extend(session, lanes, [[40], [41, 42], [43]])
    for lane, got in zip(lanes, later, strict=True):
        assert_same(model, lane.ids, got)
    assert lanes[1].ids == [*chunks[1], 8, 41, 42]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [4, 0, 2], [1, 2, 3], [3, 1], [2]])
def test_any_choice_and_order_of_lanes_can_be_computed_together(kind: str, rows: list[int]) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = [session.open() for _ in range(5)]
    texts = random_ids([3, 21, 9, 1, 14])
    extend(session, lanes, texts)
    for turn in range(2):  # the second turn reads what the first wrote back
        new = random_ids([1 + (row * 3 + turn) % 7 for row in rows], seed=turn)
        with session.batch([lanes[row] for row in rows]) as batch:
            batch.extend(new)
            logits = batch.step(torch.tensor([60 + row for row in rows]))
        for row, chunk, got in zip(rows, new, logits, strict=True):
            texts[row] = [*texts[row], *chunk, 60 + row]
            assert lanes[row].ids == texts[row]
            assert_same(model, texts[row], got)
    logits = extend(session, lanes, [[70]] * 5)
    for text, got in zip(texts, logits, strict=True):
        assert_same(model, [*text, 70], got)


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("reserved", [(0, 0), (2, 4), (8, 200)])
def test_storage_grows_without_losing_anything(kind: str, reserved: tuple[int, int]) -> None:
    model = loaded(kind)
    session = model.new_session()
    session.reserve(*reserved)
    lanes: list[Lane] = []
    texts: list[list[int]] = []
    for turn in range(4):
        lanes.append(session.open())
        texts.append([])
        new = random_ids([1 + (5 * turn + 11 * row) % 23 for row in range(turn + 1)], seed=turn)
        with session.batch(lanes) as batch:
            batch.extend(new)
            for step in range(5):
                logits = batch.step(torch.tensor([80 + step] * len(lanes)))
        for place, chunk in enumerate(new):
            texts[place] += [*chunk, 80, 81, 82, 83, 84]
            assert_same(model, texts[place], logits[place])
    assert [lane.ids for lane in lanes] == texts


def test_two_sessions_share_a_workspace_and_not_their_states() -> None:
    first, second = loaded("llama", 0), loaded("llama", 1)
    second = LoadedModel(second.model, "second", first.scratch)
    sessions = [first.new_session(), second.new_session()]
    lanes = [[session.open() for _ in range(3)] for session in sessions]
    texts = [random_ids([4, 9, 2], seed=s) for s in (0, 1)]
    for session, own, text in zip(sessions, lanes, texts, strict=True):
        extend(session, own, text)
    for turn in range(3):
        for model, session, own, text in zip((first, second), sessions, lanes, texts, strict=True):
            logits = extend(session, [own[2], own[0]], [[90 + turn], [91, 92]])
            text[2] = [*text[2], 90 + turn]
            text[0] = [*text[0], 91, 92]
            assert_same(model, text[2], logits[0])
            assert_same(model, text[0], logits[1])


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_learned_positions_can_be_used_to_the_last(kind: str) -> None:
    """Pads and idle rows would ask for positions that do not exist."""
    model = LoadedModel(build(kind, max_position_embeddings=32), kind)
    session = model.new_session()
    lanes = [session.open() for _ in range(3)]
    texts = random_ids([31, 3, 20])
    extend(session, lanes, texts)
    with session.batch(lanes) as batch:
        logits = batch.extend([[7], random_ids([20])[0], [8, 9]])
        for lane, row in zip(lanes, logits, strict=True):
            assert_same(model, lane.ids, row)
        batch.idle(0)
        logits = batch.step(torch.tensor([5, 6, 7]))
    assert_same(model, lanes[1].ids, logits[1])


@pytest.mark.parametrize("kind", ["llama", "mistral", "mamba2"])
def test_an_empty_chunk_leaves_its_row_as_it_was(kind: str) -> None:
    model = loaded(kind)
    session = model.new_session()
    lanes = [session.open() for _ in range(3)]
    with session.batch(lanes) as batch:
        batch.extend([[5, 6, 7], [8, 9], [10]])
    with session.batch(lanes) as batch:
        batch.extend([[], [11, 12, 13, 14], []])
    assert [lane.ids for lane in lanes] == [[5, 6, 7], [8, 9, 11, 12, 13, 14], [10]]
    assert [lane.prefill for lane in lanes] == [3, 6, 1]
    with session.batch(lanes) as batch:
        logits = batch.extend([[20], [21], [22]])
    for lane, row in zip(lanes, logits, strict=True):
        alone = session.open()
        with session.batch([alone]) as batch:
            wanted = batch.extend([lane.ids])[0]
        assert torch.allclose(row, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


def test_empty_and_missing_chunks_are_refused() -> None:
    session = loaded().new_session()
    lanes = [session.open(), session.open()]
    for chunks in ([[], []], [[5]]):
        with pytest.raises(ValueError, match="chunk for every row"), session.batch(lanes) as batch:
            batch.extend(chunks)
    for wrong in ([], [lanes[0], lanes[0]]):
        with pytest.raises(ValueError, match="distinct"), session.batch(wrong):
            pass
