"""What a model must offer to take part: three small capabilities, and nothing about where it runs.

* :class:`Generates`: "continue this prompt". Enough for turn-taking; a remote server can do it.
* :class:`Scores`: "how likely is this continuation". Enough for a switcher's decision.
* :class:`Steps`: "read these tokens, give me the full next-token logits; fork; crop". What fast
  turn-taking, entropy rules and everything that mixes distributions need.

A method asks :func:`require` for the capabilities it needs before anything is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from antiphon.errors import CapabilityError
from antiphon.types import Query, SamplingParams


class Vocabulary(Protocol):
    """Text to token ids and back, and enough about itself to know whose ids it can read."""

    @property
    def size(self) -> int:
        """Number of ids; every id is below it."""

    @property
    def name(self) -> str:
        """For messages, e.g. the tokenizer's path."""

    @property
    def fingerprint(self) -> str:
        """Equal exactly when two vocabularies split text alike (added tokens apart)."""

    @property
    def tokens(self) -> dict[str, int]:
        """Token string to id, added tokens included."""

    @property
    def added_ids(self) -> frozenset[int]:
        """Ids of added and special tokens, on which two vocabularies may differ harmlessly."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` alone: nothing is put before or after it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens left out, spaces exactly as the ids say."""

    def token_text(self, token_id: int) -> str:
        """Text of one token in the middle of a text, as far as one token has a text."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model.

    Attributes:
        name: as the user calls it.
        family: architecture, e.g. ``llama``.
        vocabulary: how it reads text.
        context_length: most positions (prompt and response together); ``None``: no limit known.
        eos_ids: tokens that end its response.
        bytes_per_position: KV-cache bytes of one position of one row; 0 if it keeps none here.
        embedding_size: ids it can read without failing; ``None``: all of its vocabulary.
    """

    name: str
    family: str
    vocabulary: Vocabulary
    context_length: int | None
    eos_ids: frozenset[int]
    bytes_per_position: int = 0
    embedding_size: int | None = None


@dataclass(frozen=True)
class Generated:
    """One continuation: its token ids, an end-of-sequence token included if it was drawn."""

    token_ids: tuple[int, ...]


class Backend(Protocol):
    """A model, wherever it runs."""

    @property
    def info(self) -> ModelInfo: ...

    def render(self, query: Query) -> list[int]:
        """Token ids of the prompt after which this model's answer starts.

        Raises:
            InputError: the query is empty or the model's chat template rejects it.
        """


@runtime_checkable
class Generates(Protocol):
    """Continues prompts."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        sampling: SamplingParams,
        seeds: Sequence[int],
    ) -> list[Generated]:
        """Continue every prompt by at most ``max_new_tokens[i]`` tokens; stops after an
        end-of-sequence token. The same seed and prompt give the same tokens in any batch."""


@runtime_checkable
class Scores(Protocol):
    """Says how likely continuations are."""

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Natural-log probability of each token of ``continuations[i]`` after ``prompts[i]``."""


@dataclass
class Lane:
    """One row's place in one session: the tokens whose states are stored, and the work done.

    Attributes:
        slot: place in the session's storage.
        adapter: adapter under which the lane is computed; ``None``: the plain model.
        ids: token ids whose states are stored.
        prefill: positions read in chunks so far.
        decode: positions read one at a time so far.
        idle: positions computed for padding, or after the row had stopped.
    """

    slot: int
    adapter: str | None = None
    ids: list[int] = field(default_factory=list)
    prefill: int = 0
    decode: int = 0
    idle: int = 0


class Batch(Protocol):
    """Lanes checked out to be computed together, in the order given.

    Attributes:
        states: final hidden states behind the logits of the latest call, ``[rows, hidden]``, in the
            model's dtype; ``None`` if the model does not show them.
    """

    states: torch.Tensor | None

    def extend(self, chunks: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read ``chunks[i]`` into row ``i``; a chunk may be empty, but not all of them.

        Returns:
            ``[rows, vocabulary]`` float32 logits after each row's last token; what stands in the
            rows of empty chunks means nothing.
        """

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one token a row (``[rows]`` int64); returns ``[rows, vocabulary]`` logits."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only (indices into the current order, ascending)."""

    def idle(self, row: int) -> None:
        """From now on what is computed for this row is of no use: count it so, and forget it."""


class Session(Protocol):
    """KV states of many rows in one model. Positions already read are never read again.

    Attributes:
        crops: whether ``crop`` keeps what is before the cut; a session that does not reads the
            row again when it is next used, and ``fork`` is the cheaper way back.
    """

    crops: bool

    def open(self, adapter: str | None = None) -> Lane:
        """A new, empty lane."""

    def batch(self, lanes: Sequence[Lane]) -> AbstractContextManager[Batch]:
        """Check out distinct lanes; what the batch read is stored when the context ends."""

    def fork(self, lane: Lane, copies: int) -> list[Lane]:
        """New lanes that hold the same states; their counts start at zero."""

    def crop(self, lane: Lane, length: int) -> None:
        """Forget everything after the first ``length`` tokens."""

    def release(self, lane: Lane) -> None:
        """Give the lane's storage back."""

    def reserve(self, lanes: int, positions: int) -> None:
        """Say how many lanes of how many positions are coming, so that storage grows once."""


class Stepper(Protocol):
    """A model in this process; several backends (adapters) may share one."""

    def new_session(self) -> Session: ...


@runtime_checkable
class Steps(Protocol):
    """Steps through tokens with full logits."""

    @property
    def stepper(self) -> Stepper: ...

    @property
    def adapter(self) -> str | None:
        """Adapter of the stepper under which this model is computed."""


CAPABILITIES: dict[str, type] = {"Generates": Generates, "Scores": Scores, "Steps": Steps}


def require(backend: Backend, capability: str, needed_by: str) -> None:
    """Raise unless the backend has the capability.

    Raises:
        CapabilityError: names the model, what it lacks, who needs it and what to do.
    """
    if not isinstance(backend, CAPABILITIES[capability]):
        raise CapabilityError(
            f"{needed_by} needs the capability {capability!r}, which model "
            f"{backend.info.name!r} ({type(backend).__name__}) does not have",
            remedy="load that model with the transformers backend, or choose an option that does "
            "without",
        )
