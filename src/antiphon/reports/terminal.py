"""Completions on a terminal: each candidate's words in its colour, a legend, a usage table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from antiphon.types import FORCED, Completion, ModelUsage, Query, as_messages

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red", "bright_cyan", "bright_yellow")


class Palette:
    """One style a candidate; without colours, segments are marked by bracketed names instead."""

    def __init__(self, names: Sequence[str], console: Console) -> None:
        self.styles = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
        self.styles[FORCED] = "dim"
        self.plain = console.color_system is None or console.no_color

    def legend(self) -> Text:
        """The candidates' names, each in its colour."""
        text = Text("who wrote what: ")
        for name, style in self.styles.items():
            if name != FORCED:
                text.append(f"■ {name}  ", style=style)
        return text

    def trace(self, completion: Completion) -> Text:
        """The response, segment by segment."""
        text = Text()
        for segment in completion.segments:
            if self.plain:
                text.append(f"[{segment.candidate}]")
            text.append(segment.text, style=self.styles.get(segment.candidate, ""))
        return text


def show_completion(
    console: Console, palette: Palette, number: int, query: Query, completion: Completion
) -> None:
    """Print one prompt and its coloured answer."""

    def line(text: str | Text) -> None:
        # Not wrapped here: terminals do it, and files keep their lines whole.
        console.print(text, highlight=False, soft_wrap=True)

    line(f"[bold]{number}. {escape(as_messages(query)[-1].content)}[/bold]")
    line(palette.trace(completion))
    line(f"[dim]{ended(completion)}[/dim]")
    console.print()


def ended(completion: Completion) -> str:
    """How many segments, whose, and why the answer ended."""
    count = len(completion.segments)
    writers = [segment.candidate for segment in completion.segments]
    shown = " ".join(writers if count <= 16 else [*writers[:8], "...", *writers[-4:]])
    segments = "1 segment" if count == 1 else f"{count} segments"
    return f"{segments} ({escape(shown)}), ended by {completion.finish_reason}"


def usage_table(usage: Mapping[str, ModelUsage]) -> Table:
    """Work by model; positions per written token show what sharing caches saves."""
    written = sum(u.tokens_written for u in usage.values())
    asked = any(u.decisions for u in usage.values())
    table = Table(title=f"work for {written} written tokens", title_justify="left")
    table.add_column("model")
    decisions = ["decisions"] if asked else []
    for name in ("wrote", "read", "decoded", "positions/token", *decisions, "seconds"):
        table.add_column(name, justify="right")
    total = ModelUsage()
    for name, u in usage.items():
        total.add(u)
        table.add_row(name, *_cells(u, written, asked))
    table.add_section()
    table.add_row("all", *_cells(total, written, asked), style="bold")
    return table


def _cells(usage: ModelUsage, written: int, asked: bool) -> list[str]:
    share = usage.positions / written if written else 0.0
    return [
        str(usage.tokens_written),
        str(usage.prefill_positions),
        str(usage.decode_positions),
        f"{share:.2f}",
        *([str(usage.decisions)] if asked else []),
        f"{usage.seconds:.2f}",
    ]
