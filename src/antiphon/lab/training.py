"""Training of one stage, resumable at any moment with a bit-identical result."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from antiphon.lab.corpus import Corpus, Text
from antiphon.lab.recipe import Recipe, StageRecipe
from antiphon.lab.tokenizer import ASSISTANT, END, USER

Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all)."""

_IGNORE = -100  # label of positions without a loss
_WARMUP = 0.05  # share of the steps


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A freshly initialised network; the global random state is left as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train_stage(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    stage: str,
    state_file: Path,
    progress: Progress | None = None,
) -> None:
    """Train ``model`` in place through all steps of ``stage``.

    Args:
        state_file: where the training state (weights, optimizer, step) is saved every
            ``save_every`` steps; if it exists, training goes on from there. There is no random
            state to save: a batch depends on nothing but the seed, the stage and the step.
    """
    plan = corpus.recipe.stage(stage)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    first = _restore(state_file, model, optimizer)
    model.train()
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(plan, step)
        batch = encode(corpus.batch(stage, step), tokenizer, corpus.recipe.context)
        optimizer.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if done % plan.save_every == 0 and done < plan.steps:
            _save(state_file, model, optimizer, done)
        if progress is not None:
            progress(stage, done, plan.steps)
    model.eval()


def encode(
    texts: list[Text], tokenizer: PreTrainedTokenizerFast, context: int
) -> dict[str, torch.Tensor]:
    """Right-padded rows: ``input_ids``, ``attention_mask`` and ``labels``, each (batch, length).

    Documents are learned in full and cut to ``context`` tokens. Of a chat only the answer is
    learned, with its end; chats are never cut.
    """
    rows: list[tuple[list[int], int]] = []  # ids, where learning starts
    prompts = [f"{USER}{t.prompt}{END}{ASSISTANT}" if t.prompt else "" for t in texts]
    bodies = [text.body for text in texts]
    encoded_prompts = tokenizer(prompts).input_ids
    encoded_bodies = tokenizer(bodies).input_ids
    for prompt, body in zip(encoded_prompts, encoded_bodies, strict=True):
        ids = [*prompt, *body, tokenizer.eos_token_id]
        rows.append((ids if prompt else ids[:context], len(prompt)))
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), length), int(tokenizer.pad_token_id))
    mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, _IGNORE)
    for row, (ids, start) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def _learning_rate(plan: StageRecipe, step: int) -> float:
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    warmup = max(1, round(_WARMUP * plan.steps))
    if step < warmup:
        return plan.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, plan.steps - warmup)
    return plan.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def _save(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the training state so that a reader sees the old file or the new one, never a part."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _restore(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Load the training state, if there is one; return the number of steps it has done."""
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
