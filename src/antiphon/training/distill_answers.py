"""A pool's answers: written and scored into files that survive ``kill -9``, and compared.

Positions, tokens and scores do not depend on the machine; seconds do.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from antiphon.config import GenerateConfig
from antiphon.decoding.build import build_options, build_policy
from antiphon.decoding.pool import CandidatePool
from antiphon.errors import InputError
from antiphon.evaluation.generation import (
    COMPLETION,
    Item,
    check_fields,
    generate_items,
    item_keys,
    run_fingerprint,
)
from antiphon.evaluation.scoring import Scorer
from antiphon.evaluation.statistics import (
    Interval,
    difference_interval,
    mean_interval,
    paired_p_value,
    ratio_interval,
)
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.record import ResultsFile, digest, environment, write_json
from antiphon.types import Completion, Query, as_messages

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

METHODS = ("pool", "before", "after")
"""Who is compared: the pool, and the candidate alone before and after."""


@dataclass(frozen=True)
class Answers:
    """Answers to all items of a run, in order.

    Attributes:
        completions: one an item.
        seconds: wall time of a response: that of its window, shared; ``None`` if no window was
            timed.
    """

    completions: list[Completion]
    seconds: float | None = None


def group_of(query: Query) -> str:
    """What queries that are the same have in common."""
    return digest([[message.role, message.content] for message in as_messages(query)])[:16]


# -- written -------------------------------------------------------------------------------------
def answer(
    config: GenerateConfig,
    items: Sequence[Item],
    path: Path,
    stage: str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Answers:
    """Let a pool answer into a results file, as `antiphon generate` does, or go on with it.

    Args:
        path: the file; what the run was and how long it took is written beside it.
        stage: how the progress is called.
        overwrite: replace what another run left there.

    Raises:
        InputError: a prompt is too long, or the file is of another run.
    """
    fingerprint = run_fingerprint(config)
    keys = item_keys(items, config, fingerprint)
    clock = path.with_name(path.name + ".run.json")
    with _results(path, items, keys, overwrite) as results:
        earlier = len(results.lines)
        if earlier < len(items):
            timed, spent = _times(clock, earlier)
            pool = CandidatePool.load(config.candidates, sampling=config.sampling.params())
            policy = build_policy(config.policy, pool.loader)
            method = SwitchGeneration(pool, policy, build_options(config))
            record = {"fingerprint": fingerprint, "environment": environment(), "items": len(items)}
            done, began = earlier, time.perf_counter()

            def advance(*_: object) -> None:
                nonlocal done
                done += 1
                if progress is not None:
                    progress(stage, done, len(items))

            for index, _ in generate_items(method, items, keys, config, results, on_done=advance):
                count = index + 1
                if count == len(results.lines):  # a window is on disk
                    seconds = spent + time.perf_counter() - began
                    times = {"timed": timed + count - earlier, "seconds": round(seconds, 3)}
                    write_json(clock, {**record, **times})
        timed, spent = _times(clock, len(items))
        completions = [Completion.from_dict(line[COMPLETION]) for line in results.lines]
    return Answers(completions, spent / timed if timed else None)


def _results(
    path: Path, items: Sequence[Item], keys: Sequence[str], overwrite: bool
) -> ResultsFile:
    """The results file to go on with; a new one if that is of another run and may be replaced."""
    try:
        results = ResultsFile(path, keys)
        try:
            check_fields(items, results)
        except InputError:
            results.close()
            raise
    except InputError as error:
        if overwrite:
            return ResultsFile(path, keys, overwrite=True)
        remedy = error.remedy.replace("--output", "--out")
        raise InputError(error.message, remedy=remedy) from error
    return results


def _times(clock: Path, lines: int) -> tuple[int, float]:
    """How many of the responses on disk were timed, and their seconds."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(clock.read_text(encoding="utf-8"))
        if found["timed"] <= lines:  # else it is of a file that was replaced
            return int(found["timed"]), float(found["seconds"])
    return 0, 0.0


# -- scored --------------------------------------------------------------------------------------
def score(
    path: Path, scorer: Scorer, items: Sequence[Item], completions: Sequence[Completion]
) -> list[float]:
    """Scores of answers, kept in a JSON file; those of the same answers are not computed again.

    Raises:
        InputError: an answer cannot be scored.
    """
    texts = [completion.text for completion in completions]
    asked = [[group_of(item.query), item.fields] for item in items]
    key = digest([scorer.fingerprint, asked, texts])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["key"] == key:
            return [float(value) for value in found["scores"]]
    scores = scorer.score(texts, items)
    write_json(path, {"key": key, "scorer": scorer.name, "scores": scores})
    return scores


# -- compared ------------------------------------------------------------------------------------
def compare(
    scorer: Scorer,
    items: Sequence[Item],
    answers: Mapping[str, Answers],
    scores: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """How much of a pool's gain over one candidate that candidate keeps, and at what cost.

    Args:
        scorer: what the scores are.
        items: what was asked.
        answers, scores: of each of :data:`METHODS`, item by item.

    Returns:
        ``score``: each one's mean with its 95 % interval. ``gain``: of ``pool`` and ``after`` over
        ``before``, with interval and two-sided p-value. ``gain_kept``: the share, and its interval;
        ``None`` where the pool is not better (the interval also where it may not be). ``cost``:
        each one's, see :func:`cost`, and ``after_to_pool``, their ratios.
    """
    names = [group_of(item.query) for item in items]
    start = scores["before"]
    gains: dict[str, Any] = {}
    for method in ("pool", "after"):
        found = difference_interval([scores[method]], [start], items=[names])
        # Summed exactly, so that the same scores in another order are no gain.
        mean = (math.fsum(scores[method]) - math.fsum(start)) / len(start)
        p_value = paired_p_value(scores[method], start, items=names)
        gains[method] = {"mean": mean, "low": found.low, "high": found.high, "p_value": p_value}
    kept = interval = None
    if gains["pool"]["mean"] > 0:
        kept = gains["after"]["mean"] / gains["pool"]["mean"]
        above, below = (
            [[new - old for new, old in zip(scores[method], start, strict=True)]]
            for method in ("after", "pool")
        )
        interval = ratio_interval(above, below, items=[names])
    costs: dict[str, Any] = {method: cost(answers[method]) for method in METHODS}
    costs["after_to_pool"] = _ratios(costs["after"], costs["pool"])
    return {
        "metric": scorer.name,
        "items": len(items),
        "score": {m: asdict(_mean(scorer, scores[m], names)) for m in METHODS},
        "gain": gains,
        "gain_kept": kept,
        "gain_kept_interval": None if interval is None else asdict(interval),
        "cost": costs,
    }


def _mean(scorer: Scorer, scores: Sequence[float], names: Sequence[str]) -> Interval:
    """Mean and interval; scores with bounds are put between 0 and 1 and back, as a sample that is
    all at one end has an exact interval there."""
    low, width = 0.0, 1.0
    if math.isfinite(scorer.low) and math.isfinite(scorer.high):
        low, width = scorer.low, scorer.high - scorer.low
    found = mean_interval([[(value - low) / width for value in scores]], items=[names])
    return Interval(statistics.fmean(scores), low + width * found.low, low + width * found.high)


def cost(answers: Answers) -> dict[str, Any]:
    """What responses cost.

    Returns:
        ``responses``; ``tokens`` (forced ones included) and ``tokens_per_response``; ``positions``
        pushed through any model, whatever its size, ``positions_per_token`` and
        ``positions_per_response``; ``models``: positions by model; ``seconds_per_response``.
    """
    count = len(answers.completions)
    tokens = sum(len(s.token_ids) for c in answers.completions for s in c.segments)
    models: dict[str, int] = {}
    for completion in answers.completions:
        for name, usage in completion.usage.items():
            models[name] = models.get(name, 0) + usage.positions
    positions = sum(models.values())
    return {
        "responses": count,
        "tokens": tokens,
        "tokens_per_response": tokens / count,
        "positions": positions,
        "positions_per_token": positions / tokens if tokens else None,
        "positions_per_response": positions / count,
        "models": models,
        "seconds_per_response": answers.seconds,
    }


def _ratios(after: Mapping[str, Any], pool: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        name: after[name] / pool[name] if after[name] is not None and pool[name] else None
        for name in after
        if "_per_" in name
    }
