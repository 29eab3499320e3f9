"""`antiphon demo`: three small checkpoints take turns, before your eyes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antiphon.cli.progress import in_order
from antiphon.cli.threads import add_threads, use_threads
from antiphon.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from antiphon.decoding.policies import Policy
    from antiphon.decoding.pool import CandidatePool
    from antiphon.types import Completion

BY_HAND = "schedule F-P-F-P-A-A"
"""Who is good at what, written down by somebody who made the world: names, values, the sum."""

OWN = """\
[bold]The same with your own checkpoints[/bold]
  antiphon models check base/ sft/ aligned/
  antiphon generate -c P=base/ -c F=sft/ -c A=aligned/ "your question"
  antiphon generate -c P=base/ -c F=sft/ -c A=aligned/ --switcher aligned/ \\
      --prompts-file questions.jsonl --output answers.jsonl
Models are hub ids, local directories or PEFT adapters."""


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("demo", help="build the lab if need be and show turn-taking on it")
    parser.add_argument("--lab", type=Path, default=Path(".lab"), help="lab directory (.lab)")
    parser.add_argument("--size", default="default", help="of a lab that is not there yet")
    parser.add_argument("--questions", type=int, default=200, help="questions of the table (200)")
    parser.add_argument("--traces", type=int, default=3, help="answers shown (3)")
    add_threads(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The verb."""
    from antiphon.cli.quiet import quiet

    if options.questions < 1 or options.traces < 0:
        raise InputError("--questions takes 1 or more, --traces 0 or more", remedy="leave them out")
    quiet()
    use_threads(options.threads)
    from rich.console import Console

    from antiphon.cli.progress import stages
    from antiphon.decoding.build import build_options, build_policy
    from antiphon.decoding.policies import Fixed, Schedule, Uniform
    from antiphon.decoding.pool import CandidatePool
    from antiphon.lab.build import build_lab
    from antiphon.lab.pool import lab_config, write_run_file
    from antiphon.methods.switch_generation import SwitchGeneration

    console = Console()
    with stages() as progress:
        lab = build_lab(options.lab, size=options.size, seed=0, progress=in_order(progress))
    write_run_file(lab)
    config = lab_config(lab, {"kind": "lm", "switcher": {"model": "A", "prompt": {"kind": "raw"}}})
    pool = CandidatePool.load(config.candidates, sampling=config.sampling.params())
    policies: dict[str, Policy] = {f"{name} alone": Fixed(name) for name in pool}
    policies["uniform"] = Uniform()
    policies[BY_HAND] = Schedule(BY_HAND.split()[-1].split("-"))
    policies["untuned switcher"] = build_policy(config.policy, pool.loader)
    questions = lab.world.questions("both", "test", options.questions, 0)
    console.print(
        "P (pretrained), F (fine-tuned) and A (aligned) are checkpoints of one small pipeline; "
        f"each question needs the skills of all three. Segments of {config.segment_tokens} tokens."
    )
    answers = {}
    with stages() as progress:
        for number, (name, policy) in enumerate(policies.items()):
            progress("answering", number, len(policies))
            method = SwitchGeneration(pool, policy, build_options(config))
            answers[name] = method.generate([question.text for question in questions], seed=0)
        progress("answering", len(policies), len(policies))
    _traces(console, pool, questions, answers, options.traces)
    _table(console, questions, answers)
    console.print(
        "An untuned switcher does not know who is good at what. The schedule by hand knows that "
        "F follows the format, P recalls and A computes, and not which key is whose.\n",
        highlight=False,
    )
    console.print(OWN, highlight=False)
    return 0


def _traces(
    console: Console,
    pool: CandidatePool,
    questions: list[Any],
    answers: dict[str, list[Completion]],
    count: int,
) -> None:
    from antiphon.lab.world import score
    from antiphon.reports.terminal import Palette, show_completion

    palette = Palette(pool.names, console)
    for name in ("uniform", "untuned switcher", BY_HAND):
        console.rule(f"who speaks next: {name}", align="left")
        console.print(palette.legend())
        for number, question in enumerate(questions[:count]):
            completion = answers[name][number]
            show_completion(console, palette, number + 1, question.text, completion)
            if score(question, completion.text):
                console.print("[green]right[/green]\n")
            else:
                console.print(f"[red]wrong[/red]: {question.gold_trace}\n", highlight=False)


def _table(console: Console, questions: list[Any], answers: dict[str, list[Completion]]) -> None:
    from rich.table import Table

    from antiphon.lab.report import wilson_interval
    from antiphon.lab.world import score
    from antiphon.reports.totals import total_usage

    table = Table(title=f"{len(questions)} test questions", title_justify="left")
    for column in ("method", "accuracy", "95 % interval", "positions a token", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, completions in answers.items():
        right = sum(
            score(question, completion.text)
            for question, completion in zip(questions, completions, strict=True)
        )
        low, high = wilson_interval(right, len(questions))
        usage = total_usage(completions)
        written = sum(use.tokens_written for use in usage.values())
        positions = sum(use.positions for use in usage.values())
        table.add_row(
            name,
            f"{right / len(questions):.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{positions / max(1, written):.1f}",
            f"{sum(use.seconds for use in usage.values()):.1f}",
        )
    console.print(table)
