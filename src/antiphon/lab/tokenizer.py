"""The lab's tokenizer, trained offline in a second.

Capital letters, digits and marks are single tokens, so keys and numbers are spelled out and a
segment of four tokens means the same everywhere. Words that start in lower case (and words with
one capital first letter) are merged, because prompts about the answer are English: each word of
:data:`PROMPT_WORDS` is one token. A digit never merges with anything, nor does a lone space.

It is byte-level, hence ``decode(encode(text)) == text`` for any text.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, USER, ASSISTANT, END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|eos|>{% endgeneration %}"
    "{% else %}<|user|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""``<|user|>question<|end|><|assistant|>answer<|eos|>``; system messages read as user messages."""

PROMPT_WORDS = (
    "What is are and plus not then Name Given Read Add Keep Look Here Note list the of a an in "
    "Which model should generate the next segment Please respond with a number from to "
    "The answer is model The final answer is <model begins> <model ends> "
    "user assistant system question query response segment switch step last first write here who "
    "you your this that for on by not no yes or be was has have can will one two three all more "
)
_CHARACTERS_AND_WORDS = Regex(r" ?<?[A-Z]?[a-z]+>?|[\s\S]")


def build_tokenizer(*, chat: bool) -> PreTrainedTokenizerFast:
    """A fresh tokenizer; the ids are the same whether or not it carries the chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_CHARACTERS_AND_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,  # not reached: merging stops when every listed word is one token
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = PROMPT_WORDS.split()
    core.train_from_iterator([*words, *(f" {word}" for word in words)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT, END],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        padding_side="left",
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
