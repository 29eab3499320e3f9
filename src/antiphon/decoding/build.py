"""From configuration to a ready method: policies and boundary rules by their registered names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from antiphon.backends.loading import Loader
from antiphon.config import BoundaryConfig, GenerateConfig, PolicyConfig, PromptConfig, TurnsConfig
from antiphon.decoding.boundaries import Boundary, EntropyAbove, EveryTokens, SentenceEnd
from antiphon.decoding.engine import TurnOptions
from antiphon.decoding.hidden import HiddenStateSwitcher, load_head
from antiphon.decoding.policies import Fixed, Policy, RoundRobin, Schedule, Uniform
from antiphon.decoding.switcher import LMSwitcher
from antiphon.decoding.switcher_card import read_card
from antiphon.decoding.switcher_text import SwitcherPrompt
from antiphon.registry import Registry

PolicyBuilder = Callable[[PolicyConfig, Loader], Policy]
BoundaryBuilder = Callable[[BoundaryConfig, int], Boundary]

POLICIES = Registry(
    "policy",
    "antiphon.policies",
    {
        name: f"antiphon.decoding.build:{name}"
        for name in ("uniform", "round_robin", "fixed", "schedule", "lm", "hidden")
    },
)
"""Builders of policies: ``build(config, loader) -> Policy``."""

BOUNDARIES = Registry(
    "boundary rule",
    "antiphon.boundaries",
    {name: f"antiphon.decoding.build:{name}" for name in ("tokens", "sentence", "entropy")},
)
"""Builders of boundary rules: ``build(config, segment_tokens) -> Boundary``."""


def uniform(config: PolicyConfig, loader: Loader) -> Policy:
    return Uniform()


def round_robin(config: PolicyConfig, loader: Loader) -> Policy:
    return RoundRobin()


def fixed(config: PolicyConfig, loader: Loader) -> Policy:
    return Fixed(config.candidate or "")


def schedule(config: PolicyConfig, loader: Loader) -> Policy:
    return Schedule(config.schedule or [], repeat=config.repeat)


def lm(config: PolicyConfig, loader: Loader) -> Policy:
    """The LM switcher, asked as it was trained; one that was not trained as a switcher gets the
    bare query unless its configuration says otherwise."""
    if config.switcher is None:
        raise ValueError("validated: kind 'lm' has a switcher")
    model, frame, labels = config.switcher, config.frame, tuple(config.labels or ())
    card = read_card(model.model)
    if card is not None:
        frame, labels = card.frame, tuple(card.labels)
        model = model.model_copy(update={"prompt": PromptConfig(**card.prompt)})
    elif model.prompt == PromptConfig():
        model = model.model_copy(update={"prompt": PromptConfig(kind="raw")})
    return LMSwitcher(
        loader.load(model, "switcher"),
        prompt=SwitcherPrompt(frame=frame, labels=labels),
        top_p=config.top_p if config.select == "top_p" else None,
        temperature=config.temperature,
        trained_for=card.candidates if card else (),
        without=config.without,
    )


def hidden(config: PolicyConfig, loader: Loader) -> Policy:
    """The hidden-state switcher in a directory."""
    if config.switcher is None:
        raise ValueError("validated: kind 'hidden' has a switcher")
    head, card = load_head(Path(config.switcher.model))
    return HiddenStateSwitcher(
        head,
        card.candidates,
        top_p=config.top_p if config.select == "top_p" else None,
        temperature=config.temperature,
        without=config.without,
    )


def tokens(config: BoundaryConfig, segment_tokens: int) -> Boundary:
    return EveryTokens(segment_tokens)


def sentence(config: BoundaryConfig, segment_tokens: int) -> Boundary:
    return SentenceEnd(segment_tokens, config.minimum)


def entropy(config: BoundaryConfig, segment_tokens: int) -> Boundary:
    if config.threshold is None:
        raise ValueError("validated: kind 'entropy' has a threshold")
    return EntropyAbove(config.threshold, segment_tokens, config.minimum)


def build_policy(config: PolicyConfig, loader: Loader) -> Policy:
    """The policy that a configuration describes; loads its switcher if it has one."""
    builder: PolicyBuilder = POLICIES.get(config.kind)
    return builder(config, loader)


def build_options(config: TurnsConfig) -> TurnOptions:
    """The engine's options of a run."""
    builder: BoundaryBuilder = BOUNDARIES.get(config.boundary.kind)
    memory = None if config.memory_gb is None else int(config.memory_gb * 1e9)
    return TurnOptions(
        max_new_tokens=config.max_new_tokens,
        boundary=builder(config.boundary, config.segment_tokens),
        first=config.first,
        last=config.last,
        final_prompt=config.final_prompt,
        on_eos=config.on_eos,
        stop=tuple(config.stop),
        exchange=config.exchange,
        batch_rows=config.batch_rows if isinstance(config, GenerateConfig) else 64,
        memory_bytes=memory,
    )
