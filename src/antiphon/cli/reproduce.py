"""`antiphon reproduce`: a paper's experiment on the lab, from checkpoints to report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from antiphon.errors import InputError


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("reproduce", help="a paper's experiment on the lab, end to end")
    papers = parser.add_subparsers(title="experiments", metavar="EXPERIMENT", required=True)
    switch = papers.add_parser(
        "switch",
        help="Switch Generation: rollouts, switchers, baselines, ablations, distillation, report",
        description="Everything from checkpoints to report. Run again, it goes on where it was "
        "stopped. On two cores about 25 minutes; --quick about 7.",
    )
    switch.add_argument("--out", type=Path, required=True, help="directory of the run")
    switch.add_argument("--quick", action="store_true", help="one seed, no ablations")
    switch.add_argument("--seeds", default=None, help="e.g. 0,1,2 (the default); --quick: 0")
    switch.add_argument("--questions", type=int, default=1000, help="held out, a seed (1000)")
    switch.add_argument("--size", default="default", help="of the lab: default, or tiny for tests")
    switch.add_argument("--jobs", type=int, default=2, help="processes of one thread each (2)")
    switch.set_defaults(run=run_switch)


def _seeds(options: argparse.Namespace) -> tuple[int, ...]:
    text = options.seeds or ("0" if options.quick else "0,1,2")
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"--seeds {text!r} is no list of numbers", remedy="e.g. --seeds 0,1,2"
        ) from error


def run_switch(options: argparse.Namespace) -> int:
    """`antiphon reproduce switch`."""
    from antiphon.cli.quiet import quiet
    from antiphon.cli.threads import use_threads

    if options.jobs < 1:
        raise InputError(f"--jobs is {options.jobs}", remedy="give 1 or more")
    seeds = _seeds(options)
    quiet()
    from antiphon.lab.reproduction.plan import Plan
    from antiphon.lab.reproduction.run import reproduce

    plan = Plan(options.size, seeds, options.questions, options.quick)
    use_threads(1)
    from antiphon.cli.progress import working
    from antiphon.cli.report import show_report
    from antiphon.lab.reproduction.plan import jobs_of
    from antiphon.reports.switch.build import build_report

    names = [job.name for job in jobs_of(plan)]
    with working(names) as told:
        reproduce(options.out, plan, jobs=options.jobs, told=told)
    show_report("antiphon.reports.switch", options.out, build_report(options.out))
    return 0
