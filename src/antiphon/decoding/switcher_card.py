"""``switcher.json``: what a trained switcher is, so that one path is enough to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from antiphon.backends.loading import model_identity
from antiphon.config import CandidateConfig, PolicyConfig, PromptConfig
from antiphon.decoding.policies import check_count
from antiphon.errors import InputError
from antiphon.record import what_differs, write_json

FILE = "switcher.json"


@dataclass(frozen=True)
class SwitcherCard:
    """What a trained switcher is.

    Attributes:
        kind: ``lm`` or ``hidden``, the policy that it is.
        candidates: names that it was trained for, in order.
        labels: how an LM switcher calls them.
        frame: an LM switcher's prompt frame.
        prompt: how the query is rendered for an LM switcher.
        models: identities of the candidates' models.
        trained_on: one entry a store: path, instances, metric.
        settings: of a hidden-state switcher's head.
    """

    kind: Literal["lm", "hidden"]
    candidates: Sequence[str]
    labels: Sequence[str] = ()
    frame: Literal["plain", "chat"] = "plain"
    prompt: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    trained_on: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it into the switcher's directory."""
        write_json(folder / FILE, asdict(self))


def read_card(model: str) -> SwitcherCard | None:
    """The card in a model's directory; ``None`` for a model that was not trained as a switcher
    here.

    Raises:
        InputError: there is one that cannot be read.
    """
    path = Path(model) / FILE
    if not path.is_file():
        return None
    try:
        card = SwitcherCard(**json.loads(path.read_text(encoding="utf-8")))
        for names in (card.candidates, card.labels):
            if not isinstance(names, (list, tuple)) or not all(
                isinstance(name, str) for name in names
            ):
                raise ValueError("`candidates` and `labels` are lists of names")
        if card.kind not in ("lm", "hidden") or card.frame not in ("plain", "chat"):
            raise ValueError(f"kind {card.kind!r}, frame {card.frame!r}")
        PromptConfig.model_validate(card.prompt)
        return card
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} does not describe a switcher: {error}",
            remedy="train the switcher again with `antiphon switcher train`",
        ) from error


def check_switcher(policy: PolicyConfig, candidates: Sequence[CandidateConfig]) -> None:
    """Raise before anything is loaded if a trained switcher does not fit the pool.

    An LM switcher may serve other models than it was trained with, if there are as many. A
    hidden-state switcher reads the states of just its own.

    Raises:
        InputError: another number of candidates, other models (says which), or no switcher.
    """
    if policy.switcher is None:
        return
    card = read_card(policy.switcher.model)
    if card is None:
        if policy.kind == "hidden":
            raise InputError(
                f"{policy.switcher.model!r} is no hidden-state switcher: it has no {FILE}",
                remedy="train one with `antiphon switcher train --kind hidden`",
            )
        return
    if card.kind != policy.kind:
        raise InputError(
            f"the switcher {policy.switcher.model!r} is of kind {card.kind!r}, and the policy is "
            f"{policy.kind!r}",
            remedy=f"use `kind: {card.kind}`, or give the switcher by --switcher alone",
        )
    names = [candidate.name for candidate in candidates]
    check_count(card.candidates, names)
    if card.kind == "hidden":
        now = [model_identity(candidate) for candidate in candidates]
        before = [card.models.get(name) for name in card.candidates]
        for name, old, new in zip(names, before, now, strict=True):
            if what_differs(old, new):
                raise InputError(
                    f"candidate {name!r} is not the model whose hidden states the switcher "
                    f"{policy.switcher.model!r} was trained on",
                    remedy="use that model, or train a switcher for this pool",
                )
