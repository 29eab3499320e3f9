"""What a candidate learns of a pool's answers, and the arithmetic of the comparison."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from antiphon.backends.vocabulary import TokenizerVocabulary
from antiphon.config import CandidateConfig, GenerateConfig, PolicyConfig, SamplingConfig
from antiphon.errors import CapabilityError, InputError
from antiphon.evaluation.generation import Item
from antiphon.evaluation.scoring import MetricScorer
from antiphon.training.distill_answers import Answers, compare, cost, score
from antiphon.training.distill_examples import Learner, select
from antiphon.training.distill_settings import DistillConfig
from antiphon.training.distillation import alone, check_test, distilled_candidate
from antiphon.training.finetuning import TrainConfig
from antiphon.types import FORCED, Completion, FinishReason, Message, ModelUsage, Segment
from tests.tiny import build, tokenizer

pytest.importorskip("accelerate")
pytest.importorskip("peft")

END = 2


def completion(
    text: str, *segments: tuple[str, str, Sequence[int]], end: FinishReason = "eos", seed: int = 0
) -> Completion:
    made = tuple(Segment(name, part, tuple(ids)) for name, part, ids in segments)
    return Completion(text, end, made, {}, seed)


def learner(shared: Sequence[str] = ("P", "A", FORCED), **prompt: object) -> Learner:
    """A learns; ids of ordinary tokens are shared with the given writers."""
    vocabulary = TokenizerVocabulary(tokenizer(), "A")
    config = CandidateConfig(name="A", model="nowhere", prompt={"kind": "raw", **prompt})
    common = frozenset(vocabulary.tokens.values()) - {5}
    return Learner(config, vocabulary, END, dict.fromkeys(shared, common))


def encode(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False))


# -- examples ------------------------------------------------------------------------------------
def test_an_answer_is_learned_as_it_was_written_and_then_its_end() -> None:
    # Spelled byte by byte: no tokenizer would write it so.
    odd = [id for char in " the quick" for id in encode(char)]
    assert odd != encode(" the quick")
    written = completion(
        " the quick so fox",
        ("P", " the quick", odd),
        (FORCED, " so", encode(" so")),
        ("A", " fox", encode(" fox")),
    )
    example, anew = learner().example("what?", written)
    assert example.prompt == tuple(tokenizer().encode("what?"))  # as it asks: start tokens too
    assert list(example.completion) == [*odd, *encode(" so"), *encode(" fox"), END]
    assert not anew


def test_the_query_is_rendered_as_the_candidate_is_asked() -> None:
    asked = learner(kind="plain", turn="<{role}|{content}>", opening="!", add_bos=False)
    chat = (Message("user", "two plus two"), Message("assistant", "four"), Message("user", "so?"))
    example, _ = asked.example(chat, completion(" x", ("A", " x", encode(" x"))))
    assert list(example.prompt) == encode("<User|two plus two><Assistant|four><User|so?>!")
    again, _ = asked.example(chat, completion("", ("A", "", ())))
    assert again.group == example.group != asked.example("so?", completion(""))[0].group
    assert again.completion == (END,)  # an empty answer is one


def test_a_cut_answer_gets_no_end() -> None:
    text = " the bird \u2603"
    for reason in ("length", "context"):
        cut = completion(text, ("P", text, encode(text)), end=reason)
        assert list(learner().example("q", cut)[0].completion) == encode(text)
    torn = encode(text)[:-1]  # inside the snowman's three bytes
    cut = completion(" the bird \ufffd", ("P", " the bird \ufffd", torn), end="length")
    assert list(learner().example("q", cut)[0].completion) == torn
    example, anew = learner(shared=()).example("q", cut)
    assert anew and tokenizer().decode(example.completion) == " the bird "


def test_text_of_another_vocabulary_is_encoded_anew() -> None:
    other = tokenizer(text="sea").encode(" waves and sea shells", add_special_tokens=False)
    own = encode(" waves and sea shells")
    assert other != own
    written = completion(" waves and sea shells", ("S", " waves and sea shells", other))
    example, anew = learner().example("q", written)
    assert anew and list(example.completion) == [*own, END]


def test_ids_that_do_not_say_the_answer_are_encoded_anew() -> None:
    whole = encode(" four; the rest")
    stopped = completion(" four", ("A", " four", whole), end="stop")
    example, anew = learner().example("q", stopped)
    assert anew and list(example.completion) == [*encode(" four"), END]
    # A token that the learner reads otherwise, or has not at all, is not taught.
    for foreign in (5, 9999):
        odd = completion(" four", ("P", " four", [*encode(" four"), foreign]))
        example, anew = learner().example("q", odd)
        assert anew and list(example.completion) == [*encode(" four"), END]


def pool_of(tmp_path: Path, **over: object) -> GenerateConfig:
    """P and A of one vocabulary, S of another; configurations and tokenizers, no weights."""
    for name, kind in (("P", {}), ("A", {"extra": "<a>", "chat": True}), ("S", {"text": "sea"})):
        build("llama", num_hidden_layers=2).config.save_pretrained(tmp_path / name)
        tokenizer.__wrapped__(**kind).save_pretrained(tmp_path / name)
    voices = [CandidateConfig(name=n, model=str(tmp_path / n)) for n in "PAS"]
    return GenerateConfig(candidates=voices, **over)


def test_the_learner_knows_who_shares_its_vocabulary(tmp_path: Path) -> None:
    config = pool_of(tmp_path)
    found = Learner.of(config, "A", TrainConfig())
    assert found.end == END
    assert set(found.shared) == {"P", "A", FORCED}  # forced text is in the first one's ids
    added = len(tokenizer())
    assert added in found.shared["A"] and added not in found.shared["P"]
    assert set(Learner.of(config, "S", TrainConfig()).shared) == {"S"}
    with pytest.raises(InputError, match="no candidate 'B'") as caught:
        Learner.of(config, "B", TrainConfig())
    assert "A, P, S" in caught.value.remedy


def test_a_candidate_that_cannot_be_tuned_is_refused_by_name(tmp_path: Path) -> None:
    config = pool_of(tmp_path)
    bits = config.candidates[1].model_copy(update={"quantization": {"load_in_4bit": True}})
    with pytest.raises(CapabilityError, match="quantized"):
        Learner.of(config.model_copy(update={"candidates": [bits]}), "A", TrainConfig())
    shutil.rmtree(tmp_path / "S")
    with pytest.raises(InputError, match="there is no directory"):
        Learner.of(config, "A", TrainConfig())


# -- selection -----------------------------------------------------------------------------------
ENDS: list[FinishReason] = ["eos", "length", "stop", "eos", "context", "eos"]
SIX = [completion(f" {index}", end=end) for index, end in enumerate(ENDS)]
SCORES = [0.5, 1.0, 0.25, 1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 2, 3, 5]),
        ({"min_score": 0.5}, [0, 3, 5]),
        ({"min_score": 0.75}, [3]),
        ({"min_score": 1.0, "keep_cut": True}, [1, 3]),
        ({"keep_best": 0.5}, [0, 3]),  # of the equal answers 0 and 5 the first
        ({"keep_best": 0.51}, [0, 3, 5]),
        ({"keep_best": 0.01}, [3]),
        ({"keep_best": 1.0, "keep_cut": True}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_selection(settings: dict[str, float], kept: list[int]) -> None:
    whole, found = select(SIX, SCORES, DistillConfig(**settings))
    assert found == kept
    assert whole == (list(range(6)) if "keep_cut" in settings else [0, 2, 3, 5])


def test_an_empty_rest_says_what_the_answers_scored() -> None:
    with pytest.raises(InputError, match=r"none of 4 answers \(2 more were cut\) scores at") as e:
        select(SIX, SCORES, DistillConfig(min_score=1.5))
    assert "1 score 0.25, 2 score 0.5, 1 score 1" in e.value.message
    many = [completion(" x")] * 9
    with pytest.raises(InputError, match=r"lowest scores 0, the median 0\.4, the highest 0\.8"):
        select(many, [index / 10 for index in range(9)], DistillConfig(min_score=1.0))
    cut = [completion(" x", end="length")] * 3
    with pytest.raises(InputError, match=r"all 3 answers were cut .*\(3 score 1\)") as e:
        select(cut, [1.0] * 3, DistillConfig())
    assert "--keep-cut" in e.value.remedy
    # Nothing can be learned of an answer that was cut before it began.
    with pytest.raises(InputError, match="all 1 answers were cut"):
        select([completion("\ufffd", end="length")], [1.0], DistillConfig(keep_cut=True))


def test_two_filters_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="give one"):
        DistillConfig(min_score=1.0, keep_best=0.5)
    for wrong in ({"keep_best": 0.0}, {"keep_best": 1.5}, {"min_score": float("nan")}):
        with pytest.raises(ValueError):
            DistillConfig(**wrong)


# -- comparison ----------------------------------------------------------------------------------
def answers(count: int, tokens: int, positions: dict[str, int], seconds: float | None) -> Answers:
    """``count`` responses of so many tokens each."""
    usage = {
        name: ModelUsage(prefill_positions=n - 1, decode_positions=1)
        for name, n in positions.items()
    }
    one = Completion(" x", "eos", (Segment("A", " x", tuple(range(tokens))),), usage, 0)
    return Answers([one] * count, seconds)


def metric(low: float = 0.0, high: float = 1.0) -> MetricScorer:
    def rule(text: str, fields: dict[str, object]) -> float:
        return 0.0

    rule.low, rule.high = low, high  # type: ignore[attr-defined]
    return MetricScorer("rule", rule, "rule")


def compared(
    pool: Sequence[float],
    before: Sequence[float],
    after: Sequence[float],
    scorer: MetricScorer | None = None,
    same: bool = False,
) -> dict[str, object]:
    items = [Item("q" if same else f"q{index}") for index in range(len(pool))]
    made = {
        "pool": answers(len(pool), 10, {"P": 30, "A": 20, "switcher": 10}, 0.5),
        "before": answers(len(pool), 8, {"A": 16}, 0.2),
        "after": answers(len(pool), 5, {"A": 10}, 0.125),
    }
    scores = {"pool": pool, "before": before, "after": after}
    return compare(scorer or metric(), items, made, scores)


def test_the_share_of_the_gain_that_is_kept() -> None:
    pool = [1.0] * 16 + [0.0] * 4
    before = [1.0] * 4 + [0.0] * 16
    after = [1.0] * 10 + [0.0] * 10
    found = compared(pool, before, after)
    assert {m: s["mean"] for m, s in found["score"].items()} == {
        "pool": 0.8,
        "before": 0.2,
        "after": 0.5,
    }
    gain = found["gain"]
    assert gain["pool"]["mean"] == pytest.approx(0.6)
    assert gain["after"]["mean"] == pytest.approx(0.3)
    assert found["gain_kept"] == pytest.approx(0.5)
    # All twelve, or six, differences have one sign: McNemar's exact test.
    assert gain["pool"]["p_value"] == pytest.approx(2 * 0.5**12)
    assert gain["after"]["p_value"] == pytest.approx(2 * 0.5**6)
    interval = found["gain_kept_interval"]
    assert 0.0 <= interval["low"] < 0.5 < interval["high"] <= 1.0
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 20, size=(4000, 20))
    above, below = np.subtract(after, before)[drawn].mean(1), np.subtract(pool, before)[drawn]
    low, high = np.quantile(above / below.mean(1), [0.025, 0.975])
    assert interval["low"] == pytest.approx(low, abs=0.04)
    assert interval["high"] == pytest.approx(high, abs=0.04)


def test_no_gain_to_keep() -> None:
    some = [0.1, 0.2, 0.3, 0.0, 0.0, 0.0]
    # The same scores in another order, whose plain sums differ in the last bit.
    assert (0.1 + 0.2) + 0.3 > (0.3 + 0.2) + 0.1
    found = compared(some, some[::-1], [1.0] * 6)
    assert found["gain"]["pool"]["mean"] == 0.0
    assert found["gain_kept"] is None and found["gain_kept_interval"] is None
    worse = compared([0.0] * 6, some, some)
    assert worse["gain_kept"] is None and worse["gain"]["pool"]["mean"] == pytest.approx(-0.1)
    # A gain that some resamples do not show is a share without an interval.
    unsure = compared([1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0])
    assert unsure["gain_kept"] == pytest.approx(1.0)
    assert unsure["gain_kept_interval"] is None


def test_costs_and_their_ratios() -> None:
    found = compared([1.0] * 4, [0.0] * 4, [1.0] * 4)["cost"]
    assert found["pool"] == {
        "responses": 4,
        "tokens": 40,
        "tokens_per_response": 10.0,
        "positions": 240,
        "positions_per_token": 6.0,
        "positions_per_response": 60.0,
        "models": {"P": 120, "A": 80, "switcher": 40},
        "seconds_per_response": 0.5,
    }
    assert found["after_to_pool"] == {
        "tokens_per_response": 0.5,
        "positions_per_token": pytest.approx(1 / 3),
        "positions_per_response": pytest.approx(1 / 6),
        "seconds_per_response": 0.25,
    }
    silent = cost(Answers([Completion("", "eos", (), {"A": ModelUsage(3, 1)}, 0)]))
    assert silent["positions_per_token"] is None and silent["seconds_per_response"] is None
    assert silent["positions_per_response"] == 4.0


def test_intervals_of_scores_with_other_bounds() -> None:
    plain = compared([0.0, 1.0, 1.0], [0.0] * 3, [1.0] * 3)["score"]
    wide = compared([-5.0, 5.0, 5.0], [-5.0] * 3, [5.0] * 3, metric(-5, 5))["score"]
    for method, found in plain.items():
        for end, value in found.items():
            assert wide[method][end] == pytest.approx(10 * value - 5), (method, end)
    assert wide["before"]["high"] > -5 and wide["after"]["low"] < 5  # exact, not of no width
    reward = compared([2.0, 4.0], [1.0, 1.0], [3.0, 3.0], metric(-np.inf, np.inf))
    assert reward["score"]["pool"]["mean"] == 3.0 and reward["gain_kept"] == pytest.approx(1.0)
    # Answers to one query are one item: nothing is left to resample.
    one = compared([0.0, 1.0], [0.0, 0.5], [0.5, 0.5], same=True)
    assert one["score"]["pool"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert one["gain"]["pool"] == {"mean": 0.25, "low": 0.25, "high": 0.25, "p_value": 1.0}


def test_scores_of_the_same_answers_are_not_computed_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def rule(text: str, fields: dict[str, object]) -> float:
        calls.append(text)
        return len(text) / 10

    items = [Item("a", {"input": "a"}), Item("b", {"input": "b"})]
    made = [completion("one"), completion("seven")]
    file = tmp_path / "scores.json"
    for scorer, texts, expected in (
        (MetricScorer("r", rule, "v1"), made, 2),
        (MetricScorer("r", rule, "v1"), made, 2),
        (MetricScorer("r", rule, "v2"), made, 4),
        (MetricScorer("r", rule, "v2"), [completion("one"), completion("eight")], 6),
    ):
        assert score(file, scorer, items, texts) == [0.3, 0.5]
        assert len(calls) == expected
    file.write_text('{"key": ', encoding="utf-8")
    assert score(file, MetricScorer("r", rule, "v2"), items, made) == [0.3, 0.5]
    assert len(calls) == 8


# -- alone ---------------------------------------------------------------------------------------
def test_alone_the_candidate_takes_no_turns(tmp_path: Path) -> None:
    config = pool_of(
        tmp_path,
        policy=PolicyConfig(kind="round_robin"),
        first="P",
        last="S",
        final_prompt=" so",
        on_eos="handover",
        stop=[";"],
        segment_tokens=3,
        max_new_tokens=20,
        seed=7,
        boundary={"kind": "sentence"},
    )
    own = config.candidates[1]
    found = alone(config, own)
    assert [c.name for c in found.candidates] == ["A"]
    assert found.policy.kind == "fixed" and found.policy.candidate == "A"
    assert (found.first, found.last, found.final_prompt, found.on_eos) == (None, None, "", "stop")
    assert (found.segment_tokens, found.boundary.kind) == (20, "tokens")
    kept = ("sampling", "stop", "max_new_tokens", "seed", "batch_rows")
    assert all(getattr(found, name) == getattr(config, name) for name in kept)
    assert GenerateConfig.model_validate(found.model_dump()) == found


def test_the_tuned_candidate_is_asked_and_sampled_as_before(tmp_path: Path) -> None:
    voice = CandidateConfig(
        name="A",
        model="hub/base",
        adapter="hub/adapter",
        revision="abc",
        sampling=SamplingConfig(temperature=0.3),
        prompt={"kind": "plain", "opening": ">"},
    )
    config = GenerateConfig(candidates=[voice])
    model = tmp_path / "model"
    model.mkdir()
    found = distilled_candidate(config, "A", tmp_path)
    changed = {"model": str(model), "adapter": None, "revision": None}
    assert found == voice.model_copy(update=changed)
    (model / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert distilled_candidate(config, "A", tmp_path).revision == "abc"  # of its base


def test_queries_that_are_learned_are_no_test(tmp_path: Path) -> None:
    config = pool_of(tmp_path)
    learned = [Item("what is two?"), Item((Message("user", "and three?"),))]
    test = [Item("what  is two?\n"), Item("and three?"), Item("and four?")]
    with pytest.raises(InputError, match="2 of 3 test queries are among the training queries"):
        check_test(config, test, metric(), learned)
    check_test(config, test, metric(), learned, allow_overlap=True)
    check_test(config, test[2:], metric(), learned)
    with pytest.raises(InputError, match=r"test prompt 2 is \d+ tokens long for candidate 'P'"):
        check_test(config, [Item("x"), Item("fox " * 300)], metric(), learned)
    with pytest.raises(InputError, match="test prompt 1: the prompt is empty"):
        check_test(config, [Item(" ")], metric(), learned)
