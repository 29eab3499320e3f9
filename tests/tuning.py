"""Small trainings: models to start from, examples, and what came out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from antiphon.backends.loading import Loader
from antiphon.config import ModelConfig
from antiphon.training.finetuning import ChoiceExample, CompletionExample, TrainConfig
from tests.tiny import build, random_ids, tokenizer

FAMILIES = ["llama", "gpt2", "qwen2"]
LABELS = (20, 21)
SMALL = {"num_hidden_layers": 2, "vocabulary": 320}


def save_base(folder: Path, family: str) -> Path:
    """A model directory with a tokenizer."""
    build(family, **SMALL).save_pretrained(folder)
    tokenizer.__wrapped__().save_pretrained(folder)
    return folder


def choices(count: int = 40, seed: int = 0, low: int = 3, high: int = 12) -> list[ChoiceExample]:
    """Random prompts whose last id's parity is the label; two examples a group."""
    lengths = random.Random(seed).choices(range(low, high), k=count)
    rows = random_ids(lengths, seed)
    return [
        ChoiceExample(tuple(ids), (1.0, 0.0) if ids[-1] % 2 == 0 else (0.0, 1.0), f"q{number // 2}")
        for number, ids in enumerate(rows)
    ]


def completions(count: int = 24, seed: int = 1) -> list[CompletionExample]:
    rows = random_ids([5 + number % 4 for number in range(count)], seed)
    return [
        CompletionExample(tuple(ids[:-3]), (*ids[-3:-1], 2), f"q{number}")
        for number, ids in enumerate(rows)
    ]


def quick(**over: Any) -> TrainConfig:
    return TrainConfig(
        **{"learning_rate": 3e-3, "epochs": 2, "batch_size": 8, "validation_share": 0.2, **over}
    )


def weights(folder: Path) -> bytes:
    [file] = folder.glob("*.safetensors")
    return file.read_bytes()


def logits_of(folder: Path, ids: list[int]) -> torch.Tensor:
    """As decoding reads them."""
    backend = Loader().load(ModelConfig(model=str(folder)), "x")
    names = {} if backend.adapter is None else {"adapter_names": [backend.adapter]}
    with torch.no_grad():
        return backend.loaded.model(torch.tensor([ids]), use_cache=False, **names).logits[0].float()
