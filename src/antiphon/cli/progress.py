"""A progress bar on stderr for work in named stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Report = Callable[[str, int, int], None]
"""``report(stage, done, total)``"""


def in_order(report: Report, stages: Sequence[str] = ("P", "F", "A")) -> Report:
    """The same report, saying which of several stages each one is."""

    def told(stage: str, done: int, total: int) -> None:
        report(f"training {stage}, {stages.index(stage) + 1} of {len(stages)}", done, total)

    return told


@contextmanager
def stages() -> Iterator[Report]:
    """Yields ``report(stage, done, total)``; without a terminal it prints a line now and then."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    bar = bars.Progress(
        bars.TextColumn("{task.description:>24}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, bars.TaskID] = {}
    printed: dict[str, int] = {}

    def report(stage: str, done: int, total: int) -> None:
        if not console.is_terminal:
            tenth = 10 * done // max(1, total)
            if printed.get(stage) != tenth:
                printed[stage] = tenth
                console.print(f"{stage}: {done} of {total}", highlight=False)
            return
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total)
        bar.update(tasks[stage], completed=done)

    with bar:
        yield report


@contextmanager
def counting(unit: str, remark: str) -> Iterator[Callable[[int, int, int], None]]:
    """Yields ``told(done, total, remarkable)``: a bar with the time left and a share."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    bar = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[remark]}"),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(unit, total=None, remark="")
    began: list[tuple[float, int]] = []
    printed: list[int] = []

    def told(done: int, total: int, remarkable: int) -> None:
        share = f"{remarkable / done:.0%} {remark}" if done else ""
        if console.is_terminal:
            bar.update(task, completed=done, total=total, remark=share)
            return
        if not began:
            began.append((time.monotonic(), done))
        tenth = 10 * done // max(1, total)
        if tenth not in printed:
            printed.append(tenth)
            spent, new = time.monotonic() - began[0][0], done - began[0][1]
            left = f", about {spent / new * (total - done):.0f} s left" if new else ""
            said = f", {share}" if share else ""
            console.print(f"{unit}: {done} of {total}{said}{left}")

    with bar:
        yield told


@contextmanager
def working(jobs: Sequence[str]) -> Iterator[Report]:
    """Yields ``told(job, done, total)`` for jobs that run side by side; ``total`` 0 ends one."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    bar = bars.Progress(
        bars.TextColumn("{task.description:>28}"),
        bars.BarColumn(),
        bars.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        bars.TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    whole = bar.add_task("jobs", total=len(jobs))
    tasks: dict[str, bars.TaskID] = {}
    ended: list[str] = []
    began = time.monotonic()

    def told(job: str, done: int, total: int) -> None:
        if total == 0:
            ended.append(job)
            bar.update(whole, advance=1)
            if job in tasks:
                bar.remove_task(tasks.pop(job))
            if not console.is_terminal:
                console.print(f"{job} done after {time.monotonic() - began:.0f} s")
        elif job not in ended and console.is_terminal:
            if job not in tasks:
                tasks[job] = bar.add_task(job, total=total)
            bar.update(tasks[job], completed=done, total=total)

    with bar:
        yield told
