"""Options of turn-taking, each with models that say exactly what the case needs."""

from __future__ import annotations

import json

import pytest

from antiphon.backends.transformers import LoadedModel
from antiphon.backends.vocabulary import TokenizerVocabulary
from antiphon.decoding.boundaries import EveryTokens
from antiphon.decoding.engine import Engine, Finished, TurnOptions
from antiphon.decoding.policies import Fixed, RoundRobin, Schedule, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.rows import Candidate
from antiphon.decoding.switcher import LMSwitcher
from antiphon.errors import CapabilityError, InputError
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import FORCED, GREEDY, Completion, SamplingParams
from tests.scripted import EOS, Asked, Script, Scripted, always, letters, says
from tests.tiny import IDS, as_query, backend, build, loaded, random_ids, tokenizer, written


def pool_of(*scripts: Script, **options: object) -> CandidatePool:
    """Candidates a, b, ... with these scripts."""
    return CandidatePool(
        {
            name: Scripted(name, script, **options)
            for name, script in zip("abcdef", scripts, strict=False)
        },
        GREEDY,
    )


def take_turns(pool: CandidatePool, *, segment: int = 3, **options: object) -> Completion:
    options = {"max_new_tokens": 24, "policy": RoundRobin(), **options}
    method = SwitchGeneration(pool, boundary=EveryTokens(segment), **options)
    (done,) = method.generate(["?"])
    assert "".join(part.text for part in done.segments) == done.text
    return done


def ends_after(count: int, letter: str) -> Script:
    """``letter`` until the answer to ``?`` has ``count`` tokens, then the end of sequence."""
    return lambda ids: ord(letter) if len(ids) - 1 < count else EOS


# -- length ------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 3, 7, 24])
def test_a_response_has_at_most_max_new_tokens(count: int) -> None:
    done = take_turns(pool_of(letters("a"), letters("b")), max_new_tokens=count)
    assert done.text == ("aaabbb" * 5)[:count]
    assert done.finish_reason == "length"
    assert sum(usage.tokens_written for usage in done.usage.values()) == count


def test_defaults_are_the_papers() -> None:
    options = TurnOptions()
    assert (options.max_new_tokens, options.boundary.cap) == (512, 50)
    assert SamplingParams() == SamplingParams(temperature=0.7, top_p=0.9)


# -- ends of sequence --------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 3, 4, 6, 8])
def test_an_end_of_sequence_ends_the_response(count: int) -> None:
    done = take_turns(pool_of(letters("a"), ends_after(count, "b")))
    # b is asked at the response's tokens 3..5, 9..11 and so on.
    want = {1: "aaa", 3: "aaa", 4: "aaab", 6: "aaabbbaaa", 8: "aaabbbaaa"}[count]
    assert (done.text, done.finish_reason) == (want, "eos")
    assert EOS not in written(done)


def test_an_end_of_sequence_can_hand_over() -> None:
    pool = pool_of(letters("a"), lambda ids: ord("b") if ids[-1] != ord("b") else EOS)
    done = take_turns(pool, on_eos="handover", max_new_tokens=12)
    assert (done.text, done.finish_reason) == ("aaabaaabaaab", "length")


@pytest.mark.parametrize("policy", [RoundRobin(), Uniform()], ids=["round robin", "uniform"])
def test_who_ends_without_a_word_hands_over_too(policy: object) -> None:
    """One candidate has nothing to say; the others go on without it."""
    done = take_turns(pool_of(always(EOS), letters("b")), on_eos="handover", policy=policy)
    assert (done.text, done.finish_reason) == ("b" * 24, "length")


def test_a_silent_first_candidate_hands_over() -> None:
    pool = pool_of(always(EOS), letters("b"))
    done = take_turns(pool, on_eos="handover", first="a")
    assert done.text == "b" * 24


@pytest.mark.parametrize("count", [1, 2, 5])
def test_when_all_end_at_once_the_response_ends(count: int) -> None:
    pool = pool_of(*[always(EOS)] * count)
    for on_eos in ("stop", "handover"):
        for policy in (RoundRobin(), Uniform(), Fixed("a")):
            done = take_turns(pool, on_eos=on_eos, policy=policy)
            assert (done.text, done.finish_reason, done.segments) == ("", "eos", ())


def test_when_all_have_ended_after_some_text_the_response_ends() -> None:
    pool = pool_of(ends_after(4, "a"), ends_after(4, "b"))
    done = take_turns(pool, on_eos="handover")
    assert (done.text, done.finish_reason) == ("aaab", "eos")


# -- stop strings ------------------------------------------------------------------------------
TEXT = "One fish two fish. Red fish, blue fish!"


@pytest.mark.parametrize("segment", [1, 2, 3, 4, 5, 6, 50])
@pytest.mark.parametrize(
    "stop", [("fish. R",), (" two", "fish. "), ("!",), ("O",), ("sh, ", "Red")]
)
@pytest.mark.parametrize("exchange", ["auto", "text"])
def test_stop_strings_cut_the_text_wherever_segments_end(
    segment: int, stop: tuple[str, ...], exchange: str
) -> None:
    script = says(TEXT, "?")
    done = take_turns(
        pool_of(script, script), segment=segment, stop=stop, max_new_tokens=99, exchange=exchange
    )
    assert done.text == TEXT[: min(TEXT.index(s) for s in stop if s in TEXT)]
    assert done.finish_reason == "stop"


def test_stop_strings_that_do_not_come_change_nothing() -> None:
    script = says(TEXT, "?")
    done = take_turns(pool_of(script, script), stop=("cat", "fishes"), max_new_tokens=99)
    assert (done.text, done.finish_reason) == (TEXT, "eos")


def test_a_stop_string_in_the_prompt_is_no_stop() -> None:
    script = says("abc", "?")
    done = take_turns(pool_of(script), stop=("?a", "?"), max_new_tokens=99)
    assert (done.text, done.finish_reason) == ("abc", "eos")


def test_stop_strings_may_hold_characters_of_several_bytes() -> None:
    script = says("fox 🦊 end 🦊🦊 never", "?")
    done = take_turns(pool_of(script, script), segment=2, stop=("🦊🦊",), max_new_tokens=99)
    assert (done.text, done.finish_reason) == ("fox 🦊 end ", "stop")


# -- first, last, final prompt -----------------------------------------------------------------
def test_first_writes_the_first_segment_and_the_policy_the_rest() -> None:
    pool = pool_of(letters("a"), letters("b"), letters("c"))
    assert take_turns(pool, first="c", policy=Fixed("a"), max_new_tokens=9).text == "cccaaaaaa"


@pytest.mark.parametrize("count", [1, 3, 4, 8, 9, 10])
def test_last_writes_the_segment_that_fills_the_response(count: int) -> None:
    pool = pool_of(letters("a"), letters("b"))
    done = take_turns(pool, last="b", policy=Fixed("a"), max_new_tokens=count)
    assert len(done.text) == count
    assert done.segments[-1].candidate == "b"
    assert 1 <= len(done.segments[-1].token_ids) <= 3
    assert set(done.text[: -len(done.segments[-1].token_ids)]) <= {"a"}


@pytest.mark.parametrize("count", [4, 5, 8, 9, 10, 11])
def test_the_final_prompt_stands_before_the_last_segment(count: int) -> None:
    pool = pool_of(letters("a"), letters("b"))
    done = take_turns(pool, last="b", policy=Fixed("a"), final_prompt="So:", max_new_tokens=count)
    assert done.text.count("So:") == 1
    before, after = done.text.split("So:")
    assert set(before) <= {"a"}
    assert 1 <= len(after) <= 3
    assert set(after) == {"b"}
    assert len(done.text) <= count
    forced = [part for part in done.segments if part.candidate == FORCED]
    assert [part.text for part in forced] == ["So:"]
    assert done.usage["b"].tokens_written == len(after)


def test_a_response_that_ends_early_still_gets_its_final_prompt() -> None:
    done = take_turns(
        pool_of(ends_after(2, "a"), letters("b")), last="b", final_prompt=" So:", segment=5
    )
    assert (done.text, done.finish_reason) == ("aa So:bbbbb", "length")
    done = take_turns(
        pool_of(says("x So: y", "?"), letters("b")),
        segment=50,
        max_new_tokens=99,
        final_prompt=" So:",
    )
    assert (done.text, done.finish_reason) == ("x So: y", "eos"), "it is there already"


def test_the_policy_does_not_count_forced_text_as_a_turn() -> None:
    pool = pool_of(letters("a"), letters("b"))
    done = take_turns(
        pool, final_prompt="!", max_new_tokens=10, policy=Schedule(["a", "b", "a", "b"])
    )
    assert done.text == "aaabbb!aaa"


# -- context -----------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [2, 3, 8, 20])
def test_a_full_context_ends_the_response(limit: int) -> None:
    done = take_turns(pool_of(letters("a"), letters("b"), context=limit), max_new_tokens=99)
    assert done.finish_reason == "context"
    assert done.text == ("aaabbb" * 9)[: limit - 1], "the prompt takes one position"


@pytest.mark.parametrize("count", [5, 6, 7, 8, 9])
def test_the_smaller_of_context_and_length_ends_the_response(count: int) -> None:
    done = take_turns(pool_of(letters("a"), context=8), max_new_tokens=count)
    assert len(done.text) == min(count, 7)
    assert done.finish_reason == ("context" if count > 7 else "length")


def test_the_context_of_the_writer_counts() -> None:
    pool = CandidatePool(
        {"a": Scripted("a", letters("a"), context=6), "b": Scripted("b", letters("b"))}, GREEDY
    )
    assert len(take_turns(pool, policy=Fixed("b"), max_new_tokens=50).text) == 50
    done = take_turns(pool, max_new_tokens=50)
    assert (done.text, done.finish_reason) == ("aaabbb"[:6], "context")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mamba"])
def test_the_context_of_real_models_can_be_filled(kind: str) -> None:
    over = {} if kind == "mamba" else {"max_position_embeddings": 40}
    model = LoadedModel(build(kind, **over), kind)
    pool = CandidatePool({n: backend(n, model, prompt=IDS) for n in "ab"}, GREEDY)
    prompts = random_ids([39, 3, 20])
    method = SwitchGeneration(pool, max_new_tokens=60, boundary=EveryTokens(7))
    done = method.generate([as_query(prompt) for prompt in prompts])
    if kind == "mamba":
        assert {d.finish_reason for d in done} == {"length"}
    else:
        assert {d.finish_reason for d in done} == {"context"}
        assert [len(written(d)) + len(p) for d, p in zip(done, prompts, strict=True)] == [
            40,
            40,
            40,
        ]


def test_a_prompt_that_is_too_long_names_prompt_and_candidate() -> None:
    pool = CandidatePool(
        {
            "wide": Scripted("wide", letters("a")),
            "narrow": Scripted("narrow", letters("b"), context=4),
        }
    )
    method = SwitchGeneration(pool, max_new_tokens=5)
    with pytest.raises(InputError, match=r"prompt 2 is 4 tokens long for candidate 'narrow'.* 4"):
        method.generate(["abc", "abcd"])
    assert pool["wide"].stepper.read == [], "nothing was computed"


def test_a_prompt_without_tokens_is_refused() -> None:
    method = SwitchGeneration(pool_of(letters("a")))
    with pytest.raises(InputError, match="prompt 1 has no tokens for candidate 'a'"):
        method.generate([""])


def test_an_empty_prompt_is_refused_by_number() -> None:
    method = SwitchGeneration(CandidatePool({"a": backend("a")}))
    with pytest.raises(InputError, match="prompt 2: the prompt is empty"):
        method.generate(["fine", "  "])


# -- ids that may not cross over ---------------------------------------------------------------
def test_ids_that_another_candidate_cannot_read_are_never_written() -> None:
    plain, more = tokenizer(), tokenizer(extra="<|think|>")
    new = more.get_vocab()["<|think|>"]

    def wants(ids: list[int]) -> int:
        return new

    candidates = {
        "plain": Scripted("plain", letters("x"), vocabulary=TokenizerVocabulary(plain), eos=[2]),
        "more": Scripted("more", wants, vocabulary=TokenizerVocabulary(more), eos=[2]),
    }
    done = take_turns(CandidatePool(candidates, GREEDY))
    assert new not in written(done)
    (alone,) = SwitchGeneration(
        CandidatePool({"more": candidates["more"]}, GREEDY), max_new_tokens=4
    ).generate(["?"])
    assert written(alone) == [new] * 4, "alone it may"


def test_a_foreign_end_of_sequence_still_ends() -> None:
    more = tokenizer(extra="<|done|>")
    done_id = more.get_vocab()["<|done|>"]
    candidates = {
        "plain": Scripted(
            "plain", letters("x"), vocabulary=TokenizerVocabulary(tokenizer()), eos=[2]
        ),
        "more": Scripted(
            "more", always(done_id), vocabulary=TokenizerVocabulary(more), eos=[done_id]
        ),
    }
    done = take_turns(CandidatePool(candidates, GREEDY))
    assert done.finish_reason == "eos"
    assert len(written(done)) == 3


def test_ids_beyond_the_smallest_embedding_are_never_written() -> None:
    small, large = loaded("llama", 0, 300), loaded("llama", 1, 340)
    pool = CandidatePool({n: backend(n, m) for n, m in (("small", small), ("large", large))})
    done = SwitchGeneration(pool, max_new_tokens=60, boundary=EveryTokens(1)).generate(["a"] * 4)
    assert max(max(written(d)) for d in done) < 300
    (alone,) = SwitchGeneration(
        CandidatePool({"large": backend("large", large)}, SamplingParams(1.0, 1.0)),
        max_new_tokens=100,
    ).generate(["a"])
    assert max(written(alone)) >= 300


# -- what is refused ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message", "remedy"),
    [
        ({"first": "aligned"}, "`first` names the candidate 'aligned'", "did you mean 'aligner'"),
        ({"last": "bas"}, "`last` names the candidate 'bas'", "did you mean 'base'"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0", "1 or more"),
        ({"stop": ("x", "")}, "stop string is empty", "leave it out"),
        ({"batch_rows": 0}, "batch_rows is 0", "1 or more"),
        ({"final_prompt": "12345", "max_new_tokens": 5}, "fills max_new_tokens", "raise"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_impossible_options_are_refused(
    options: dict[str, object], message: str, remedy: str
) -> None:
    pool = CandidatePool({n: Scripted(n, letters("x")) for n in ("base", "aligner")})
    with pytest.raises(InputError, match=message) as caught:
        SwitchGeneration(pool, **options)
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == 2


def test_two_candidates_of_one_name_are_refused() -> None:
    twice = [Candidate("a", Scripted("a", letters("x")), GREEDY) for _ in range(2)]
    with pytest.raises(InputError, match="two candidates are called 'a'"):
        Engine(twice, Uniform(), TurnOptions())


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(InputError, match="pool is empty"):
        CandidatePool({})


def test_impossible_sampling_names_the_candidate() -> None:
    made = {"a": Scripted("a", letters("x")), "b": Scripted("b", letters("x"))}
    with pytest.raises(InputError, match=r"'b'.*top_p is 2"):
        CandidatePool(made, {"a": GREEDY, "b": SamplingParams(top_p=2)})


def test_unknown_candidates_come_with_a_suggestion() -> None:
    with pytest.raises(InputError) as caught:
        pool_of(letters("x"))["A"]
    assert "'a'" in str(caught.value) or "known: a" in str(caught.value)


def test_ids_cannot_be_exchanged_between_vocabularies() -> None:
    pool = CandidatePool({"a": backend("a"), "b": backend("b", tokens=tokenizer("bytes", "sea"))})
    with pytest.raises(InputError, match="cannot exchange token ids"):
        SwitchGeneration(pool, exchange="ids")


def test_a_memory_budget_for_no_response_is_refused() -> None:
    pool = CandidatePool({"a": backend("a")})
    with pytest.raises(InputError, match=r"memory budget is 0\.0 MiB"):
        SwitchGeneration(pool, memory_bytes=1000, max_new_tokens=50).generate(["fox"])


def test_a_tight_memory_budget_changes_speed_and_not_text() -> None:
    pool = CandidatePool({"a": backend("a"), "b": backend("b", loaded("llama", 1))})
    queries = ["fox", "a", "what is two", "?"]
    per_row = 3 * 2 * 4 * 2 * 8 * 4 * 80  # models and workspace, keys and values, ..., positions
    few = SwitchGeneration(pool, memory_bytes=per_row, max_new_tokens=30)
    many = SwitchGeneration(pool, max_new_tokens=30)
    assert [d.text for d in few.generate(queries)] == [d.text for d in many.generate(queries)]


def test_an_answer_needs_models_that_can_write() -> None:
    class Mute:
        info = Scripted("mute", letters("x")).info
        render = Scripted("mute", letters("x")).render

    with pytest.raises(CapabilityError, match=r"turn-taking needs .*'Generates'.*'mute'"):
        SwitchGeneration(CandidatePool({"mute": Mute()}))
    with pytest.raises(CapabilityError, match=r"LM switcher needs .*'Steps'"):
        LMSwitcher(Asked("far", letters("x")))


def test_no_queries_give_no_completions() -> None:
    assert SwitchGeneration(pool_of(letters("a"))).generate([]) == []


def test_a_lone_string_is_not_taken_for_a_list() -> None:
    with pytest.raises(TypeError, match="list"):
        SwitchGeneration(pool_of(letters("a"))).generate("hello")
    with pytest.raises(TypeError, match="not both"):
        SwitchGeneration(pool_of(letters("a")), options=TurnOptions(), max_new_tokens=3)


# -- what comes back ---------------------------------------------------------------------------
def test_completions_survive_json() -> None:
    done = take_turns(pool_of(letters("a"), letters("b")), policy=Uniform(), final_prompt="So:")
    again = Completion.from_dict(json.loads(json.dumps(done.to_dict())))
    assert again == done


def test_finished_rows_leave_no_lanes_behind() -> None:
    pool = pool_of(letters("a"), ends_after(5, "b"))
    SwitchGeneration(pool, max_new_tokens=20, boundary=EveryTokens(2)).generate(["?", "x", "yy"])
    assert [pool[name].stepper.open_lanes for name in pool] == [0, 0]


def test_rows_that_are_given_up_leave_no_lanes_behind() -> None:
    pool = pool_of(letters("a"), letters("b"))
    stream = SwitchGeneration(pool, RoundRobin(), boundary=EveryTokens(2)).stream("?")
    for _ in range(5):
        next(stream)
    stream.close()
    assert [pool[name].stepper.open_lanes for name in pool] == [0, 0]


def test_rows_finish_in_any_order_and_come_back_in_theirs() -> None:
    pool = pool_of(lambda ids: ord("a") if len(ids) < 3 * ids[0] - 3 * 48 else EOS)
    method = SwitchGeneration(pool, max_new_tokens=40, boundary=EveryTokens(2))
    order = [e.index for e in method.run(["9", "2", "5"]) if isinstance(e, Finished)]
    assert sorted(order) == [0, 1, 2]
    assert order != [0, 1, 2]
    lengths = [len(done.text) for done in method.generate(["9", "2", "5"])]
    assert lengths == [26, 5, 14]


def test_tokens_are_accounted_to_their_writers() -> None:
    done = take_turns(pool_of(letters("a"), letters("b")), max_new_tokens=10)
    assert done.usage["a"].tokens_written == 6
    assert done.usage["b"].tokens_written == 4
    assert done.usage["a"].seconds > 0


# -- models behind a server --------------------------------------------------------------------
def test_models_that_only_generate_take_turns_like_those_that_step() -> None:
    far = {n: Asked(n, letters(n)) for n in "ab"}
    near = {n: Scripted(n, letters(n)) for n in "ab"}
    texts = [
        take_turns(CandidatePool(made, GREEDY), **options).text
        for made in (far, near, {"a": far["a"], "b": near["b"]})
        for options in ({}, {"stop": ("ab",)}, {"max_new_tokens": 7}, {"first": "b"})
    ]
    assert texts[:4] == texts[4:8] == texts[8:]
    ended = take_turns(CandidatePool({"a": Asked("a", ends_after(5, "x"))}, GREEDY))
    assert (ended.text, ended.finish_reason) == ("xxxxx", "eos")


def test_requests_use_each_candidates_own_sampling() -> None:
    """One server, one model, two ways of drawing from it."""
    server = Asked("server", letters("x"))
    hot = SamplingParams(temperature=1.5)
    pool = CandidatePool({"cold": server, "hot": server}, {"cold": GREEDY, "hot": hot})
    method = SwitchGeneration(
        pool, RoundRobin(), max_new_tokens=4, boundary=EveryTokens(1), batch_rows=1
    )
    method.generate(["?"])
    assert [sampling for _, sampling in server.requests] == [GREEDY, hot, GREEDY, hot]
    server.requests.clear()
    queries = list("01234567")
    method = SwitchGeneration(pool, Uniform(), max_new_tokens=4, boundary=EveryTokens(1))
    done = method.generate(queries)
    for prompts, sampling in server.requests:
        for prompt in prompts:
            segment = done[queries.index(chr(prompt[0]))].segments[len(prompt) - 1]
            assert sampling == (hot if segment.candidate == "hot" else GREEDY)
