"""What a person sees of a run: traces and work on stdout, progress on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from antiphon.decoding.engine import Piece
from antiphon.reports.terminal import Palette, ended, show_completion, usage_table
from antiphon.types import Completion, ModelUsage, Query, as_messages


class View:
    """Shows a run.

    Args:
        names: the candidates'.
        traces: show answers and work; otherwise only progress and the last line.
        progress: show a progress bar, if stderr is a terminal.
        live: print the answer as it is written, if stdout is a terminal.
    """

    def __init__(self, names: Sequence[str], *, traces: bool, progress: bool, live: bool) -> None:
        self.console = Console()
        self.errors = Console(stderr=True)
        self.traces = traces
        self.palette = Palette(names, self.console)
        self.live = live and traces and self.console.is_terminal and not self.palette.plain
        self._progress = progress and self.errors.is_terminal and not self.live
        if traces:
            self.console.print(self.palette.legend())
            self.console.print()

    @contextmanager
    def progress(self, total: int, earlier: int) -> Iterator[Callable[[Completion], None]]:
        """Yields what is to be called with each finished completion."""
        bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[speed]}"),
            # On one terminal bar and answers must know of each other, or they share a line.
            console=self.console if self.traces and self.console.is_terminal else self.errors,
            transient=True,
            disable=not self._progress,
        )
        tokens, began = 0, time.perf_counter()
        with bar:
            task = bar.add_task("answering", total=total, completed=earlier, speed="")

            def advance(completion: Completion) -> None:
                nonlocal tokens
                tokens += sum(len(segment.token_ids) for segment in completion.segments)
                speed = f"{tokens / (time.perf_counter() - began):.0f} tokens/s"
                bar.update(task, advance=1, speed=speed)

            yield advance

    def ask(self, query: Query) -> None:
        """The question, before its answer is written live."""
        self.console.print(f"[bold]{escape(as_messages(query)[-1].content)}[/bold]")

    def piece(self, piece: Piece) -> None:
        """Some words, as they are written."""
        style = self.palette.styles.get(piece.candidate, "")
        self.console.print(Text(piece.text, style=style), end="", soft_wrap=True)

    def show(self, number: int, query: Query, completion: Completion) -> None:
        """A finished answer; after live words only how it ended."""
        if self.live:
            self.console.print(f"\n[dim]{ended(completion)}[/dim]\n", highlight=False)
        elif self.traces:
            show_completion(self.console, self.palette, number, query, completion)

    def usage(self, usage: dict[str, ModelUsage]) -> None:
        """The table of work."""
        if self.traces and usage:
            self.console.print(usage_table(usage))

    def say(self, text: str) -> None:
        """A line on stderr."""
        self.errors.print(text, highlight=False, soft_wrap=True)
