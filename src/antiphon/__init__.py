"""Composing language models: several checkpoints, one answer.

The names below are loaded when they are first used, so ``import antiphon`` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antiphon.backends.prompts import PromptFormat
    from antiphon.config import CandidateConfig, ModelConfig
    from antiphon.decoding.boundaries import EntropyAbove, EveryTokens, SentenceEnd
    from antiphon.decoding.engine import TurnOptions
    from antiphon.decoding.hidden import HiddenStateSwitcher
    from antiphon.decoding.policies import Fixed, RoundRobin, Schedule, Uniform
    from antiphon.decoding.pool import CandidatePool
    from antiphon.decoding.switcher import LMSwitcher
    from antiphon.decoding.switcher_text import SwitcherPrompt
    from antiphon.errors import AntiphonError
    from antiphon.methods.ensemble import ProbabilityAverage
    from antiphon.methods.switch_generation import SwitchGeneration
    from antiphon.types import GREEDY, Completion, Message, SamplingParams, Segment

_HOMES = {
    "AntiphonError": "errors",
    "CandidateConfig": "config",
    "CandidatePool": "decoding.pool",
    "Completion": "types",
    "EntropyAbove": "decoding.boundaries",
    "EveryTokens": "decoding.boundaries",
    "Fixed": "decoding.policies",
    "GREEDY": "types",
    "HiddenStateSwitcher": "decoding.hidden",
    "LMSwitcher": "decoding.switcher",
    "Message": "types",
    "ModelConfig": "config",
    "ProbabilityAverage": "methods.ensemble",
    "PromptFormat": "backends.prompts",
    "RoundRobin": "decoding.policies",
    "SamplingParams": "types",
    "Schedule": "decoding.policies",
    "Segment": "types",
    "SentenceEnd": "decoding.boundaries",
    "SwitchGeneration": "methods.switch_generation",
    "SwitcherPrompt": "decoding.switcher_text",
    "TurnOptions": "decoding.engine",
    "Uniform": "decoding.policies",
}

__all__ = [
    "GREEDY",
    "AntiphonError",
    "CandidateConfig",
    "CandidatePool",
    "Completion",
    "EntropyAbove",
    "EveryTokens",
    "Fixed",
    "HiddenStateSwitcher",
    "LMSwitcher",
    "Message",
    "ModelConfig",
    "ProbabilityAverage",
    "PromptFormat",
    "RoundRobin",
    "SamplingParams",
    "Schedule",
    "Segment",
    "SentenceEnd",
    "SwitchGeneration",
    "SwitcherPrompt",
    "TurnOptions",
    "Uniform",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'antiphon' has no attribute {name!r}")
    return getattr(import_module(f"antiphon.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
