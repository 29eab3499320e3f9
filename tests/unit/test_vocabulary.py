"""Whose ids can be read by whom."""

from __future__ import annotations

import pytest

from antiphon.backends.prompts import PromptFormat, chat_frame
from antiphon.backends.vocabulary import TokenizerVocabulary, differences, shared_ids
from antiphon.errors import InputError
from antiphon.types import Message
from tests.scripted import BYTES
from tests.tiny import CHAT, tokenizer


def test_added_tokens_and_templates_do_not_tell_vocabularies_apart() -> None:
    plain = TokenizerVocabulary(tokenizer())
    for other in (tokenizer(extra="<|new|>"), tokenizer(chat=True)):
        vocabulary = TokenizerVocabulary(other)
        assert vocabulary.fingerprint == plain.fingerprint
        assert differences(plain, vocabulary) == ""


def test_other_merges_and_other_ids_do() -> None:
    fox = TokenizerVocabulary(tokenizer("bytes", "fox"))
    assert "ids" in differences(fox, TokenizerVocabulary(tokenizer("bytes", "sea")))
    assert "only" in differences(fox, TokenizerVocabulary(tokenizer("bytes", "fox", 330)))
    assert differences(fox, TokenizerVocabulary(tokenizer("metaspace", "fox", 420)))
    assert differences(fox, BYTES)


def test_shared_ids_leave_out_what_only_one_has() -> None:
    plain, more = (TokenizerVocabulary(tokenizer(extra=extra)) for extra in ("", "<|new|>"))
    new = more.tokens["<|new|>"]
    assert shared_ids([plain, more]) == frozenset(plain.tokens.values())
    assert new not in shared_ids([plain, more])
    assert new in shared_ids([more, more])


def test_an_id_with_two_meanings_is_not_shared() -> None:
    first, second = (TokenizerVocabulary(tokenizer(extra=extra)) for extra in ("<|x|>", "<|y|>"))
    assert first.tokens["<|x|>"] == second.tokens["<|y|>"]
    assert differences(first, second) == ""
    assert first.tokens["<|x|>"] not in shared_ids([first, second])


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_a_token_in_the_middle_of_a_text_keeps_its_space(kind: str) -> None:
    vocabulary = TokenizerVocabulary(tokenizer(kind, size=420))
    ids = vocabulary.encode("x the fox")
    assert "".join(vocabulary.token_text(token) for token in ids[1:]).lstrip("x") == " the fox"


def test_special_tokens_have_no_text() -> None:
    vocabulary = TokenizerVocabulary(tokenizer())
    assert vocabulary.decode([2, *vocabulary.encode("fox"), 2]) == "fox"
    assert vocabulary.token_text(2) == ""


# -- prompts -----------------------------------------------------------------------------------
def test_auto_uses_the_template_where_there_is_one() -> None:
    with_template = TokenizerVocabulary(tokenizer(chat=True))
    ids = PromptFormat().render("hi fox", with_template, "m")
    assert with_template.tokenizer.decode(ids) == "<|user|>hi fox<|end|><|assistant|>"
    without = TokenizerVocabulary(tokenizer())
    ids = PromptFormat(add_bos=False).render("hi fox", without, "m")
    assert without.decode(ids) == "User: hi fox\nAssistant:"


def test_chats_are_rendered_turn_by_turn() -> None:
    chat = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    vocabulary = TokenizerVocabulary(tokenizer())
    plain = PromptFormat("plain", add_bos=False).render(chat, vocabulary, "m")
    assert vocabulary.decode(plain) == "User: one\nAssistant: two\nUser: three\nAssistant:"
    raw = PromptFormat("raw", add_bos=False).render(chat, vocabulary, "m")
    assert vocabulary.decode(raw) == "one\ntwo\nthree"


@pytest.mark.parametrize("query", ["", "  \n", [], [Message("user", " ")]])
def test_empty_queries_are_refused(query: object) -> None:
    with pytest.raises(InputError, match="empty"):
        PromptFormat("raw").render(query, TokenizerVocabulary(tokenizer()), "m")


def test_templates_that_are_missing_or_refuse_are_named() -> None:
    with pytest.raises(InputError, match=r"'m'.*has none"):
        PromptFormat("template").render("hi", TokenizerVocabulary(tokenizer()), "m")
    strict = TokenizerVocabulary(_with_template("{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(InputError, match="roles must alternate"):
        PromptFormat().render("hi", strict, "m")


def test_chat_frame_is_what_stands_around_the_user() -> None:
    vocabulary = TokenizerVocabulary(tokenizer(chat=True))
    assert chat_frame(vocabulary, "m") == ("<|user|>", "<|end|><|assistant|>")
    with pytest.raises(InputError, match="has none"):
        chat_frame(TokenizerVocabulary(tokenizer()), "m")
    with pytest.raises(InputError, match="changes the user's text"):
        chat_frame(TokenizerVocabulary(_with_template("{{ messages|length }}")), "m")


def _with_template(template: str) -> object:
    made = tokenizer.__wrapped__()  # not the shared one
    assert made.chat_template != CHAT
    made.chat_template = template
    return made
