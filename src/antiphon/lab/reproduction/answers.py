"""Answers of one method to the held-out questions, as records that a report is built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from antiphon.backends.sampling import derive_seed
from antiphon.config import GenerateConfig
from antiphon.decoding.build import build_options, build_policy
from antiphon.decoding.pool import CandidatePool
from antiphon.evaluation.generation import run_fingerprint
from antiphon.lab.world import Question, partial_score, score
from antiphon.methods.switch_generation import SwitchGeneration
from antiphon.record import KEY, ResultsFile, digest
from antiphon.types import Completion

Told = Callable[[int, int], None]
"""Called with (done, total)."""

Answer = Callable[[Sequence[Question], Sequence[int]], list[Completion]]
"""``answer(questions, seeds)``: one completion a question."""


def record_path(root: Path, group: str, name: str, seed: int) -> Path:
    """Where a method's answers stand."""
    return root / "records" / group / name / f"seed{seed}.jsonl"


def record_answers(
    path: Path,
    questions: Sequence[Question],
    answer: Callable[[], Answer],
    fingerprint: Any,
    *,
    rows: int,
    seed: int,
    told: Told = lambda done, total: None,
) -> None:
    """Answer what the file does not hold yet, window by window.

    Args:
        path: the records.
        questions: all of them.
        answer: makes the method; called only if something is left to do.
        fingerprint: what the answers depend on.
        rows: questions of a window.
        seed: of the run.
        told: progress.
    """
    run = digest([fingerprint, seed])
    keys = [digest([run, question.id])[:32] for question in questions]
    with ResultsFile(path, keys, remedy=f"remove {path}, or give another --out") as results:
        at = len(results.lines)
        method = answer() if at < len(questions) else None
        while method is not None and at < len(questions):
            end = min(len(questions), (at // rows + 1) * rows)
            seeds = [derive_seed(seed, index) for index in range(at, end)]
            done = method(questions[at:end], seeds)
            results.append(
                [
                    _line(question, key, completion)
                    for question, key, completion in zip(
                        questions[at:end], keys[at:end], done, strict=True
                    )
                ]
            )
            at = end
            told(at, len(questions))


def _line(question: Question, key: str, completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    return {
        KEY: key,
        "id": question.id,
        "question": question.text,
        "score": score(question, completion.text),
        "partial": partial_score(question, completion.text),
        "text": completion.text,
        "pieces": [segment.text for segment in completion.segments],
        "writers": [segment.candidate for segment in completion.segments],
        "tokens": [len(segment.token_ids) for segment in completion.segments],
        "positions": {name: use.positions for name, use in usage.items()},
        "decisions": sum(use.decisions for use in usage.values()),
        "seconds": {name: round(use.seconds, 6) for name, use in usage.items()},
    }


def by_turns(config: GenerateConfig, pool: CandidatePool | None = None) -> Callable[[], Answer]:
    """A policy over a pool as a method."""

    def make() -> Answer:
        loaded = pool or CandidatePool.load(config.candidates, sampling=config.sampling.params())
        method = SwitchGeneration(
            loaded, build_policy(config.policy, loaded.loader), build_options(config)
        )

        def answer(questions: Sequence[Question], seeds: Sequence[int]) -> list[Completion]:
            return method.generate([question.text for question in questions], seeds=seeds)

        return answer

    return make


def record_turns(
    path: Path, seed: int, config: GenerateConfig, questions: Sequence[Question], told: Told
) -> None:
    """Record what a configuration answers."""
    record_answers(
        path,
        questions,
        by_turns(config),
        run_fingerprint(config),
        rows=config.batch_rows,
        seed=seed,
        told=told,
    )
