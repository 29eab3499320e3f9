"""Greedy turn-taking equals ``transformers`` ``generate``, token for token."""

from __future__ import annotations

from functools import cache

import pytest

from antiphon.backends.families import ATTENTION as CLAIMED_ATTENTION
from antiphon.backends.families import RECURRENT as CLAIMED_RECURRENT
from antiphon.decoding.boundaries import EveryTokens
from antiphon.decoding.policies import RoundRobin, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import GREEDY
from tests.tiny import (
    ATTENTION,
    IDS,
    RECURRENT,
    WINDOW,
    as_query,
    backend,
    copies,
    greedy_alone,
    loaded,
    random_ids,
    written,
)

NEW = 26
PROMPTS = random_ids([11, 1, 20, 4, 17])
FAMILIES = [*ATTENTION, *RECURRENT]


@cache
def references(kind: str) -> list[list[int]]:
    return [greedy_alone(loaded(kind).model, prompt, NEW) for prompt in PROMPTS]


def test_every_claimed_family_is_tested() -> None:
    assert set(ATTENTION) == CLAIMED_ATTENTION
    assert set(RECURRENT) == set(CLAIMED_RECURRENT)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_references_can_tell_right_from_wrong(kind: str) -> None:
    """Answers that repeat one token would agree by luck; and windows must be exceeded."""
    assert NEW > 2 * WINDOW
    assert len({token for row in references(kind) for token in row}) >= 12
    assert len(set(map(tuple, references(kind)))) == len(PROMPTS)


@pytest.mark.parametrize("segment", [1, 5, 50])
@pytest.mark.parametrize("kind", FAMILIES)
def test_one_greedy_candidate_equals_generate(kind: str, segment: int) -> None:
    pool = CandidatePool({"one": backend("one", loaded(kind), prompt=IDS)}, GREEDY)
    method = SwitchGeneration(pool, max_new_tokens=NEW, boundary=EveryTokens(segment))
    done = method.generate([as_query(prompt) for prompt in PROMPTS])
    assert [written(completion) for completion in done] == references(kind)
    assert {completion.finish_reason for completion in done} == {"length"}
    lengths = {len(part.token_ids) for completion in done for part in completion.segments[:-1]}
    assert lengths <= {segment}


@pytest.mark.parametrize("kind", FAMILIES)
def test_responses_end_where_generate_ends_them(kind: str) -> None:
    # A token that some answers hold in their middle becomes the end of sequence.
    rows = references(kind)
    eos = next(token for token in rows[0][5:] if sum(token in row for row in rows) < len(rows))
    wanted = [greedy_alone(loaded(kind).model, prompt, NEW, eos) for prompt in PROMPTS]
    one = backend("one", loaded(kind), prompt=IDS, eos=[eos])
    method = SwitchGeneration(
        CandidatePool({"one": one}, GREEDY), max_new_tokens=NEW, boundary=EveryTokens(5)
    )
    done = method.generate([as_query(prompt) for prompt in PROMPTS])
    ends = {completion.finish_reason for completion in done}
    assert ends == {"eos", "length"}
    for completion, want in zip(done, wanted, strict=True):
        ended = want[-1] == eos
        assert written(completion) == (want[:-1] if ended else want)
        assert completion.finish_reason == ("eos" if ended else "length")


@pytest.mark.parametrize("kind", FAMILIES)
def test_generating_alone_equals_generate(kind: str) -> None:
    """The backend's own ``generate``, which asks nobody for turns."""
    one = backend("one", loaded(kind), prompt=IDS)
    lengths = [NEW, 3, NEW, 0, 10]
    done = one.generate(PROMPTS, lengths, GREEDY, [0] * len(PROMPTS))
    for answer, want, length in zip(done, references(kind), lengths, strict=True):
        assert list(answer.token_ids) == want[:length]


@pytest.mark.parametrize("segment", [1, 3, 7, 50])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2", "jamba", "qwen3_next"])
def test_identical_copies_equal_the_single_model(kind: str, segment: int) -> None:
    pool = copies(3, backend("one", loaded(kind), prompt=IDS))
    for policy in (Uniform(), RoundRobin()):
        method = SwitchGeneration(pool, policy, max_new_tokens=NEW, boundary=EveryTokens(segment))
        done = method.generate([as_query(prompt) for prompt in PROMPTS], seed=3)
        assert [written(completion) for completion in done] == references(kind)
        if segment < 5:
            assert all(len({s.candidate for s in c.segments}) > 1 for c in done)
