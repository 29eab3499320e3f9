"""The probability average equals one computed by hand, without caches, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from antiphon.backends.sampling import TOKENS, draw, uniforms
from antiphon.backends.transformers import LoadedModel
from antiphon.decoding.policies import Fixed
from antiphon.decoding.pool import CandidatePool
from antiphon.errors import CapabilityError, InputError
from antiphon.methods.ensemble import AVERAGE, ProbabilityAverage
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import GREEDY, Completion, SamplingParams
from tests.parity.test_adapters import folder, load, merged  # noqa: F401 - a fixture
from tests.scripted import EOS, Asked, Scripted, letters, says
from tests.tiny import (
    IDS,
    as_query,
    backend,
    build,
    copies,
    fresh_logits,
    greedy_alone,
    loaded,
    random_ids,
    three,
    tokenizer,
    written,
)

NEW = 16
PROMPTS = random_ids([11, 1, 20, 4, 17])
QUERIES = [as_query(prompt) for prompt in PROMPTS]
FAMILIES = ["llama", "gemma3_text", "lfm2"]


def pair(kind: str = "llama", sampling: SamplingParams = GREEDY) -> CandidatePool:
    made = {name: backend(name, loaded(kind, seed), prompt=IDS) for seed, name in enumerate("ab")}
    return CandidatePool(made, sampling)


def average_by_hand(
    models: Sequence[object], weights: Sequence[float], ids: Sequence[int]
) -> torch.Tensor:
    """Probabilities after ``ids``, from uncached calls."""
    each = [w * fresh_logits(m, ids).softmax(-1) for m, w in zip(models, weights, strict=True)]
    return torch.stack(each).sum(0)


@cache
def greedy_by_hand(kind: str, weights: tuple[float, ...]) -> list[list[int]]:
    models = [loaded(kind, seed).model for seed in range(len(weights))]
    rows = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(NEW):
            ids.append(int(average_by_hand(models, weights, ids).argmax()))
        rows.append(ids[len(prompt) :])
    return rows


def texts(done: Sequence[Completion]) -> list[list[int]]:
    return [written(completion) for completion in done]


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7)])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_average_equals_one_by_hand(kind: str, weights: tuple[float, float]) -> None:
    wanted = greedy_by_hand(kind, weights)
    method = ProbabilityAverage(pair(kind), [5 * w for w in weights], max_new_tokens=NEW)
    done = method.generate(QUERIES)
    assert texts(done) == wanted
    assert [c.finish_reason for c in done] == ["length"] * len(PROMPTS)
    assert all([s.candidate for s in c.segments] == [AVERAGE] for c in done)
    # It is neither model's own answer, and not the other average.
    for seed in (0, 1):
        alone = [greedy_alone(loaded(kind, seed).model, prompt, NEW) for prompt in PROMPTS]
        assert sum(a != b for a, b in zip(alone, wanted, strict=True)) >= 2
    assert greedy_by_hand(kind, (0.5, 0.5)) != greedy_by_hand(kind, (0.3, 0.7))


def test_probabilities_are_averaged_and_not_logits() -> None:
    """The two can be told apart with these models."""
    models = [loaded(seed=seed).model for seed in (0, 1)]
    rows = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(NEW):
            ids.append(
                int(sum(fresh_logits(model, ids).log_softmax(-1) for model in models).argmax())
            )
        rows.append(ids[len(prompt) :])
    assert all(a != b for a, b in zip(rows, greedy_by_hand("llama", (0.5, 0.5)), strict=True))


@pytest.mark.parametrize("kind", FAMILIES)
def test_all_weight_on_one_is_that_one(kind: str) -> None:
    pool = pair(kind)
    for place, name in enumerate("ab"):
        weights = [float(place == 0), float(place == 1)]
        done = ProbabilityAverage(pool, weights, max_new_tokens=NEW).generate(QUERIES)
        alone = SwitchGeneration(pool, Fixed(name), max_new_tokens=NEW).generate(QUERIES)
        assert texts(done) == texts(alone)
        model = loaded(kind, place).model
        assert texts(done) == [greedy_alone(model, prompt, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", FAMILIES)
def test_identical_copies_equal_the_model(kind: str) -> None:
    one = backend("one", loaded(kind), prompt=IDS)
    done = ProbabilityAverage(copies(3, one), [1, 2, 5], max_new_tokens=NEW).generate(QUERIES)
    assert texts(done) == [greedy_alone(loaded(kind).model, prompt, NEW) for prompt in PROMPTS]


def test_sampled_copies_draw_what_the_model_draws_in_turns() -> None:
    """The same numbers draw the same tokens: only the average could differ, and it does not."""
    sampling = SamplingParams(temperature=0.9, top_p=0.8, top_k=50)
    one = backend("one", prompt=IDS)
    pool = CandidatePool({"x": one, "y": one}, sampling)
    done = ProbabilityAverage(pool, max_new_tokens=NEW).generate(QUERIES, seed=5)
    alone = SwitchGeneration(pool, Fixed("x"), max_new_tokens=NEW).generate(QUERIES, seed=5)
    assert texts(done) == texts(alone)
    assert [c.seed for c in done] == [c.seed for c in alone]


def test_sampling_draws_from_the_average_at_the_rows_own_numbers() -> None:
    sampling = SamplingParams(temperature=1.3, top_p=0.9, top_k=40, min_p=0.01)
    models = [loaded(seed=seed).model for seed in (0, 1)]
    done = ProbabilityAverage(pair(), sampling=sampling, max_new_tokens=8).generate(
        QUERIES, seeds=[7, 8, 9, 10, 11]
    )
    for prompt, seed, completion in zip(PROMPTS, (7, 8, 9, 10, 11), done, strict=True):
        ids = list(prompt)
        for number in uniforms(seed, TOKENS, 8):
            p = average_by_hand(models, (0.5, 0.5), ids)
            uniform = torch.tensor([number], dtype=torch.float64)
            ids.append(int(draw(p.log()[None], [sampling], uniform)))
        assert written(completion) == ids[len(prompt) :]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "lfm2"])
def test_a_row_does_not_depend_on_its_batch(kind: str) -> None:
    pool = three(kind, SamplingParams(), prompt=IDS)
    seeds = [3, 1, 4, 1, 5]
    whole = ProbabilityAverage(pool, max_new_tokens=NEW).generate(QUERIES, seeds=seeds)
    small = ProbabilityAverage(pool, max_new_tokens=NEW, batch_rows=2)
    assert texts(small.generate(QUERIES, seeds=seeds)) == texts(whole)
    assert texts(small.generate(QUERIES[::-1], seeds=seeds[::-1])) == texts(whole)[::-1]
    for query, seed, completion in zip(QUERIES, seeds, whole, strict=True):
        [alone] = small.generate([query], seeds=[seed])
        assert (alone.text, written(alone)) == (completion.text, written(completion))
    assert texts(small.generate(QUERIES, seed=1)) != texts(whole)


def test_rows_that_end_leave_and_the_others_go_on() -> None:
    """Ends of either model end the response; who ends early changes nothing for the rest."""
    rows = greedy_by_hand("llama", (0.5, 0.5))
    first = rows[0][5]
    second = next(t for t in rows[3][3:] if t not in rows[0][:6] and t != first)
    ends = {"a": [first], "b": [second]}
    made = {n: backend(n, loaded(seed=i), prompt=IDS, eos=ends[n]) for i, n in enumerate("ab")}
    method = ProbabilityAverage(CandidatePool(made, GREEDY), max_new_tokens=NEW)
    done = method.generate(QUERIES)
    wanted = []
    for row in rows:
        at = [place for place, token in enumerate(row) if token in (first, second)]
        wanted.append(row[: at[0]] if at else row)
    assert texts(done) == wanted
    reasons = ["eos" if len(row) < NEW else "length" for row in wanted]
    assert [c.finish_reason for c in done] == reasons
    assert len(set(reasons)) == 2 and len(set(map(len, wanted))) > 2
    for prompt, completion, reason in zip(PROMPTS, done, reasons, strict=True):
        length = len(prompt) + len(written(completion))
        for name in "ab":
            usage = completion.usage[name]
            assert usage.prefill_positions == len(prompt)
            assert usage.positions == (length if reason == "eos" else length - 1)
            assert usage.seconds > 0 and usage.tokens_written == 0
        assert completion.usage[AVERAGE].tokens_written == len(written(completion))
        assert completion.usage[AVERAGE].positions == 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_share_a_session(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pool = load(folder, "red", "base", "blue")
    opened = []
    new_session = LoadedModel.new_session
    monkeypatch.setattr(
        LoadedModel, "new_session", lambda self: opened.append(self) or new_session(self)
    )
    queries = ["the quick brown fox", "a", "what is two plus two"]
    done = ProbabilityAverage(pool, [1, 2, 3], max_new_tokens=12).generate(queries)
    assert len(opened) == 1
    models = [merged(folder, name) for name in ("red", "base", "blue")]
    for query, completion in zip(queries, done, strict=True):
        ids = pool["red"].render(query)
        length = len(ids)
        for _ in range(12):
            ids.append(int(average_by_hand(models, (1 / 6, 2 / 6, 3 / 6), ids).argmax()))
        assert written(completion) == ids[length:]
        assert set(completion.usage) == {"red", "base", "blue", AVERAGE}


def test_ids_that_one_cannot_read_have_probability_zero() -> None:
    """One checkpoint has an added token that it always wants to write."""
    plain, wider = tokenizer(), tokenizer.__wrapped__(extra="<extra>")
    extra = wider.convert_tokens_to_ids("<extra>")
    big = build("llama", seed=1, vocabulary=extra + 1)
    with torch.no_grad():
        big.lm_head.weight[extra] = 30 * big.lm_head.weight[:extra].abs().max()
    one = backend("one", loaded(), prompt=IDS, tokens=plain)
    two = backend("two", LoadedModel(big, "two"), prompt=IDS, tokens=wider)
    pool = CandidatePool({"one": one, "two": two}, GREEDY)
    done = ProbabilityAverage(pool, max_new_tokens=NEW).generate(QUERIES)
    assert any(fresh_logits(big, prompt).argmax() == extra for prompt in PROMPTS)
    for prompt, completion in zip(PROMPTS, done, strict=True):
        ids = list(prompt)
        for _ in range(NEW):
            first = fresh_logits(loaded().model, ids).softmax(-1)
            second = fresh_logits(big, ids)[:extra].softmax(-1)
            ids.append(int((first + second).argmax()))
        assert written(completion) == ids[len(prompt) :]
    # As the end of its response the token stays, with the weight of who wants it.
    two = backend("two", LoadedModel(big, "two"), prompt=IDS, tokens=wider, eos=[extra])
    pool = CandidatePool({"one": one, "two": two}, GREEDY)
    ended = ProbabilityAverage(pool, [0.01, 0.99], max_new_tokens=NEW).generate(QUERIES)
    assert "eos" in {c.finish_reason for c in ended}
    assert extra not in {token for c in ended for token in written(c)}


def test_stop_strings_and_full_contexts() -> None:
    script = says("one two three. four", "?")
    pool = CandidatePool({n: Scripted(n, script) for n in "ab"}, GREEDY)
    [done] = ProbabilityAverage(pool, stop=["ee. f", "never"]).generate(["?"])
    assert (done.text, done.finish_reason) == ("one two thr", "stop")
    [done] = ProbabilityAverage(pool, stop="two").generate(["?"])
    assert done.text == "one "
    [done] = ProbabilityAverage(pool).generate(["?"])
    assert (done.text, done.finish_reason) == ("one two three. four", "eos")
    tight = {"a": Scripted("a", script), "b": Scripted("b", script, context=8)}
    [done] = ProbabilityAverage(CandidatePool(tight, GREEDY)).generate(["?"])
    assert (done.text, done.finish_reason) == ("one two", "context")
    [done] = ProbabilityAverage(CandidatePool(tight, GREEDY), max_new_tokens=7).generate(["?"])
    assert (done.text, done.finish_reason) == ("one two", "length")
    for name in "ab":
        assert tight[name].stepper.open_lanes == 0
    silent = CandidatePool({"a": Scripted("a", lambda ids: EOS)}, GREEDY)
    [done] = ProbabilityAverage(silent).generate(["?"])
    assert (done.text, done.segments, done.finish_reason) == ("", (), "eos")
    assert ProbabilityAverage(silent).generate([]) == []


def test_refusals() -> None:
    pool = pair()
    for weights in ([1.0], [1, -1], [0, 0], [float("nan"), 1], [float("inf"), 1]):
        with pytest.raises(InputError, match="the weights of the average are"):
            ProbabilityAverage(pool, weights)
    other = {"a": backend("a"), "b": backend("b", tokens=tokenizer(text="sea"))}
    with pytest.raises(InputError, match=r"of 'a' and 'b' cannot be averaged: .*tokens"):
        ProbabilityAverage(CandidatePool(other))
    asked = {"a": Scripted("a", letters("a")), "b": Asked("b", letters("b"))}
    with pytest.raises(CapabilityError, match=r"the probability average needs .*'Steps'.*'b'"):
        ProbabilityAverage(CandidatePool(asked))
    mixed = CandidatePool(pool.backends, {"a": GREEDY, "b": SamplingParams()})
    with pytest.raises(InputError, match="drawn in different ways"):
        ProbabilityAverage(mixed)
    ProbabilityAverage(mixed, sampling=GREEDY)
    with pytest.raises(InputError, match="temperature is -1"):
        ProbabilityAverage(pool, sampling=SamplingParams(temperature=-1))
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        ProbabilityAverage(pool, max_new_tokens=0)
    method = ProbabilityAverage(pool)
    with pytest.raises(InputError, match="prompt 2 has no tokens for candidate 'a'"):
        method.generate([QUERIES[0], ""])
    with pytest.raises(InputError, match="prompt 1 is 300 tokens long for candidate 'a'"):
        method.generate([as_query([7] * 300)])
    with pytest.raises(InputError, match="1 seeds for 2 queries"):
        method.generate(QUERIES[:2], seeds=[1])
    with pytest.raises(TypeError, match="queries is a list"):
        method.generate("one")
