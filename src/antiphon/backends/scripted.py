"""A model that says what it is told: for tests and documentation, without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from antiphon.backends.base import Generated, ModelInfo
from antiphon.backends.vocabulary import ByteVocabulary
from antiphon.errors import InputError
from antiphon.types import Query, SamplingParams, as_messages

Script = str | Callable[[str, str], str]
"""The whole answer, or ``(question, written so far) -> what comes next``."""


class ScriptedBackend:
    """Continues any answer with its script; offers ``Generates`` and ``Scores``.

    With a string, the continuation of an answer of ``n`` characters is the script from character
    ``n`` on, whoever wrote the answer; then the end of sequence. Tokens are UTF-8 bytes.

    Args:
        name: as the user calls it.
        script: see :data:`Script`.
        context_length: most bytes of question and answer; ``None``: no limit.
    """

    def __init__(self, name: str, script: Script, context_length: int | None = None) -> None:
        self._script = script
        self._vocabulary = ByteVocabulary()
        self.calls = 0
        self.info = ModelInfo(
            name,
            "scripted",
            self._vocabulary,
            context_length,
            frozenset({ByteVocabulary.eos_id}),
        )

    def render(self, query: Query) -> list[int]:
        messages = as_messages(query)
        text = "\n".join(message.content for message in messages)
        if not text.strip():
            raise InputError("the prompt is empty", remedy="give a question")
        return [*self._vocabulary.encode(text), ByteVocabulary.answer_id]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        sampling: SamplingParams,
        seeds: Sequence[int],
    ) -> list[Generated]:
        """See :class:`antiphon.backends.base.Generates`; a script leaves nothing to draw."""
        self.calls += 1
        return [
            Generated(tuple(self._rest(prompt)[:most]))
            for prompt, most in zip(prompts, max_new_tokens, strict=True)
        ]

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """See :class:`antiphon.backends.base.Scores`: 0 where the script agrees, else -inf."""
        scores = []
        for prompt, continuation in zip(prompts, continuations, strict=True):
            read = list(prompt)
            row = []
            for token in continuation:
                row.append(0.0 if self._rest(read)[:1] == [token] else float("-inf"))
                read.append(token)
            scores.append(row)
        return scores

    def _rest(self, ids: Sequence[int]) -> list[int]:
        """What the script says after these ids, the end of sequence included."""
        start = list(ids).index(ByteVocabulary.answer_id)
        question = self._vocabulary.decode(ids[:start])
        written = self._vocabulary.decode(ids[start + 1 :])
        if isinstance(self._script, str):
            # In bytes: an answer may be cut inside a character.
            rest = self._vocabulary.encode(self._script)[len(ids) - start - 1 :]
        else:
            rest = self._vocabulary.encode(self._script(question, written))
        return [*rest, ByteVocabulary.eos_id]
