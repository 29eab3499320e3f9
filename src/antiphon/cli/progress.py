"""A progress bar on stderr for work in named stages."""

from __future__ import annotations

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
