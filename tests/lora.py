"""Random LoRA adapters over one tiny base, made in memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import peft
import torch

from antiphon.backends.transformers import LoadedModel
from tests.tiny import build


def adapted(names: Sequence[str] = ("red", "blue")) -> LoadedModel:
    """One set of weights with adapters of these names, which change what is written."""
    made = LoadedModel(build("llama"), "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 for a property by its old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        torch.manual_seed(0)
        model: Any = peft.PeftModel(made.model, config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
        with torch.no_grad():
            for key, weights in model.named_parameters():
                if "lora_B" in key:  # zeros at first: an adapter that changes nothing
                    weights.normal_(std=0.5)
    made.model = model.eval()
    made.adapters.update(names)
    return made
