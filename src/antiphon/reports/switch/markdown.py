"""report.md: the tables as GitHub Markdown, the best value of a method in bold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from antiphon.reports.switch.labels import METHODS, TERMS
from antiphon.reports.switch.tables import Table, tables


def markdown(results: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """The whole file.

    Args:
        results: from :func:`antiphon.reports.switch.results.results`.
        plots: names of the plots that lie in ``plots/``.
    """
    parts = ["# Switch Generation: reproduction", _setting(results)]
    for table in tables(results):
        parts.append(f"## {_cell(table.title)}")
        parts.append(_table(table))
        if table.note:
            parts.append(_cell(table.note))
    if plots:
        parts.append("## Plots")
        parts += [f"![{name.replace('_', ' ')}](plots/{name}.png)" for name in plots]
    parts.append("## Methods and terms")
    lines = [*(f"- **{name}**: {meaning}" for name, meaning in METHODS.values())]
    lines += [f"- **{term}**: {meaning}" for term, meaning in TERMS.items()]
    parts.append("\n".join(lines))
    parts.append("## Environment")
    facts = {**results["environment"], "run": str(results["command"])}
    parts.append(_rows(("", "value"), [(_cell(k), _cell(v)) for k, v in facts.items()], "---"))
    return "\n\n".join(parts) + "\n"


def _setting(results: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, results["seeds"]))
    quick = " This was a quick run: fewer items and ablations." if results["quick"] else ""
    return (
        f"Size {_cell(str(results['size']))}, seeds {seeds}, {results['questions']} questions a "
        f"seed, segments of {results['segment_tokens']} tokens, at most "
        f"{results['max_new_tokens']} tokens an answer.{quick}\n\n"
        "Rebuild every number below with `antiphon report` on this directory."
    )


def _table(table: Table) -> str:
    rows = [
        [
            f"**{_cell(text)}**" if (i, j) in table.best else _cell(text)
            for j, text in enumerate(row)
        ]
        for i, row in enumerate(table.rows)
    ]
    return _rows([_cell(name) for name in table.columns], rows)


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---:") -> str:
    rule = ["---", *(align for _ in columns[1:])]
    lines = [columns, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """One line, without what Markdown would read as markup."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", " ".join(text.split()))
