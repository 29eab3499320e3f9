"""When a segment ends."""

from __future__ import annotations

import pytest

from antiphon.backends.vocabulary import TokenizerVocabulary
from antiphon.decoding.boundaries import (
    Boundary,
    EntropyAbove,
    EveryTokens,
    SentenceEnd,
    TokenTraits,
)
from antiphon.decoding.policies import Fixed
from antiphon.decoding.pool import CandidatePool
from antiphon.errors import InputError
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import GREEDY
from tests.scripted import BYTES, EOS, Scripted, says
from tests.tiny import TEXTS, three, tokenizer, written


def segments(text: str, boundary: Boundary, **options: object) -> list[str]:
    """How one candidate's text falls into segments (byte tokens)."""
    pool = CandidatePool({"a": Scripted("a", says(text, "?"))}, GREEDY)
    method = SwitchGeneration(pool, Fixed("a"), max_new_tokens=300, boundary=boundary, **options)
    (done,) = method.generate(["?"])
    assert done.text == text
    assert done.finish_reason == "eos"
    return [segment.text for segment in done.segments]


def test_every_tokens_counts() -> None:
    assert segments("abcdefgh", EveryTokens(3)) == ["abc", "def", "gh"]
    assert segments("abcdef", EveryTokens(3)) == ["abc", "def"]
    assert segments("abc", EveryTokens(50)) == ["abc"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One two. Three four.", ["One two.", " Three four."]),
        ("It is 3.14 now. Yes", ["It is 3.14 now.", " Yes"]),
        ("See a.b.c and e.g.x here", ["See a.b.c and e.g.x here"]),
        ("What? No! Yes. ok", ["What?", " No!", " Yes.", " ok"]),
        ('He said "go." Then left', ['He said "go."', " Then left"]),
        ("(So.) Then", ["(So.)", " Then"]),
        ("a line\nanother\n\nend", ["a line\n", "another\n", "\n", "end"]),
        ("End.\nNext", ["End.\n", "Next"]),
        ("no end at all", ["no end at all"]),
    ],
)
def test_sentences_and_lines_end_segments(text: str, wanted: list[str]) -> None:
    assert segments(text, SentenceEnd(50)) == wanted


def test_full_width_sentence_ends_need_no_space() -> None:
    vocabulary = tokenizer(extra="。")
    traits = TokenTraits(TokenizerVocabulary(vocabulary))
    stop = vocabulary.convert_tokens_to_ids("。")
    word = vocabulary.encode("a", add_special_tokens=False)[0]
    rule = SentenceEnd(50)
    assert rule.verdict([word, stop], traits, 0.0) == "after"
    assert rule.verdict([stop, word], traits, 0.0) == "go on"


def test_sentences_are_cut_at_the_cap_and_not_before_the_minimum() -> None:
    assert segments("abcdefgh. ij", SentenceEnd(4)) == ["abcd", "efgh", ".", " ij"]
    assert segments("A. B. Cdef. G", SentenceEnd(50, minimum=4)) == ["A. B.", " Cdef.", " G"]


def test_the_look_ahead_token_is_dropped_and_counted() -> None:
    pool = CandidatePool({"a": Scripted("a", says("One. Two. Three", "?"))}, GREEDY)
    method = SwitchGeneration(pool, Fixed("a"), max_new_tokens=99, boundary=SentenceEnd(50))
    (done,) = method.generate(["?"])
    assert done.usage["a"].tokens_discarded == 2
    assert done.usage["a"].tokens_written == len(done.text)
    assert written(done) == list(done.text.encode())


def test_merged_tokens_show_their_sentence_ends() -> None:
    text = "it is four. what is two"
    tokens = tokenizer()
    vocabulary = TokenizerVocabulary(tokens)
    candidate = Scripted("a", says(text, "x", vocabulary, 2), vocabulary=vocabulary, eos=[2])
    method = SwitchGeneration(
        CandidatePool({"a": candidate}, GREEDY), max_new_tokens=99, boundary=SentenceEnd(50)
    )
    (done,) = method.generate(["x"])
    assert [segment.text for segment in done.segments] == ["it is four.", " what is two"]
    assert max(map(len, (vocabulary.token_text(token) for token in written(done)))) > 1
    assert "four" in TEXTS["fox"]


def test_entropy_ends_a_segment_before_the_token_in_doubt() -> None:
    rule = EntropyAbove(threshold=1.0, cap=50)
    traits = TokenTraits(BYTES)
    assert rule.verdict([5, 6], traits, 1.01) == "before"
    assert rule.verdict([5, 6], traits, 0.99) == "go on"
    assert rule.verdict([5], traits, 9.0) == "go on", "a segment has at least one token"
    assert EntropyAbove(1.0, minimum=3).verdict([5, 6, 7], traits, 9.0) == "go on"


def test_entropy_rule_does_not_change_what_one_model_writes() -> None:
    pool = three(sampling=GREEDY)
    queries = ["the quick brown", "a"]
    plain = SwitchGeneration(pool, Fixed("a"), max_new_tokens=30).generate(queries)
    unsure = SwitchGeneration(
        pool, Fixed("a"), max_new_tokens=30, boundary=EntropyAbove(threshold=0.5)
    ).generate(queries)
    assert [written(done) for done in unsure] == [written(done) for done in plain]
    assert all(len(done.segments) > 3 for done in unsure)
    never = SwitchGeneration(
        pool, Fixed("a"), max_new_tokens=30, boundary=EntropyAbove(threshold=99.0)
    ).generate(queries)
    assert all(len(done.segments) == 1 for done in never)


@pytest.mark.parametrize("make", [EveryTokens, SentenceEnd, lambda cap: EntropyAbove(1.0, cap)])
def test_a_segment_has_at_least_one_token(make: type[EveryTokens]) -> None:
    with pytest.raises(InputError, match="segment_tokens is 0"):
        make(0)


def test_the_byte_vocabulary_ends_with_its_own_token() -> None:
    assert EOS in BYTES.added_ids
    assert BYTES.decode([72, 105, EOS]) == "Hi"
