"""What is streamed is exactly what is returned: nothing twice, nothing taken back."""

from __future__ import annotations

import pytest

from antiphon.backends.sampling import derive_seed
from antiphon.backends.vocabulary import TokenizerVocabulary
from antiphon.decoding.boundaries import EveryTokens, SentenceEnd
from antiphon.decoding.engine import Finished, Piece
from antiphon.decoding.policies import RoundRobin, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.switcher import LMSwitcher
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.types import GREEDY, SamplingParams
from tests.scripted import Scripted, says
from tests.tiny import backend, loaded, three, tokenizer

PAPER = SamplingParams(temperature=0.7, top_p=0.9)
QUERIES = ["the quick brown fox", "a", "what is two plus two", "?", "dog", "over the sea"]


def mixed_pool() -> CandidatePool:
    return CandidatePool(
        {
            "fox": backend("fox", loaded("llama", 0)),
            "sea": backend("sea", loaded("llama", 1), tokens=tokenizer("bytes", "sea")),
            "piece": backend(
                "piece",
                loaded("llama", 2, 400),
                tokens=tokenizer("metaspace", "sea", 400),
            ),
        },
        PAPER,
    )


def streamed(method: SwitchGeneration, queries: list[str]) -> tuple[list[str], list[str]]:
    """Streamed and returned texts of all rows."""
    pieces = [""] * len(queries)
    texts = [""] * len(queries)
    finished = set()
    for event in method.run(queries, stream=True):
        if isinstance(event, Piece):
            assert event.index not in finished
            assert event.text
            pieces[event.index] += event.text
        else:
            assert isinstance(event, Finished)
            finished.add(event.index)
            texts[event.index] = event.completion.text
    assert finished == set(range(len(queries)))
    return pieces, texts


@pytest.mark.parametrize("segment", [1, 3, 50])
@pytest.mark.parametrize("stop", [(), ("e", " t"), ("the",)], ids=str)
def test_pieces_add_up_to_the_text(segment: int, stop: tuple[str, ...]) -> None:
    method = SwitchGeneration(
        three(sampling=PAPER), max_new_tokens=40, boundary=EveryTokens(segment), stop=stop
    )
    pieces, texts = streamed(method, QUERIES)
    assert pieces == texts
    assert texts == [done.text for done in method.generate(QUERIES)]


@pytest.mark.parametrize("segment", [2, 9])
@pytest.mark.parametrize("stop", [(), ("e", " t")], ids=str)
def test_pieces_add_up_in_pools_of_several_vocabularies(
    segment: int, stop: tuple[str, ...]
) -> None:
    method = SwitchGeneration(
        mixed_pool(), max_new_tokens=40, boundary=EveryTokens(segment), stop=stop
    )
    pieces, texts = streamed(method, QUERIES)
    assert pieces == texts
    assert texts == [done.text for done in method.generate(QUERIES)]


@pytest.mark.parametrize("segment", [1, 2, 3, 4, 5, 7, 50])
@pytest.mark.parametrize("stop", ["stop here", "sto", ". N", "\n"])
def test_a_stop_string_is_never_shown_wherever_segments_end(segment: int, stop: str) -> None:
    text = "First. Now stop here. Never this.\n Nor this."
    script = says(text, "?")
    pool = CandidatePool({n: Scripted(n, script) for n in "ab"}, GREEDY)
    method = SwitchGeneration(
        pool, RoundRobin(), max_new_tokens=99, boundary=EveryTokens(segment), stop=(stop,)
    )
    wanted = text[: text.index(stop)]
    assert [done.text for done in method.generate(["?"])] == [wanted]
    assert "".join(piece for _, piece in method.stream("?")) == wanted


@pytest.mark.parametrize("segment", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_characters_of_several_tokens_are_shown_once_and_whole(segment: int, kind: str) -> None:
    text = " fox 🦊 and 日本語 end"
    vocabulary = TokenizerVocabulary(tokenizer(kind, size=420))
    prompt = "the"
    script = says(text, prompt, vocabulary, 2)
    pool = CandidatePool(
        {n: Scripted(n, script, vocabulary=vocabulary, eos=[2]) for n in "ab"}, GREEDY
    )
    method = SwitchGeneration(pool, RoundRobin(), max_new_tokens=99, boundary=EveryTokens(segment))
    (done,) = method.generate([prompt])
    assert done.text == text
    pieces = [piece for _, piece in method.stream(prompt)]
    assert "".join(pieces) == text


@pytest.mark.parametrize(
    "options",
    [
        {"boundary": SentenceEnd(6)},
        {"first": "c", "last": "a", "final_prompt": " so"},
        {"on_eos": "handover"},
        {"exchange": "text"},
        {"batch_rows": 2},
    ],
    ids=lambda options: ", ".join(options),
)
def test_pieces_add_up_under_every_option(options: dict[str, object]) -> None:
    method = SwitchGeneration(
        three(sampling=PAPER),
        Uniform(),
        **{"max_new_tokens": 30, "boundary": EveryTokens(5), **options},
    )
    pieces, texts = streamed(method, QUERIES)
    assert pieces == texts


def test_pieces_name_their_writers() -> None:
    text = "aaaabbbbaaaabb"
    pool = CandidatePool({n: Scripted(n, says(text, "?")) for n in "ab"}, GREEDY)
    method = SwitchGeneration(pool, RoundRobin(), max_new_tokens=99, boundary=EveryTokens(4))
    assert [(name, piece) for name, piece in method.stream("?")] == [(c, c) for c in text]


def test_streaming_uses_the_same_seed_as_generating() -> None:
    method = SwitchGeneration(three(sampling=PAPER), max_new_tokens=20, boundary=EveryTokens(5))
    text = "".join(piece for _, piece in method.stream("fox", seed=4))
    assert text == method.generate(["fox"], seed=4)[0].text
    assert text == method.generate(["fox"], seeds=[derive_seed(4, 0)])[0].text


@pytest.mark.parametrize("switcher", [False, True])
def test_a_stream_that_is_left_early_does_not_disturb_the_next(switcher: bool) -> None:
    policy = LMSwitcher(backend("switcher", loaded("llama", 9))) if switcher else Uniform()
    method = SwitchGeneration(
        three(sampling=PAPER), policy, max_new_tokens=30, boundary=EveryTokens(3)
    )
    want = [done.segments for done in method.generate(["a", "fox"])]
    stream = method.stream("what is the answer to this long question?")
    for _ in range(12):
        next(stream)
    stream.close()
    got = [done.segments for done in method.generate(["a", "fox"])]
    for one, two in zip(got, want, strict=True):
        assert [s.token_ids for s in one] == [s.token_ids for s in two]
        for left, right in zip(one, two, strict=True):
            assert left.probabilities == pytest.approx(right.probabilities, abs=1e-4)


@pytest.mark.parametrize("switcher", [False, True])
def test_two_streams_of_one_method_may_be_read_in_turns(switcher: bool) -> None:
    policy = LMSwitcher(backend("switcher", loaded("llama", 9))) if switcher else Uniform()
    method = SwitchGeneration(
        three(sampling=PAPER), policy, max_new_tokens=20, boundary=EveryTokens(3)
    )
    queries = ["the quick brown fox", "what is two"]
    want = [method.generate([query])[0].text for query in queries]
    streams = [method.stream(query) for query in queries]
    texts = ["", ""]
    open_streams = [0, 1]
    while open_streams:
        for index in list(open_streams):
            piece = next(streams[index], None)
            if piece is None:
                open_streams.remove(index)
            else:
                texts[index] += piece[1]
    assert texts == want
