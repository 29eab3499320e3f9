"""report.html: one file with everything in it, to be opened anywhere and loaded from nowhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from antiphon.reports.switch.answers import in_order
from antiphon.reports.switch.examples import KINDS, Example
from antiphon.reports.switch.labels import METHODS, TERMS, bounds, label, p_text, percent
from antiphon.reports.switch.plots import INK, PAPER, Plot, colours
from antiphon.reports.switch.tables import tables

_TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Headline:
    """One number to be read first, and what it is."""

    value: str
    name: str
    detail: str


def page(results: Mapping[str, Any], plots: Sequence[Plot], examples: Sequence[Example]) -> str:
    """The whole page; all text from records is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    writers = {writer for example in examples for writer, _ in example.pieces if writer}
    return environment.get_template(_TEMPLATE).render(
        results=results,
        headlines=headlines(results),
        plots=[(plot, Markup(inline_svg(plot))) for plot in plots],
        tables=tables(results),
        examples=[
            (title, [example for example in examples if example.kind == kind])
            for kind, (title, _) in KINDS.items()
        ],
        colours=colours(in_order(writers | set(results["singles"]))),
        methods=[METHODS[name] for name in results["accuracy"] if name in METHODS],
        terms=TERMS,
    )


def headlines(results: Mapping[str, Any]) -> list[Headline]:
    """The numbers at the top of the page."""
    accuracies, best = results["accuracy"], results["best_single"]
    ours = accuracies["lm_switcher"]
    found = [
        Headline(f"{percent(ours['mean'])} %", "LM switcher", f"95 %: {bounds(ours)}"),
        Headline(
            f"{percent(accuracies[best]['mean'])} %",
            f"best single, {label(best)}",
            f"95 %: {bounds(accuracies[best])}; "
            f"p {_equals(p_text(results['p_value_holm']['lm_switcher'][best]))}",
        ),
    ]
    if results["gain"] is not None:
        found.append(
            Headline(
                f"×{results['gain']:.2f}",
                "gain over the best single",
                f"95 %: {bounds(results['gain_interval'], 1, 2)}",
            )
        )
    for name in ("hidden_switcher", "probability_average"):
        row = accuracies[name]
        found.append(Headline(f"{percent(row['mean'])} %", label(name), f"95 %: {bounds(row)}"))
    solved, luck = results["solved"], results["solved"]["luck"]
    if solved["items"]:
        detail = f"of {solved['items']:,} items"
        if luck is not None and luck["as_many"]["share"] is not None:
            share = percent(luck["as_many"]["share"])
            detail += f"; {luck['as_many']['n']} samples of the best single: {share} %"
        share = percent(solved["lm_switcher"]["share"])
        found.append(Headline(f"{share} %", "solved of what all singles miss", detail))
    ratio = results["decision_cost"]["ratio"]
    if ratio is not None:
        found.append(
            Headline(f"×{ratio:.2g}", "cost of a decision, hidden state to LM", "in positions")
        )
    return [Headline(_tied(h.value), h.name, _tied(h.detail)) for h in found]


def _equals(p: str) -> str:
    return p.replace("<", "< ") if p.startswith("<") else f"= {p}"


def _tied(text: str) -> str:
    """Signs stay on the line of their numbers."""
    return re.sub(r" (?=[%=<])|(?<=[=<]) ", "\N{NO-BREAK SPACE}", text)


_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_NAMESPACE = re.compile(r'\s+xmlns(?::\w+)?="[^"]*"')
_ID = re.compile(r'(\bid="|\bhref="#|url\(#)')
_SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*"([^>]*?)', re.DOTALL)
_HEIGHT = re.compile(r'(<svg[^>]*?) height="[^"]*"', re.DOTALL)


def inline_svg(plot: Plot) -> str:
    """An SVG document as a part of a page.

    It scales, takes the page's colours for ink and paper, names itself to screen readers, and its
    ids are its own even if several stand in one page.
    """
    svg = _METADATA.sub("", _PROLOGUE.sub("", plot.svg))
    svg = _NAMESPACE.sub("", svg).replace("xlink:href", "href")
    svg = _ID.sub(lambda match: f"{match[0]}{plot.name}-", svg)
    svg = _HEIGHT.sub(r"\1", _SIZE.sub(r"\1\2", svg, count=1), count=1)
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    name = plot.title.replace("&", "&amp;").replace('"', "&quot;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{name}"', 1).strip()
