"""Text between vocabularies: every character once, at every split; pieces come apart or say so."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from antiphon.backends.base import Vocabulary
from antiphon.backends.vocabulary import TokenizerVocabulary
from antiphon.decoding.alignment import Detokenizer, common_prefix, encode_after, hold_back
from tests.scripted import BYTES
from tests.tiny import tokenizer

VOCABULARIES: dict[str, Any] = {
    "fox": lambda: TokenizerVocabulary(tokenizer("bytes", "fox")),
    "sea": lambda: TokenizerVocabulary(tokenizer("bytes", "sea", 380)),
    "metaspace": lambda: TokenizerVocabulary(tokenizer("metaspace", "sea", 400)),
    "bytes": lambda: BYTES,
}
TEXTS = [
    "the quick brown fox",
    " by the sea shore",
    "two  spaces, a\ttab\n\nand lines\n",
    "naïve café 🦊🌊 and 日本語の文章です。",
    "👩‍👩‍👧 family",
    "日本語",
    " ",
    "x",
]


@pytest.fixture(params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return VOCABULARIES[request.param]()


def middle_ids(vocabulary: Vocabulary, text: str) -> list[int]:
    """Ids of a text in the middle of another, where SentencePiece adds no space of its own."""
    ids = encode_after(vocabulary, "x\n", text)
    assert ids is not None
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_every_split_in_two_gives_the_text_once(vocabulary: Vocabulary, text: str) -> None:
    ids = middle_ids(vocabulary, text)
    for cut in range(len(ids) + 1):
        reader = Detokenizer(vocabulary)
        pieces = [reader.push(ids[:cut]), reader.push(ids[cut:]), reader.flush()]
        assert "".join(pieces) == text
        assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_random_splits_give_the_text_once(vocabulary: Vocabulary, text: str) -> None:
    ids = middle_ids(vocabulary, text)
    numbers = random.Random(0)
    for _ in range(20):
        cuts = sorted(numbers.choices(range(len(ids) + 1), k=4))
        reader, out = Detokenizer(vocabulary), ""
        for start, end in itertools.pairwise([0, *cuts, len(ids)]):
            out += reader.push(ids[start:end])
            assert text.startswith(out), "what was given out is never taken back"
        assert out + reader.flush() == text


def test_token_by_token_gives_the_text_once(vocabulary: Vocabulary) -> None:
    text = " ".join(TEXTS)
    reader, out = Detokenizer(vocabulary), ""
    for token in middle_ids(vocabulary, text):
        out += reader.push([token])
        assert text.startswith(out)
    assert out == text


@pytest.mark.parametrize("text", TEXTS)
def test_peek_changes_nothing(vocabulary: Vocabulary, text: str) -> None:
    ids = middle_ids(vocabulary, text)
    for cut in range(len(ids) + 1):
        reader = Detokenizer(vocabulary)
        first = reader.push(ids[:cut])
        peeked = reader.peek(ids[cut:])
        assert reader.peek(ids[cut:]) == peeked
        assert first + peeked == text
        assert first + reader.push(ids[cut:]) == text


def test_unfinished_characters_wait_and_are_marked_in_the_end() -> None:
    fox = list("🦊".encode())
    reader = Detokenizer(BYTES)
    assert reader.push([104, *fox[:2]]) in ("", "h")
    assert reader.push(fox[2:3]) == ""
    rest = Detokenizer(BYTES)
    rest.push([104, *fox[:3]])
    assert rest.flush().replace("h", "") == "\ufffd"


def test_a_finished_character_is_not_kept_back_by_an_unfinished_one() -> None:
    """The text before a half character belongs to its own turn."""
    reader = Detokenizer(BYTES)
    assert reader.push([*b"fox ", 0xF0, 0x9F]) == "fox "


def test_bytes_that_are_no_text_do_not_stop_the_rest() -> None:
    reader = Detokenizer(BYTES)
    out = reader.push([0xFF, 65, 0xFE]) + reader.push([66]) + reader.flush()
    assert out == "\ufffdA\ufffdB"


@pytest.mark.parametrize(
    ("text", "position"),
    [("", 0), ("word", 0), ("a word", 1), ("a  word", 1), ("a word ", 6), ("a\n\n", 1), ("  ", 0)],
)
def test_hold_back_keeps_the_last_word_and_the_spaces_before_it(text: str, position: int) -> None:
    assert hold_back(text) == position


@pytest.mark.parametrize("before", ["", "she sells", "x\n", "a long text " * 20, "日本", "  "])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_decode_to_their_texts(vocabulary: Vocabulary, before: str, text: str) -> None:
    ids = encode_after(vocabulary, before, text)
    if ids is None:  # the two do not come apart; the caller reads both anew
        return
    reader = Detokenizer(vocabulary)
    reader.push(vocabulary.encode(before))
    reader.flush()
    assert reader.peek(ids) == text


@pytest.mark.parametrize("before", ["she sells", "the quick", "a long text " * 20])
@pytest.mark.parametrize("text", [" by the shore", " x", "  two", "\nline"])
def test_words_come_apart_from_words(vocabulary: Vocabulary, before: str, text: str) -> None:
    """At a word's start, pieces read together are the pieces read apart."""
    ids = encode_after(vocabulary, before, text)
    assert ids is not None
    assert vocabulary.encode(before.rstrip()) + encode_after(
        vocabulary, before.rstrip(), before[len(before.rstrip()) :] + text
    ) == vocabulary.encode(before + text)


def test_merging_pieces_are_not_torn_apart() -> None:
    vocabulary = VOCABULARIES["fox"]()
    assert len(vocabulary.encode("river")) < len(vocabulary.encode("ri")) + len(
        vocabulary.encode("ver")
    )
    assert encode_after(vocabulary, "the ri", "ver") is None
    assert encode_after(vocabulary, "the", "") == []


def test_common_prefix_is_the_first_difference() -> None:
    numbers = random.Random(0)
    for _ in range(300):
        first = [numbers.randint(0, 1) for _ in range(numbers.randint(0, 9))]
        second = [numbers.randint(0, 1) for _ in range(numbers.randint(0, 9))]
        want = len(
            list(itertools.takewhile(lambda p: p[0] == p[1], zip(first, second, strict=False)))
        )
        assert common_prefix(first, second) == want
