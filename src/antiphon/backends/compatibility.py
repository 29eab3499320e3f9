"""What several models can do together, told from their configurations and tokenizers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from antiphon.backends import families
from antiphon.backends.loading import (
    check_loadable,
    load_vocabulary,
    resolve_adapter,
    tokenizer_source,
)
from antiphon.backends.recurrent import RecurrentLayout
from antiphon.backends.vocabulary import TokenizerVocabulary, differences, losses
from antiphon.config import ModelConfig
from antiphon.errors import UnsupportedModelError


@dataclass(frozen=True)
class ModelReport:
    """One model.

    Attributes:
        decoding: how it would be decoded, or why it cannot be.
        usable: whether it can take turns at all.
        template: fingerprint of its chat template, ``None`` without one.
        loses: kinds of text that its tokenizer cannot read and give back.
    """

    name: str
    base: str
    adapter: str | None
    family: str
    decoding: str
    usable: bool
    vocabulary_size: int
    context_length: int | None
    template: str | None
    eos: tuple[str, ...]
    loses: tuple[str, ...]


@dataclass(frozen=True)
class PairReport:
    """Two models; ``difference`` is empty if they can exchange token ids."""

    first: str
    second: str
    difference: str
    same_template: bool
    shared_base: bool


@dataclass(frozen=True)
class PoolReport:
    """All models, every pair, and what follows from them."""

    models: tuple[ModelReport, ...]
    pairs: tuple[PairReport, ...]
    conclusions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_pool(models: Mapping[str, ModelConfig]) -> PoolReport:
    """Read configurations and tokenizers, no weights.

    Raises:
        InputError: a model or its tokenizer is missing.
    """
    reports: dict[str, ModelReport] = {}
    vocabularies: dict[str, TokenizerVocabulary] = {}
    for name, config in models.items():
        base, adapter = resolve_adapter(config, name)
        vocabulary = load_vocabulary(tokenizer_source(base, adapter), config, name)
        vocabularies[name] = vocabulary
        reports[name] = _describe(name, base, adapter, config, vocabulary)
    names = list(models)
    pairs = tuple(
        PairReport(
            one,
            two,
            differences(vocabularies[one], vocabularies[two]),
            reports[one].template == reports[two].template,
            reports[one].base == reports[two].base,
        )
        for index, one in enumerate(names)
        for two in names[index + 1 :]
    )
    conclusions = tuple(_conclude(list(reports.values()), pairs))
    return PoolReport(tuple(reports.values()), pairs, conclusions)


def _describe(
    name: str,
    base: str,
    adapter: str | None,
    config: ModelConfig,
    vocabulary: TokenizerVocabulary,
) -> ModelReport:
    settings, usable = None, True
    try:
        settings = check_loadable(base, config, name)
        layout = families.layout_of(settings, name, overhead=0)
        family = families.family_of(settings)
        if isinstance(layout, RecurrentLayout):
            decoding = "exact, row by row (recurrent states)"
        elif family in families.ATTENTION:
            decoding = "exact, batched"
        else:
            decoding = "batched; checked on its weights when it is loaded"
    except UnsupportedModelError as error:
        decoding, usable, family = error.message, False, "?"
    template = getattr(vocabulary.tokenizer, "chat_template", None)
    eos = vocabulary.tokenizer.eos_token
    return ModelReport(
        name=name,
        base=base,
        adapter=adapter,
        family=family,
        decoding=decoding,
        usable=usable,
        vocabulary_size=vocabulary.size,
        context_length=None if settings is None else families.context_length_of(settings),
        template=None if not template else _short(str(template)),
        eos=() if eos is None else (str(eos),),
        loses=tuple(losses(vocabulary)),
    )


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _conclude(models: list[ModelReport], pairs: tuple[PairReport, ...]) -> list[str]:
    """What can be done with them, in sentences."""
    found = []
    usable = [model for model in models if model.usable]
    if len(usable) < len(models):
        out = ", ".join(model.name for model in models if not model.usable)
        found.append(f"cannot take turns: {out} (see above)")
    foreign = [pair for pair in pairs if pair.difference]
    if len(models) > 1 and not foreign:
        found.append("all read the same token ids: turns pass ids, exactly and fastest")
    elif foreign:
        found.append("turns pass text (--exchange auto or text); words are never split")
        for model in models:
            if model.loses:
                lost = ", ".join(model.loses)
                found.append(f"cannot read others' text: {model.name} (its tokenizer loses {lost})")
        found.append(
            "token ids cannot be passed on between: "
            + "; ".join(f"{pair.first} and {pair.second} ({pair.difference})" for pair in foreign)
        )
    shared = {pair.first for pair in pairs if pair.shared_base} | {
        pair.second for pair in pairs if pair.shared_base
    }
    if shared:
        found.append(f"one base in memory, computed in one batch: {', '.join(sorted(shared))}")
    plain = [model.name for model in models if model.template is None]
    if plain and len(plain) < len(models):
        found.append(f"without a chat template, asked in the plain format: {', '.join(plain)}")
    limits = [m.context_length for m in models if m.context_length is not None]
    if limits:
        found.append(
            f"prompt and response together: at most {min(limits)} tokens (smallest context)"
        )
    return found
