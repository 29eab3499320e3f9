"""Pools of several vocabularies: one text, read exactly by all, cut at words only."""

from __future__ import annotations

import re
from typing import Any

import pytest

from antiphon.backends.base import Vocabulary
from antiphon.backends.vocabulary import TokenizerVocabulary
from antiphon.decoding.alignment import Detokenizer, hold_back
from antiphon.decoding.boundaries import EveryTokens, SentenceEnd
from antiphon.decoding.drafts import OVERRUN
from antiphon.decoding.engine import Finished
from antiphon.decoding.policies import RoundRobin, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.rows import Row
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import FORCED, GREEDY, Completion, SamplingParams
from tests.scripted import BYTES, EOS, Asked, Scripted, says
from tests.tiny import TEXTS, backend, loaded, tokenizer, written

PROMPT = "the fox"
PLAIN = " by the sea, the quick brown fox jumps over two dogs. what is four? it is a shore."
WIDE = " naïve foxes 🦊🦊 met at the café 🌊, and 日本語 was spoken\nby  all of them."
NO_SPACES = (
    " 日本語の文章には空白がありません。とても長い文章をここに書いています。そして続きます。"
)


def vocabularies() -> dict[str, Vocabulary]:
    return {
        "fox": TokenizerVocabulary(tokenizer("bytes", "fox")),
        "sea": TokenizerVocabulary(tokenizer("bytes", "sea", 380)),
        "piece": TokenizerVocabulary(tokenizer("metaspace", "sea", 400)),
        "bytes": BYTES,
    }


def scripted_pool(text: str, *names: str) -> CandidatePool:
    """Candidates that all say the same text, each in its own tokens."""
    made = {}
    for name in names:
        vocabulary = vocabularies()[name]
        end = EOS if name == "bytes" else 2
        script = says(text, PROMPT, vocabulary, end)
        made[name] = Scripted(name, script, vocabulary=vocabulary, eos=[end])
    return CandidatePool(made, GREEDY)


def run(method: SwitchGeneration, queries: list[str]) -> list[tuple[Row, Completion]]:
    """Completions with the rows behind them."""
    rows = method.engine.rows(queries, list(range(len(queries))))
    done = {e.index: e.completion for e in method.engine.run(rows) if isinstance(e, Finished)}
    return [(row, done[row.index]) for row in rows]


def read_text(vocabulary: Vocabulary, ids: list[int]) -> str:
    reader = Detokenizer(vocabulary)
    return reader.push(ids) + reader.flush()


PAIRS = [
    ("fox", "sea"),
    ("sea", "fox"),
    ("fox", "piece"),
    ("piece", "sea"),
    ("bytes", "piece"),
    ("piece", "bytes"),
    ("fox", "bytes"),
    ("fox", "sea", "piece", "bytes"),
]


@pytest.mark.parametrize("segment", [1, 2, 3, 5, 8, 50])
@pytest.mark.parametrize("text", [PLAIN, WIDE], ids=["plain", "wide"])
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_a_text_passes_from_hand_to_hand_unchanged(
    names: tuple[str, ...], text: str, segment: int
) -> None:
    method = SwitchGeneration(
        scripted_pool(text, *names),
        RoundRobin(),
        max_new_tokens=400,
        boundary=EveryTokens(segment),
    )
    ((row, done),) = run(method, [PROMPT])
    assert done.text == text
    assert done.finish_reason == "eos"
    assert "".join(part.text for part in done.segments) == text
    if segment < 10:
        assert len({part.candidate for part in done.segments}) > 1
    for vocabulary, ids in zip(row.vocabularies, row.ids, strict=True):
        assert read_text(vocabulary, ids) == text, "what has been read is the text, in every group"
    for part in done.segments:
        assert read_text(vocabularies()[part.candidate], list(part.token_ids)) == part.text


@pytest.mark.parametrize("segment", [1, 3, 5, 8])
@pytest.mark.parametrize("text", [PLAIN, WIDE], ids=["plain", "wide"])
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_hand_overs_stand_between_words(names: tuple[str, ...], text: str, segment: int) -> None:
    method = SwitchGeneration(
        scripted_pool(text, *names),
        RoundRobin(),
        max_new_tokens=400,
        boundary=EveryTokens(segment),
    )
    ((_, done),) = run(method, [PROMPT])
    place = 0
    for part in done.segments[:-1]:
        place += len(part.text)
        assert len(part.token_ids) < segment + OVERRUN
        assert text[place].isspace(), "the next word brings its own space"
        assert not text[place - 1].isspace()
        assert hold_back(text[: place + 1]) == place


@pytest.mark.parametrize(
    "names", [("fox", "sea"), ("piece", "fox"), ("bytes", "sea")], ids="-".join
)
@pytest.mark.parametrize("segment", [1, 2, 3, 4, 5, 6])
def test_a_text_without_spaces_is_handed_over_whole_characters_only(
    names: tuple[str, ...], segment: int
) -> None:
    method = SwitchGeneration(
        scripted_pool(NO_SPACES, *names),
        RoundRobin(),
        max_new_tokens=400,
        boundary=EveryTokens(segment),
    )
    ((_, done),) = run(method, [PROMPT])
    assert done.text == NO_SPACES
    assert len(done.segments) > 2
    # A character begun at the limit may be finished: three more bytes at most.
    assert max(len(part.token_ids) for part in done.segments) <= segment + OVERRUN + 3


@pytest.mark.parametrize("stop", [("jumps",), ("s over t", "zzz"), ("fox",), ("?",)], ids=str)
@pytest.mark.parametrize("names", PAIRS[:5], ids="-".join)
def test_stop_strings_cut_mixed_texts(names: tuple[str, ...], stop: tuple[str, ...]) -> None:
    for segment in (1, 4, 50):
        method = SwitchGeneration(
            scripted_pool(PLAIN, *names),
            RoundRobin(),
            max_new_tokens=400,
            boundary=EveryTokens(segment),
            stop=stop,
        )
        ((_, done),) = run(method, [PROMPT])
        assert done.text == PLAIN[: PLAIN.index(stop[0])]
        assert done.finish_reason == "stop"


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_sentences_end_segments_of_mixed_texts(names: tuple[str, ...]) -> None:
    method = SwitchGeneration(
        scripted_pool(PLAIN, *names), RoundRobin(), max_new_tokens=400, boundary=SentenceEnd(99)
    )
    ((_, done),) = run(method, [PROMPT])
    assert done.text == PLAIN
    wanted = [m.group() for m in re.finditer(r".+?[.?](?=\s|$)", PLAIN)]
    assert [part.text for part in done.segments] == wanted


def chatter(*names: str) -> CandidatePool:
    """Candidates that go on for ever with plain words, whatever stands before."""
    made = {}
    for name in names:
        vocabulary = vocabularies()[name]
        words = vocabulary.encode("a sea fox over the two shores")[1:]

        def script(ids: list[int], words: list[int] = words) -> int:
            return words[len(ids) % len(words)]

        made[name] = Scripted(name, script, vocabulary=vocabulary, eos=[])
    return CandidatePool(made, GREEDY)


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
@pytest.mark.parametrize("prompt", [" So the answer:", "\nAnswer:", "So"])
def test_the_final_prompt_is_the_same_text_for_all(names: tuple[str, ...], prompt: str) -> None:
    for count in (59, 60, 61, 75):
        method = SwitchGeneration(
            chatter(*names),
            RoundRobin(),
            max_new_tokens=count,
            final_prompt=prompt,
            boundary=EveryTokens(6),
        )
        for row, done in run(method, ["fox", "the sea"]):
            (forced,) = [part for part in done.segments if part.candidate == FORCED]
            assert forced.text == prompt
            assert done.segments[-1].candidate != FORCED
            assert len(written(done)) <= count
            for vocabulary, ids in zip(row.vocabularies, row.ids, strict=True):
                assert read_text(vocabulary, ids) == done.text


@pytest.mark.parametrize("kind", ["fox", "piece", "bytes"])
@pytest.mark.parametrize("prompt", [" So the answer:", "\nAnswer:", "So"])
def test_the_final_prompt_is_exact_in_pools_of_one_vocabulary(kind: str, prompt: str) -> None:
    candidate = chatter(kind)[kind]
    pool = CandidatePool({"a": candidate, "b": candidate}, GREEDY)
    method = SwitchGeneration(pool, max_new_tokens=40, final_prompt=prompt, boundary=EveryTokens(6))
    (done,) = method.generate(["fox"])
    (forced,) = [part for part in done.segments if part.candidate == FORCED]
    assert forced.text == prompt
    assert 38 <= len(written(done)) <= 40


def squash(text: str) -> str:
    """Bytes that are no text may be marked once or more often, depending on the decoder."""
    return re.sub("\ufffd+", "\ufffd", text)


def real_pool(*names: str) -> CandidatePool:
    """Random models; their texts are wild, down to bytes that are no characters.

    Not for byte-fallback decoders: those read a run of bytes as a whole, so one wrong byte undoes
    right ones before it.
    """
    tokens: dict[str, Any] = {
        "fox": tokenizer("bytes", "fox"),
        "sea": tokenizer("bytes", "sea", 380),
        "bytes": tokenizer("bytes", "sea", 262),
    }
    return CandidatePool(
        {
            name: backend(name, loaded("llama", seed, len(tokens[name])), tokens=tokens[name])
            for seed, name in enumerate(names)
        },
        SamplingParams(),
    )


@pytest.mark.parametrize("segment", [1, 4, 11])
@pytest.mark.parametrize("names", [("fox", "sea"), ("fox", "bytes", "sea")], ids="-".join)
def test_whatever_is_written_all_read_the_same_text(names: tuple[str, ...], segment: int) -> None:
    method = SwitchGeneration(
        real_pool(*names), Uniform(), max_new_tokens=60, boundary=EveryTokens(segment)
    )
    for row, done in run(method, ["fox", "the sea", "what is two", "a"]):
        assert "".join(part.text for part in done.segments) == done.text
        assert done.finish_reason == "length"
        assert len(written(done)) <= 60
        for vocabulary, ids in zip(row.vocabularies, row.ids, strict=True):
            assert squash(read_text(vocabulary, ids)) == squash(done.text)


@pytest.mark.parametrize("segment", [1, 3, 7, 50])
def test_exchanging_text_writes_what_exchanging_ids_writes(segment: int) -> None:
    """Where ids and text say the same, the way they are exchanged does not matter."""
    vocabulary = vocabularies()["fox"]
    for text in (PLAIN, WIDE):
        pool = CandidatePool(
            {
                n: Scripted(n, says(text, PROMPT, vocabulary, 2), vocabulary=vocabulary, eos=[2])
                for n in "ab"
            },
            GREEDY,
        )
        for exchange in ("ids", "text", "auto"):
            method = SwitchGeneration(
                pool,
                RoundRobin(),
                max_new_tokens=400,
                boundary=EveryTokens(segment),
                exchange=exchange,
            )
            (done,) = method.generate([PROMPT])
            assert (done.text, done.finish_reason) == (text, "eos")


@pytest.mark.parametrize("segment", [1, 4, 50])
def test_models_behind_servers_join_mixed_pools(segment: int) -> None:
    near = vocabularies()["piece"]
    pool = CandidatePool(
        {
            "near": Scripted("near", says(WIDE, PROMPT, near, 2), vocabulary=near, eos=[2]),
            "far": Asked("far", says(WIDE, PROMPT)),
        },
        GREEDY,
    )
    method = SwitchGeneration(pool, RoundRobin(), max_new_tokens=400, boundary=EveryTokens(segment))
    ((_, done),) = run(method, [PROMPT])
    assert done.text == WIDE
    assert TEXTS["sea"] not in done.text


def test_each_position_of_the_trace_is_read_once_where_words_come_apart() -> None:
    names = ("fox", "sea", "bytes")
    pool = scripted_pool(PLAIN, *names)
    method = SwitchGeneration(pool, RoundRobin(), max_new_tokens=400, boundary=EveryTokens(4))
    ((row, done),) = run(method, [PROMPT])
    for name, ids in zip(names, row.ids, strict=True):
        usage = done.usage[name]
        turns = sum(part.candidate == name for part in done.segments)
        whole = len(vocabularies()[name].encode(PROMPT)) + len(ids)
        # A draft reads on to the end of its word, and what it drops is read again by others.
        assert usage.positions <= whole + usage.tokens_discarded + 2 * turns
