"""Backends that write what a test tells them to, and note what they were made to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from antiphon.backends.base import Generated, Lane, ModelInfo
from antiphon.backends.vocabulary import ByteVocabulary
from antiphon.types import Query, SamplingParams, as_messages

Script = Callable[[list[int]], int]
"""All ids so far, the prompt's included, to the next id."""

BYTES = ByteVocabulary()
EOS = ByteVocabulary.eos_id


class _Batch:
    states = None

    def __init__(self, model: ScriptedModel, lanes: Sequence[Lane]) -> None:
        self.model, self.lanes, self.stopped = model, list(lanes), set[int]()

    def _logits(self) -> torch.Tensor:
        logits = torch.zeros(len(self.lanes), self.model.size)
        for row, lane in enumerate(self.lanes):
            logits[row, self.model.script(lane.ids)] = 30.0
        return logits

    def extend(self, chunks: Sequence[Sequence[int]]) -> torch.Tensor:
        assert any(chunks)
        for lane, chunk in zip(self.lanes, chunks, strict=True):
            lane.ids.extend(chunk)
            lane.prefill += len(chunk)
            if chunk:
                self.model.read.append(list(lane.ids))
        return self._logits()

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        for row, (lane, token) in enumerate(zip(self.lanes, tokens.tolist(), strict=True)):
            if row not in self.stopped:
                lane.ids.append(token)
                lane.decode += 1
        return self._logits()

    def keep(self, rows: Sequence[int]) -> None:
        self.lanes = [self.lanes[row] for row in rows]
        self.stopped = {rows.index(row) for row in self.stopped if row in rows}

    def idle(self, row: int) -> None:
        self.stopped.add(row)


class ScriptedModel:
    """Stepper and session in one; ``read`` holds the ids of every lane after every chunk."""

    device = torch.device("cpu")

    def __init__(self, script: Script, size: int) -> None:
        self.script, self.size = script, size
        self.read: list[list[int]] = []
        self.open_lanes = 0

    def new_session(self) -> ScriptedModel:
        return self

    def open(self, adapter: str | None = None) -> Lane:
        self.open_lanes += 1
        return Lane(self.open_lanes, adapter)

    def release(self, lane: Lane) -> None:
        self.open_lanes -= 1

    def crop(self, lane: Lane, length: int) -> None:
        assert 0 <= length <= len(lane.ids)
        del lane.ids[length:]

    def fork(self, lane: Lane, copies: int) -> list[Lane]:
        forks = [self.open(lane.adapter) for _ in range(copies)]
        for fork in forks:
            fork.ids = list(lane.ids)
        return forks

    def reserve(self, lanes: int, positions: int) -> None:
        """Nothing to reserve."""

    @contextmanager
    def batch(self, lanes: Sequence[Lane]) -> Iterator[_Batch]:
        yield _Batch(self, lanes)


class Scripted:
    """A backend over a vocabulary; the prompt is the query's last message, as it is."""

    def __init__(
        self,
        name: str,
        script: Script,
        *,
        vocabulary: Any = BYTES,
        eos: Sequence[int] = (EOS,),
        context: int | None = None,
    ) -> None:
        self.stepper = ScriptedModel(script, vocabulary.size)
        self.adapter = None
        self.info = ModelInfo(name, "scripted", vocabulary, context, frozenset(eos))

    def render(self, query: Query) -> list[int]:
        return self.info.vocabulary.encode(as_messages(query)[-1].content)


class Asked:
    """A backend that can only generate, as one behind a server; notes its requests."""

    def __init__(self, name: str, script: Script, *, vocabulary: Any = BYTES) -> None:
        self.script = script
        self.info = ModelInfo(name, "asked", vocabulary, None, frozenset({EOS}))
        self.requests: list[tuple[list[list[int]], SamplingParams]] = []

    def render(self, query: Query) -> list[int]:
        return self.info.vocabulary.encode(as_messages(query)[-1].content)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        sampling: SamplingParams,
        seeds: Sequence[int],
    ) -> list[Generated]:
        self.requests.append(([list(prompt) for prompt in prompts], sampling))
        answers = []
        for prompt, most in zip(prompts, max_new_tokens, strict=True):
            ids = list(prompt)
            while len(ids) < len(prompt) + most:
                ids.append(self.script(ids))
                if ids[-1] == EOS:
                    break
            answers.append(Generated(tuple(ids[len(prompt) :])))
        return answers


def says(text: str, prompt: str, vocabulary: Any = BYTES, then: int = EOS) -> Script:
    """Goes on with ``text`` after ``prompt``, from wherever the answer has got to, whoever wrote
    it; ``then`` follows at its end."""

    newline = vocabulary.encode("\n")

    def script(ids: list[int]) -> int:
        whole = list(vocabulary.encode(prompt + text))
        if ids == whole[: len(ids)]:
            return whole[len(ids)] if len(ids) < len(whole) else then
        # Somebody else's words stand in other tokens: go on behind the last whole character.
        end = len(ids)
        while vocabulary.decode(ids[:end]).endswith("\ufffd"):
            end -= 1
        done = vocabulary.decode(ids[:end])[len(prompt) :]
        assert text.startswith(done), (text, done)
        rest = [*vocabulary.encode("\n" + text[len(done) :])[len(newline) :], then]
        begun = ids[end:]
        assert rest[: len(begun)] == begun
        return rest[len(begun)]

    return script


def always(token: int) -> Script:
    """The same token for ever."""
    return lambda ids: token


def letters(letter: str) -> Script:
    """The same letter for ever (byte vocabulary)."""
    return always(ord(letter))
