"""Rollouts with shared prefixes beside what other ways of running them would compute.

Random candidates, one prompt length, no early end; only positions count, so small models do. Two
other ways: *rereading*, as public implementations decode (every segment's writer reads the whole
text again), and *unshared* (every completion written alone from its query on, each candidate
reading each position once).
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from antiphon.backends.sampling import derive_seed
from antiphon.backends.slots import Scratch
from antiphon.benchmarks.models import SHAPES, VOCABULARY, backend, random_model, vocabulary
from antiphon.decoding.boundaries import EveryTokens
from antiphon.decoding.engine import TurnOptions
from antiphon.decoding.pool import CandidatePool
from antiphon.evaluation.generation import Item
from antiphon.evaluation.scoring import MetricScorer
from antiphon.training.racing import Race
from antiphon.training.rollouts import Rollouts, Start, Work
from antiphon.types import SamplingParams


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        instances: rollouts are run for.
        prompt_tokens, new_tokens, segment_tokens: lengths.
        candidates: in the pool.
        completions: of every branch (k).
        size: of a model, a name in :data:`antiphon.benchmarks.models.SHAPES`.
        adaptive: stop where the answer is clear.
    """

    instances: int = 4
    prompt_tokens: int = 100
    new_tokens: int = 512
    segment_tokens: int = 25
    candidates: int = 3
    completions: int = 8
    size: str = "tiny"
    adaptive: bool = False


def spread_score(text: str, fields: Mapping[str, Any]) -> float:
    """A score in [0, 1] that is all but constant: which share of the letters are early ones."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter < "n" for letter in letters) / max(1, len(letters))


def run(setting: Setting) -> dict[str, Any]:
    """Run the rollouts of one setting and count.

    Returns:
        JSON-ready fields; ``positions_ratio`` is rereading / computed.
    """
    shape, words, scratch = SHAPES[setting.size], vocabulary(), Scratch()
    longest = setting.prompt_tokens + setting.new_tokens + 1
    names = [f"model{index}" for index in range(setting.candidates)]
    models = [random_model(shape, seed, longest) for seed in range(setting.candidates)]
    backends = {n: backend(n, m, words, scratch) for n, m in zip(names, models, strict=True)}
    draw = random.Random(0)
    starts = []
    for index in range(setting.instances):
        prompt = [draw.randrange(3, VOCABULARY) for _ in range(setting.prompt_tokens)]
        starts.append(Start(Item(" ".join(map(str, prompt))), derive_seed(0, index)))
    race = Race(setting.completions, 0.0, 1.0) if setting.adaptive else None
    rollouts = Rollouts(
        CandidatePool(backends, SamplingParams()),
        TurnOptions(
            max_new_tokens=setting.new_tokens, boundary=EveryTokens(setting.segment_tokens)
        ),
        MetricScorer("spread", spread_score, "1"),
        completions=setting.completions,
        race=race,
    )
    began = time.process_time()
    work = Work()
    for start in starts:
        for instance in rollouts.collect([start]):
            work.add(instance.work)
    return {
        **asdict(setting),
        "threads": torch.get_num_threads(),
        "positions": work.positions,
        "positions_rereading": work.rereading,
        "positions_unshared": work.unshared,
        "positions_ratio": work.rereading / work.positions,
        "positions_ratio_to_unshared": work.unshared / work.positions,
        "completions_run": work.completions,
        "completions_plain": work.plain_completions,
        "cpu_seconds": time.process_time() - began,
    }
