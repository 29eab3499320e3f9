"""A row's tokens depend on its query and its seed, never on what is computed beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from antiphon.decoding.boundaries import EntropyAbove, EveryTokens, SentenceEnd
from antiphon.decoding.policies import Fixed, Policy, RoundRobin, Schedule, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.switcher import LMSwitcher
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import GREEDY, Completion, SamplingParams
from tests.tiny import backend, loaded, three, tokenizer, written

QUERIES = [
    "the quick brown fox",
    "a",
    "what is two plus two? it is",
    "jumps",
    "the lazy dog. the lazy dog. the lazy dog.",
    "?",
]
SEEDS = [11, 7, 5, 3, 2, 1]
PAPER = SamplingParams(temperature=0.7, top_p=0.9)

POLICIES: dict[str, Callable[[], Policy]] = {
    "uniform": Uniform,
    "fixed": lambda: Fixed("b"),
    "round robin": RoundRobin,
    "schedule": lambda: Schedule(["c", "a", "a", "b"], repeat=True),
    "switcher": lambda: LMSwitcher(backend("switcher", loaded("llama", 9))),
    "switcher, argmax": lambda: LMSwitcher(backend("switcher", loaded("llama", 9)), top_p=None),
}


def essence(done: Completion) -> tuple[object, ...]:
    return (
        done.text,
        done.finish_reason,
        [(segment.candidate, segment.token_ids) for segment in done.segments],
    )


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return POLICIES[request.param]()


def run(pool: CandidatePool, policy: Policy, **options: object) -> list[Completion]:
    method = SwitchGeneration(
        pool, policy, **{"max_new_tokens": 24, "boundary": EveryTokens(5), **options}
    )
    return method.generate(QUERIES, seeds=SEEDS)


def test_alone_or_together(policy: Policy) -> None:
    pool = three(sampling=PAPER)
    method = SwitchGeneration(pool, policy, max_new_tokens=24, boundary=EveryTokens(5))
    together = method.generate(QUERIES, seeds=SEEDS)
    assert len({done.text for done in together}) == len(QUERIES)
    for query, seed, done in zip(QUERIES, SEEDS, together, strict=True):
        (alone,) = method.generate([query], seeds=[seed])
        assert essence(alone) == essence(done)


def test_in_any_order(policy: Policy) -> None:
    method = SwitchGeneration(
        three(sampling=PAPER), policy, max_new_tokens=24, boundary=EveryTokens(5)
    )
    forwards = method.generate(QUERIES, seeds=SEEDS)
    backwards = method.generate(QUERIES[::-1], seeds=SEEDS[::-1])[::-1]
    assert list(map(essence, forwards)) == list(map(essence, backwards))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_however_many_at_once(policy: Policy, rows: int) -> None:
    pool = three(sampling=PAPER)
    few = run(pool, policy, batch_rows=rows)
    many = run(pool, policy, batch_rows=64)
    assert list(map(essence, few)) == list(map(essence, many))


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "gpt2", "falcon_h1"])
def test_in_other_families(kind: str) -> None:
    pool = three(kind, sampling=PAPER)
    few = run(pool, Uniform(), batch_rows=1)
    assert list(map(essence, few)) == list(map(essence, run(pool, Uniform())))


@pytest.mark.parametrize(
    "options",
    [
        {"boundary": SentenceEnd(6)},
        {"boundary": EntropyAbove(5.3, 8)},
        {"stop": ("e", "th")},
        {"first": "c", "last": "a", "final_prompt": " so"},
        {"exchange": "text"},
    ],
    ids=lambda options: ", ".join(options),
)
def test_under_every_option(options: dict[str, object]) -> None:
    pool = three(sampling=PAPER)
    few = run(pool, Uniform(), batch_rows=1, **options)
    many = run(pool, Uniform(), **options)
    assert list(map(essence, few)) == list(map(essence, many))
    assert len({len(done.segments) for done in many}) > 1 or "first" in options


def test_with_ends_of_sequence_and_hand_overs() -> None:
    # Ids that these models often write end their turns.
    plain = run(three(sampling=PAPER), Uniform())
    often = [written(done)[6] for done in plain[:3]]
    pool = three(sampling=PAPER, eos=often)
    for on_eos in ("stop", "handover"):
        few = run(pool, Uniform(), batch_rows=1, on_eos=on_eos)
        many = run(pool, Uniform(), on_eos=on_eos)
        assert list(map(essence, few)) == list(map(essence, many))
        if on_eos == "stop":
            assert {done.finish_reason for done in few} == {"eos", "length"}
        else:
            assert min(len(written(done)) for done in few) > 6


def test_in_pools_of_several_vocabularies() -> None:
    pool = CandidatePool(
        {
            "fox": backend("fox", loaded("llama", 0)),
            "sea": backend("sea", loaded("llama", 1), tokens=tokenizer("bytes", "sea")),
            "mixed": backend("mixed", loaded("gpt2", 2), tokens=tokenizer("bytes", "sea")),
        },
        PAPER,
    )
    few = run(pool, Uniform(), batch_rows=1)
    assert list(map(essence, few)) == list(map(essence, run(pool, Uniform())))


def test_candidates_may_draw_differently() -> None:
    backends = {name: backend(name, loaded("llama", s)) for s, name in enumerate("abc")}
    mixed = CandidatePool(backends, {"a": GREEDY, "b": SamplingParams(1.5, 1.0), "c": PAPER})
    few = run(mixed, Uniform(), batch_rows=1)
    many = run(mixed, Uniform())
    assert list(map(essence, few)) == list(map(essence, many))
    greedy = run(CandidatePool(backends, GREEDY), Fixed("a"))
    assert list(map(essence, run(mixed, Fixed("a")))) == list(map(essence, greedy))


def test_the_seed_changes_what_is_drawn_and_row_seeds_come_from_it() -> None:
    method = SwitchGeneration(three(sampling=PAPER), max_new_tokens=24, boundary=EveryTokens(5))
    first, again, other = (method.generate(["a", "a"], seed=seed) for seed in (0, 0, 1))
    assert list(map(essence, first)) == list(map(essence, again))
    assert essence(first[0]) != essence(other[0])
    assert essence(first[0]) != essence(first[1]), "rows of one run have seeds of their own"
    (replayed,) = method.generate(["a"], seeds=[first[1].seed])
    assert essence(replayed) == essence(first[1])


def test_segment_length_does_not_change_one_models_draws() -> None:
    pool = three(sampling=PAPER)
    texts = {
        length: [done.text for done in run(pool, Fixed("b"), boundary=EveryTokens(length))]
        for length in (1, 4, 50)
    }
    assert texts[1] == texts[4] == texts[50]
