"""Random models and prompts for benchmarks: shapes are what matters, so nothing is trained."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from antiphon.backends.base import Vocabulary
from antiphon.backends.slots import Scratch
from antiphon.backends.transformers import LoadedModel, TransformersBackend
from antiphon.backends.vocabulary import TokenizerVocabulary
from antiphon.decoding.switcher_text import SwitcherPrompt
from antiphon.types import Query

VOCABULARY = 2048


@dataclass(frozen=True)
class Shape:
    """A Llama shape; sizes are named by their parameters."""

    hidden: int
    layers: int
    heads: int


SHAPES = {"tiny": Shape(64, 2, 2), "3M": Shape(224, 4, 7), "12M": Shape(384, 6, 12)}


def vocabulary() -> TokenizerVocabulary:
    """A byte-level BPE that reads the switcher's tags and question as a large one would: about a
    token a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    prompt = SwitcherPrompt()
    labels = prompt.labels_for(3)
    texts = [prompt.question_for(labels)]
    texts += [t.format(label=x) for t in (prompt.begin, prompt.end) for x in labels]
    texts *= 200  # often enough that each of their words becomes one token
    words = random.Random(0)
    texts += [" " + "".join(words.choices("etaoinshrdlu", k=5)) for _ in range(4 * VOCABULARY)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    return TokenizerVocabulary(fast, "benchmark")


class IdsPrompt:
    """Reads a prompt as written-out token ids, so that lengths are exact."""

    def render(self, query: Query, vocabulary: Vocabulary, model: str) -> list[int]:
        """Ids of a query like ``"17 4 250"``."""
        return [int(token) for token in str(query).split()]


def random_model(shape: Shape, seed: int, positions: int) -> LlamaForCausalLM:
    """A randomly initialised Llama in evaluation mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=8 * (shape.hidden // 3),
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def backend(
    name: str, model: LlamaForCausalLM, words: TokenizerVocabulary, scratch: Scratch
) -> TransformersBackend:
    """A model as backend that never ends by itself."""
    loaded = LoadedModel(model, name, scratch)
    prompt = IdsPrompt()
    return TransformersBackend(name, loaded, words, prompt, eos_ids=frozenset())


def ragged_prompts(rows: int, low: int = 8, high: int = 40, seed: int = 0) -> list[list[int]]:
    """Prompts of random ids, lengths spread evenly over ``low..high``."""
    draw = random.Random(seed)
    lengths = [low + (high - low) * row // max(1, rows - 1) for row in range(rows)]
    draw.shuffle(lengths)
    return [[draw.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]
