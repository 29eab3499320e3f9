"""Tiny random models and tokenizers, made in memory.

Weights are eight times wider than usual, so that wrong masks, positions or states change tokens
visibly instead of hiding in near-uniform distributions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from antiphon.backends.base import Vocabulary
from antiphon.backends.prompts import PromptFormat
from antiphon.backends.transformers import LoadedModel, TransformersBackend
from antiphon.backends.vocabulary import TokenizerVocabulary
from antiphon.decoding.pool import CandidatePool
from antiphon.types import GREEDY, Completion, Query, SamplingParams

ATTENTION = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "olmo2",
    "phi3",
    "opt",
)
RECURRENT = ("mamba", "mamba2", "jamba", "bamba", "falcon_h1", "lfm2", "qwen3_next")
WINDOW = 8
VOCABULARY = 320

# -- models ------------------------------------------------------------------------------------
_HALVES = ["sliding_attention", "full_attention"]
_SSM = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
_GEMMA = {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", _GEMMA),
    "gemma3_text": ("Gemma3TextConfig", {**_GEMMA, "layer_types": _HALVES * 2}),
    "gpt2": ("GPT2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "phi3": ("Phi3Config", {}),
    # Tied embeddings make a random OPT repeat a handful of tokens.
    "opt": (
        "OPTConfig",
        {"ffn_dim": 64, "word_embed_proj_dim": 32, "tie_word_embeddings": False},
    ),
    "starcoder2": ("Starcoder2Config", {}),
    "mamba": ("MambaConfig", {"state_size": 8}),
    "mamba2": (
        "Mamba2Config",
        {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "jamba": (
        "JambaConfig",
        {
            "mamba_d_state": 8,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    "bamba": ("BambaConfig", {**_SSM, "attn_layer_indices": [1, 3]}),
    "falcon_h1": ("FalconH1Config", {**_SSM, "mamba_d_ssm": 64}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"] * 2}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
}


def build(kind: str, *, seed: int = 0, vocabulary: int = VOCABULARY, **over: Any) -> Any:
    """A random causal LM of one family, in evaluation mode."""
    name, special = _FAMILIES[kind]
    options: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **special,
        **over,
    }
    if kind == "gpt_neox":
        del options["num_key_value_heads"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, name)(**options)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8.0)
    return model.eval()


@cache
def loaded(kind: str = "llama", seed: int = 0, vocabulary: int = VOCABULARY) -> LoadedModel:
    """A shared model; tests leave it as it is."""
    return LoadedModel(build(kind, seed=seed, vocabulary=vocabulary), f"{kind}{seed}")


# -- tokenizers --------------------------------------------------------------------------------
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = {
    "fox": (
        "the quick brown fox jumps over the lazy dog. what is two plus two? the answer is four. "
        "every morning some birds sing before sunrise, then they fly away and search for food. "
        "nobody knows where that old road begins, but people say it ends beside a river."
    ),
    "sea": (
        "she sells sea shells by the sea shore, and the waves rolled over them all night. "
        "ships come home from distant islands with silver, spices and many strange stories. "
        "a quiet captain counted seven white gulls above his head and named them one by one."
    ),
}


@cache
def tokenizer(
    kind: str = "bytes",
    text: str = "fox",
    size: int = VOCABULARY,
    extra: str = "",
    chat: bool = False,
) -> PreTrainedTokenizerFast:
    """A trained tokenizer.

    Args:
        kind: ``bytes`` (byte-level BPE, split at words) or ``metaspace`` (SentencePiece-like, with
            byte fallback).
        text: key of the text it is trained on; other texts give other merges.
        size: ids, ``extra`` not counted.
        extra: one added token.
        chat: whether it has a chat template.
    """
    options: dict[str, Any] = {"vocab_size": size, "show_progress": False}
    if kind == "bytes":
        backend = Tokenizer(models.BPE(unk_token=None))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, **options)
    else:
        backend = Tokenizer(models.BPE(unk_token=None, byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1),
            ]
        )
        raw = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(special_tokens=[*SPECIAL, *raw], **options)
    backend.train_from_iterator([TEXTS[text]] * 20, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[3:],
    )
    if kind == "metaspace":
        # As in SentencePiece models: bytes are ordinary tokens, not special ones.
        made = _without_special_bytes(made)
    if extra:
        made.add_tokens([extra])
    if chat:
        made.chat_template = CHAT
    return made


def _without_special_bytes(made: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    data = json.loads(made.backend_tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[3:],
    )


# -- backends ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class IdPrompt(PromptFormat):
    """The query is the prompt's ids, in decimal."""

    def render(self, query: Query, vocabulary: Vocabulary, model: str) -> list[int]:
        return [int(part) for part in str(query).split()]


IDS = IdPrompt()
RAW = PromptFormat("raw", add_bos=False)


def backend(
    name: str = "a",
    model: LoadedModel | None = None,
    *,
    prompt: PromptFormat = RAW,
    eos: Sequence[int] = (),
    tokens: Any = None,
    adapter: str | None = None,
) -> TransformersBackend:
    """A candidate that never ends unless ``eos`` is given."""
    vocabulary = TokenizerVocabulary(tokens or tokenizer(), name)
    return TransformersBackend(name, model or loaded(), vocabulary, prompt, frozenset(eos), adapter)


def three(
    kind: str = "llama", sampling: SamplingParams | None = None, **options: Any
) -> CandidatePool:
    """Three different models of one family and vocabulary."""
    made = {name: backend(name, loaded(kind, seed), **options) for seed, name in enumerate("abc")}
    return CandidatePool(made, sampling)


def copies(count: int, one: TransformersBackend) -> CandidatePool:
    """The same model under several names, greedy."""
    return CandidatePool({f"copy{index}": one for index in range(count)}, GREEDY)


# -- references --------------------------------------------------------------------------------
def random_ids(lengths: Sequence[int], seed: int = 0, size: int = VOCABULARY) -> list[list[int]]:
    """Rows of random ordinary ids."""
    generator = torch.Generator().manual_seed(seed)
    low = len(SPECIAL)
    return [torch.randint(low, size, (n,), generator=generator).tolist() for n in lengths]


def as_query(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


@torch.no_grad()
def greedy_alone(
    model: Any, prompt: Sequence[int], count: int, eos: int | None = None
) -> list[int]:
    """What ``generate`` writes for one row on its own."""
    out = model.generate(
        input_ids=torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return [int(token) for token in out[0, len(prompt) :]]


@torch.no_grad()
def fresh_logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits after the last id, from one uncached call."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].float()


def written(completion: Completion) -> list[int]:
    """All ids of a response, in order."""
    return [token for segment in completion.segments for token in segment.token_ids]
