"""A progress bar on stderr for work in named stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
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
