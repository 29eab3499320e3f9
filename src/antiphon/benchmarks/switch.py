"""Turn-taking against plain ``generate`` of one candidate, in turn, in one process.

Three Llama-shaped candidates and an LM switcher of the same size, ragged prompts, no early end.
Positions are counted; times are given as ratios only, because absolute times say more about the
machine. The peer loop does the same work the way public implementations do: the whole text is
read again for every segment, and the decision is free text of a segment's length.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from antiphon.backends.sampling import derive_seed
from antiphon.backends.slots import Scratch
from antiphon.benchmarks.models import SHAPES, backend, ragged_prompts, random_model, vocabulary
from antiphon.decoding.boundaries import EveryTokens
from antiphon.decoding.hidden import ChoiceHead, HiddenStateSwitcher
from antiphon.decoding.policies import Policy, Uniform
from antiphon.decoding.pool import CandidatePool
from antiphon.decoding.switcher import ACCOUNT, LMSwitcher
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.reports.totals import total_usage
from antiphon.types import Completion, SamplingParams

NAMES = ("P", "F", "A")


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        rows: responses at once.
        segment_tokens: tokens of a segment.
        new_tokens: tokens of a response.
        size: a name in :data:`antiphon.benchmarks.models.SHAPES`.
        repeats: measured runs of each; the median counts. One more run of each warms up.
    """

    rows: int = 8
    segment_tokens: int = 25
    new_tokens: int = 256
    size: str = "3M"
    repeats: int = 3


class Bench:
    """Models and prompts of one setting, made once."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        shape = SHAPES[setting.size]
        # Prompt, response, tags of every segment and the question.
        segments = setting.new_tokens // setting.segment_tokens + 1
        positions = 256 + setting.new_tokens + 40 * segments
        self.models = [random_model(shape, seed, positions) for seed in range(4)]
        self.words = vocabulary()
        scratch = Scratch()
        self.backends = [
            backend(name, model, self.words, scratch)
            for name, model in zip((*NAMES, ACCOUNT), self.models, strict=True)
        ]
        self.prompts = ragged_prompts(setting.rows)
        self.sampling = SamplingParams()
        self.pool = CandidatePool(dict(zip(NAMES, self.backends, strict=False)), self.sampling)

    @property
    def parameters(self) -> int:
        """Parameters of one model."""
        return sum(weights.numel() for weights in self.models[0].parameters())

    def policy(self, name: str) -> Policy:
        """``uniform``, ``lm`` or ``hidden``."""
        if name == "uniform":
            return Uniform()
        if name == "lm":
            return LMSwitcher(self.backends[3], top_p=1.0)
        count = len(NAMES)
        width = SHAPES[self.setting.size].hidden
        # States, signals and the share written. Without preferences it draws as uniform does.
        head = ChoiceHead(count * width + count * (count + 2) + count + 2, count)
        nn.init.zeros_(head.outer.weight)
        nn.init.zeros_(head.outer.bias)
        return HiddenStateSwitcher(head, NAMES, top_p=1.0)

    # -- the three ways ------------------------------------------------------------------------
    def plain(self) -> int:
        """``generate`` of the first candidate; returns the positions it computes."""
        self._generate(0, self.prompts, self.setting.new_tokens)
        return sum(map(len, self.prompts)) + self.setting.rows * (self.setting.new_tokens - 1)

    def turns(self, policy: str) -> list[Completion]:
        """This library."""
        method = SwitchGeneration(
            self.pool,
            self.policy(policy),
            max_new_tokens=self.setting.new_tokens,
            boundary=EveryTokens(self.setting.segment_tokens),
            batch_rows=self.setting.rows,
        )
        queries = [" ".join(map(str, prompt)) for prompt in self.prompts]
        return method.generate(queries, seed=0)

    def peer_loop(self, policy: str) -> dict[str, int]:
        """The re-prefilling way; returns positions by model.

        What the switcher's free text says is not looked at (random models say nothing): speakers
        are drawn evenly, and the decision's cost is what counts.
        """
        setting, draw = self.setting, random.Random(derive_seed(0, "peer"))
        texts = [list(prompt) for prompt in self.prompts]
        tagged = [list(prompt) for prompt in self.prompts]
        encode = self.words.encode
        question = encode(
            " Which model should generate the next segment? Please respond with a number from 0 "
            "to 2. The answer is model "
        )
        positions = dict.fromkeys((*NAMES, ACCOUNT), 0)
        written = 0
        while written < setting.new_tokens:
            length = min(setting.segment_tokens, setting.new_tokens - written)
            if policy == "lm":
                asked = [row + question for row in tagged]
                self._generate(3, asked, setting.segment_tokens)
                positions[ACCOUNT] += sum(map(len, asked))
                positions[ACCOUNT] += setting.rows * (setting.segment_tokens - 1)
            speakers = [draw.randrange(3) for _ in texts]
            for speaker in sorted(set(speakers)):
                rows = [row for row, chosen in enumerate(speakers) if chosen == speaker]
                new = self._generate(speaker, [texts[row] for row in rows], length)
                for row, ids in zip(rows, new, strict=True):
                    positions[NAMES[speaker]] += len(texts[row]) + length - 1
                    texts[row] += ids
                    begin = encode(f" <model {speaker} begins> ")
                    tagged[row] += begin + ids + encode(f" <model {speaker} ends>")
            written += length
        return positions

    @torch.no_grad()
    def _generate(self, model: int, prompts: list[list[int]], count: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = self.models[model].generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=count,
            do_sample=True,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            top_k=0,
            pad_token_id=0,
        )
        return [[int(token) for token in row] for row in out[:, width:]]


def measure(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median ``(cpu, wall)`` seconds of each way, run in turn after one warm-up of each."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            if turn:
                spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: (
            statistics.median(cpu for cpu, _ in runs),
            statistics.median(wall for _, wall in runs),
        )
        for name, runs in spent.items()
    }


def run(setting: Setting, policy: str, *, peer_loop: bool = False) -> dict[str, Any]:
    """Measure one setting.

    Args:
        setting: sizes and lengths.
        policy: ``uniform``, ``lm`` or ``hidden``.
        peer_loop: measure the re-prefilling way as well.

    Returns:
        JSON-ready fields; ratios are to plain ``generate`` of one candidate, and for a switcher
        also to turns under the uniform policy.
    """
    bench = Bench(setting)
    done: dict[str, Any] = {}

    def keep(name: str, way: Callable[[], Any]) -> Callable[[], None]:
        def timed() -> None:
            done[name] = way()

        return timed

    ways = {
        "plain": keep("plain", bench.plain),
        "turns": keep("turns", lambda: bench.turns(policy)),
    }
    if policy != "uniform":
        ways["uniform"] = keep("uniform", lambda: bench.turns("uniform"))
    if peer_loop:
        ways["peer"] = keep("peer", lambda: bench.peer_loop("lm" if policy == "lm" else "uniform"))
    times = measure(ways, setting.repeats)
    tokens = setting.rows * setting.new_tokens
    usage = total_usage(done["turns"])
    by_model = dict.fromkeys(NAMES, 0.0)  # one that never spoke read nothing
    by_model |= {name: use.positions / tokens for name, use in usage.items()}
    decisions = usage[ACCOUNT].decisions if ACCOUNT in usage else 0
    result = {
        **asdict(setting),
        "policy": policy,
        "parameters": bench.parameters,
        "threads": torch.get_num_threads(),
        "candidate_positions_per_token": sum(by_model[name] for name in NAMES),
        "switcher_positions_per_decision": (
            usage[ACCOUNT].positions / decisions if decisions else 0.0
        ),
        "positions_per_token": {"total": sum(by_model.values()), **by_model},
        "idle_positions_per_token": sum(use.idle_positions for use in usage.values()) / tokens,
        "plain_positions_per_token": done["plain"] / tokens,
        "cpu_ratio_to_plain": times["turns"][0] / times["plain"][0],
        "wall_ratio_to_plain": times["turns"][1] / times["plain"][1],
    }
    if policy != "uniform":
        plainly = sum(use.positions for use in total_usage(done["uniform"]).values())
        extra = sum(use.positions for use in usage.values()) - plainly
        result["positions_ratio_to_uniform"] = 1 + extra / plainly
        result["extra_positions_per_decision"] = extra / max(1, decisions)
        result["cpu_ratio_to_uniform"] = times["turns"][0] / times["uniform"][0]
        result["wall_ratio_to_uniform"] = times["turns"][1] / times["uniform"][1]
    if peer_loop:
        result["peer"] = {
            "positions_per_token": sum(done["peer"].values()) / tokens,
            "cpu_ratio_to_plain": times["peer"][0] / times["plain"][0],
            "wall_ratio_to_plain": times["peer"][1] / times["plain"][1],
        }
    return result
