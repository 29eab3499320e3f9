"""Models by their size: ``8B``, ``350M``, or a local model's configuration."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antiphon.errors import InputError


@dataclass(frozen=True)
class ModelSize:
    """What a model's cost depends on.

    Attributes:
        name: as it was given.
        key: equal for the same weights.
        parameters: how many.
        layers: how many.
        width: query heads times their size.
        kv_width: key-value heads times their size.
        is_local: read from a configuration, not from the table.
    """

    name: str
    key: str
    parameters: float
    layers: int
    width: int
    kv_width: int
    is_local: bool = False

    @property
    def kv_numbers(self) -> int:
        """Numbers kept of one position of one row."""
        return 2 * self.layers * self.kv_width


TABLE = (
    (3e6, 4, 224, 224),
    (12e6, 6, 384, 384),
    (1e9, 16, 2048, 512),
    (3e9, 28, 3072, 1024),
    (8e9, 32, 4096, 1024),
    (70e9, 80, 8192, 1024),
    (405e9, 126, 16384, 1024),
)
"""Parameters, layers, width and key-value width: the benchmark's models up to 12 M, Llama 3 from
1 B on. Sizes between them are interpolated, in logarithms."""

_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_LEAST, _MOST = 1e5, 1e13


def model_size(text: str, place: int = 0) -> ModelSize:
    """The size behind ``8B``, a model's directory, or its ``config.json``.

    Args:
        text: what was given.
        place: which of several models it is; two of one size are two models all the same.

    Raises:
        InputError: it is neither, or a configuration that cannot be read.
    """
    given = text.strip()
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMBT])", given, re.IGNORECASE)
    if size is None:
        if given and Path(given).exists():
            return _from_config(given)
        raise InputError(
            f"{text!r} is neither a size nor a local model",
            remedy="give a size such as 8B, 1.5B or 350M, or a directory with config.json",
        )
    parameters = float(size[1]) * _UNITS[size[2].upper()]
    if not _LEAST <= parameters <= _MOST:
        raise InputError(
            f"{text!r}: a model of {parameters:g} parameters is beyond what the table of shapes "
            "can be stretched to",
            remedy="give 100K to 10T",
        )
    layers, width, kv_width = _shape(parameters)
    return ModelSize(given, f"{given} {place}", parameters, layers, width, kv_width)


def _shape(parameters: float) -> tuple[int, int, int]:
    """Layers, width and key-value width of a typical model of so many parameters."""
    above = next((i for i, row in enumerate(TABLE) if row[0] >= parameters), len(TABLE) - 1)
    low, high = TABLE[max(0, above - 1)], TABLE[max(1, above)]
    share = math.log(parameters / low[0]) / math.log(high[0] / low[0])
    layers, width, kv_width = (
        max(1, round(low[i] * (high[i] / low[i]) ** share)) for i in range(1, 4)
    )
    return layers, width, min(kv_width, width)


def _from_config(path: str) -> ModelSize:
    """Shape and parameters by a configuration; no weights are read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from antiphon.backends.families import bytes_per_position

    try:
        config = AutoConfig.from_pretrained(path)
        with torch.device("meta"):  # a model without storage
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # files make these raise whatever they like
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the configuration of {path!r} cannot be read: {first}",
            remedy="give a directory with config.json, or a size such as 8B; for an adapter, its "
            "base",
        ) from error
    text: Any = config.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    heads = getattr(text, "num_attention_heads", 0) or 0
    size = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    folder = Path(path).resolve()
    folder = folder.parent if folder.is_file() else folder
    return ModelSize(
        name=folder.name,
        key=str(folder),
        parameters=sum(weights.numel() for weights in model.parameters()),
        layers=layers,
        width=heads * size,
        kv_width=bytes_per_position(config, 1) // (2 * layers),
        is_local=True,
    )
