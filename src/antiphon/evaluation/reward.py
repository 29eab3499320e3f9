"""Reward models: a sequence classifier with one output says how good an answer is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from antiphon.errors import InputError
from antiphon.evaluation.generation import Item
from antiphon.evaluation.scoring import valid
from antiphon.record import digest, directory_fingerprint
from antiphon.types import Message, Query, as_messages


class RewardModel:
    """A reward model as :class:`antiphon.evaluation.scoring.Scorer`; its scores have no bounds.

    Query and answer are put through the tokenizer's chat template as a conversation. A tokenizer
    without one gets them as a pair if it has a separator (BERT's kind), else as
    ``query, newline, answer``. Batches are padded on the right under a mask, so a score does not
    depend on its batch beyond rounding; a model whose configuration names no padding token reads
    row by row.

    Args:
        path: hub id or directory of any ``AutoModelForSequenceClassification`` with one label.
        batch_size: answers read at once.
        device: ``cpu``, ``cuda``, ...; ``auto`` is a GPU if there is one.
        max_length: longer conversations are cut at their end to this many tokens. ``None``: those
            longer than the model can read are refused.

    Raises:
        InputError: it cannot be loaded, has not one label, or no trained head.
    """

    low = -math.inf
    high = math.inf

    def __init__(
        self,
        path: str | Path,
        batch_size: int = 8,
        device: str = "auto",
        max_length: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value is not None and value < 1:
                raise InputError(
                    f"the reward model's {name} is {value}",
                    remedy="give 1 or more, or leave it out",
                )
        self.name = str(path)
        self.batch_size = batch_size
        self.max_length = max_length
        config = self._read_config()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.name)
            self.model, loading = AutoModelForSequenceClassification.from_pretrained(
                self.name, config=config, dtype="auto", output_loading_info=True
            )
        except Exception as error:  # files make these raise whatever they like
            raise self._unreadable(error) from error
        if loading["missing_keys"]:
            raise InputError(
                f"the reward model {self.name} has no weights for "
                f"{sorted(loading['missing_keys'])[0]!r}; its scores would be random",
                remedy="give a model that was saved as a sequence classifier",
            )
        self.model.to(_device(device)).eval()
        self._pad = config.get_text_config().pad_token_id
        self._limit = _limit(config, self.tokenizer)
        self.fingerprint = f"reward model {self._identity(config)}"

    def _read_config(self) -> Any:
        try:
            config = AutoConfig.from_pretrained(self.name)
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(error) from error
        if config.num_labels != 1:
            raise InputError(
                f"{self.name} is no reward model: it has {config.num_labels} labels, and a reward "
                "model has one",
                remedy="give a sequence classifier with num_labels=1",
            )
        return config

    def _unreadable(self, error: Exception) -> InputError:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return InputError(
            f"the reward model {self.name} cannot be loaded: {first}",
            remedy="give a directory with config.json, or a hub id that can be reached",
        )

    def _identity(self, config: Any) -> str:
        """What tells two states of the model apart, and how it is asked."""
        folder = Path(self.name)
        if folder.is_dir():
            state = directory_fingerprint(folder)
        else:
            state = f"{self.name} {getattr(config, '_commit_hash', None)}"
        return digest([state, self.max_length])

    # -- scoring -----------------------------------------------------------------------------
    def check(self, items: Sequence[Item]) -> None:
        """Every query can be read with an answer of one word."""
        for number, item in enumerate(items, 1):
            self._encode(item.query, "x", f"item {number}")

    def score(self, texts: Sequence[str], items: Sequence[Item]) -> list[float]:
        rows = [
            self._encode(item.query, text, f"answer {number}")
            for number, (text, item) in enumerate(zip(texts, items, strict=True), 1)
        ]
        # Rows of about one length share a batch, so that little is padded.
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))
        size = 1 if self._pad is None else self.batch_size
        scores = [0.0] * len(rows)
        for start in range(0, len(order), size):
            places = order[start : start + size]
            values = self._forward([rows[place] for place in places])
            for place, value in zip(places, values, strict=True):
                scores[place] = valid(value, self, place + 1, items[place])
        return scores

    @torch.inference_mode()
    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> list[float]:
        longest = max(len(row["input_ids"]) for row in rows)
        blanks = {"input_ids": self._pad or 0, "attention_mask": 0, "token_type_ids": 0}
        inputs = {
            name: torch.tensor(
                [row[name] + [blanks[name]] * (longest - len(row[name])) for row in rows],
                device=self.model.device,
            )
            for name in rows[0]
        }
        logits: torch.Tensor = self.model(**inputs).logits
        return [float(value) for value in logits[:, 0].float()]

    def _encode(self, query: Query, text: str, what: str) -> dict[str, list[int]]:
        """Ids and masks of one conversation, by the names of the model's arguments.

        Raises:
            InputError: the chat template rejects it, or it is too long to be read.
        """
        messages = as_messages(query)
        if getattr(self.tokenizer, "chat_template", None):
            ids = self._from_template([*messages, Message("assistant", text)], what)
            row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        else:
            asked = "\n".join(message.content for message in messages)
            pair = self.tokenizer.sep_token_id is not None
            given = (asked, text) if pair else (f"{asked}\n{text}",)
            encoded = self.tokenizer(*given, return_attention_mask=True)
            row = {name: list(encoded[name]) for name in _READ if name in encoded}
        length = len(row["input_ids"])
        if self.max_length is not None:
            most = min(self.max_length, self._limit or self.max_length)
            row = {name: values[:most] for name, values in row.items()}
        elif self._limit is not None and length > self._limit:
            raise InputError(
                f"{what} takes {length} tokens with its query, and the reward model {self.name} "
                f"reads at most {self._limit}",
                remedy="lower max_new_tokens, use a reward model of longer context, or set its "
                "max_length to cut such conversations",
            )
        return row

    def _from_template(self, messages: Sequence[Message], what: str) -> list[int]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return list(self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))
        except Exception as error:  # templates raise whatever their authors chose
            raise InputError(
                f"the chat template of the reward model {self.name} rejects {what}: {error}",
                remedy="check the roles of its messages and their order",
            ) from error


_READ = ("input_ids", "attention_mask", "token_type_ids")


def _limit(config: Any, tokenizer: Any) -> int | None:
    """Most tokens that the model reads; ``None``: no limit is known."""
    limits = [getattr(config.get_text_config(), "max_position_embeddings", None)]
    limits.append(tokenizer.model_max_length)  # enormous where the tokenizer knows of no limit
    return min((limit for limit in limits if limit and limit < 10**9), default=None)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.suppress(RuntimeError, AssertionError):
        device = torch.device(name)
        torch.empty(0, device=device)
        return device
    raise InputError(
        f"the reward model was to go to the device {name!r}, which this machine does not have",
        remedy="use cpu, cuda, or leave it out",
    )
