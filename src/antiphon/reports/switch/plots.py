"""The plots: SVG text and PNG bytes, the same bytes from the same results.

Figures are narrow and their letters large, so that they can be read on a telephone. A candidate
has the same colour everywhere; the colours (Okabe and Ito, 2008) differ for colour-blind readers.
Needs matplotlib; no state of its ``pyplot`` is touched.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from antiphon.errors import CapabilityError
from antiphon.reports.switch.answers import in_order
from antiphon.reports.switch.labels import label
from antiphon.reports.switch.placing import Box, leader, place
from antiphon.reports.switch.results import BOUND

INK = "#24292f"
"""Colour of letters and lines; a page replaces it where its background is dark."""

PAPER = "#fefefe"
"""Colour between stacked bars; a page replaces it by its background."""

CANDIDATES: Mapping[str, str] = {"P": "#0072b2", "F": "#e69f00", "A": "#009e73", "S": "#cc79a7"}
_OTHERS = ("#8c6d31", "#999999", "#882255", "#6a51a3")
_METHODS: Mapping[str, str] = {"lm_switcher": "#d55e00", "hidden_switcher": "#56b4e9"}
_GREY = "#8a8f98"
_WIDTH = 4.3  # inches

_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": _GREY,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Plot:
    """One finished plot.

    Attributes:
        name: of its files, ``"accuracy"``.
        title, caption: what it shows, in a few words and in a sentence.
        svg: an SVG document.
        png: a PNG file for print and chat.
    """

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


def require_matplotlib() -> None:
    """Raise now rather than after the work.

    Raises:
        CapabilityError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise CapabilityError(
            "plots need matplotlib, which is not installed",
            remedy="pip install 'antiphon[reports]'",
        ) from error


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour a candidate: P, F, A and S have theirs, others follow in order."""
    others = iter(_OTHERS * len(names))
    return {name: CANDIDATES[name] if name in CANDIDATES else next(others) for name in names}


def plots(results: Mapping[str, Any]) -> list[Plot]:
    """Every plot for which there are records.

    Raises:
        CapabilityError: matplotlib is not installed.
    """
    require_matplotlib()
    made = [accuracy_plot(results), share_plot(results)]
    ablations = results["ablations"]
    if "segment_tokens" in ablations:
        made.append(segment_plot(results))
    made.append(cost_plot(results))
    if "completions" in ablations:
        made.append(
            _curve_plot(results, "completions", "Rollouts", "completions a branch (log scale)")
        )
    if "instances" in ablations:
        made.append(
            _curve_plot(results, "instances", "Training data", "training instances (log scale)")
        )
    return made


def accuracy_plot(results: Mapping[str, Any]) -> Plot:
    """Accuracy by method, bars with intervals, best on top."""
    rows = sorted(results["accuracy"].items(), key=lambda pair: pair[1]["mean"])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.barh(
            range(len(rows)),
            [100 * row["mean"] for _, row in rows],
            height=0.66,
            color=[method_colour(name) for name, _ in rows],
            alpha=0.85,
            xerr=_errors([row for _, row in rows]),
            error_kw={"ecolor": INK, "elinewidth": 1.2, "capsize": 2.5},
        )
        for y, (_, row) in enumerate(rows):
            axes.annotate(
                f"{100 * row['mean']:.1f}",
                (100 * row["high"], y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        axes.set_yticks(range(len(rows)), [label(name) for name, _ in rows])
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("accuracy, %")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)

    caption = (
        "Accuracy of each method with its 95 % interval. Candidates have their own colours; the "
        "oracle is a bound."
    )
    height = 0.9 + 0.29 * len(rows)
    return _plot("accuracy", "Accuracy by method", caption, height, draw)


def share_plot(results: Mapping[str, Any]) -> Plot:
    """Who writes each segment: LM switcher and oracle side by side."""
    policies = ("lm_switcher", BOUND)
    found = {policy: results["share_by_position"][policy] for policy in policies}
    names = in_order({name for policy in policies for name in found[policy]["shares"]})
    palette = colours(names)

    def draw(figure: Any) -> None:
        for axes, policy in zip(figure.subplots(1, 2, sharey=True), policies, strict=True):
            answers = found[policy]["answers"]
            shown = [i for i, n in enumerate(answers) if n >= 0.01 * answers[0]]
            bottom = [0.0] * len(shown)
            for name in names:
                shares = found[policy]["shares"].get(name)
                heights = [100 * shares[i] if shares else 0.0 for i in shown]
                axes.bar(
                    [i + 1 for i in shown],
                    heights,
                    bottom=bottom,
                    width=0.86,
                    color=palette[name],
                    edgecolor=PAPER,
                    linewidth=0.8,
                    label=name,
                )
                bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
            axes.set_title(label(policy))
            axes.set_xlabel("segment")
            axes.set_xticks([i + 1 for i in shown][:: max(1, len(shown) // 6)])
            axes.set_ylim(0, 100)
            axes.tick_params(length=0)
        figure.axes[0].set_ylabel("share of segments, %")
        handles, texts = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=min(len(names), 6))

    caption = (
        "Who writes the first segment, the second and so on, of the answers that get so far "
        "(positions that fewer than 1 % reach are left out)."
    )
    return _plot("shares", "Who writes which segment", caption, 3.1, draw)


def segment_plot(results: Mapping[str, Any]) -> Plot:
    """Accuracy against segment length: learned and uniform."""
    groups = {
        "segment_tokens": (label("lm_switcher"), _METHODS["lm_switcher"], "o"),
        "segment_tokens_uniform": (label("uniform"), _GREY, "s"),
    }

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for group, (text, colour, marker) in groups.items():
            if group in results["ablations"]:
                _curve(axes, results["ablations"][group], text, colour, marker)
        _reference(axes, results)
        _log_axis(axes, _lengths(results, tuple(groups)), "tokens a segment (log scale)")
        _accuracy_axis(figure, axes)

    caption = (
        "Accuracy by segment length, with 95 % intervals; the switcher is trained anew for each "
        "length. The dashed line is the best single model over all seeds."
    )
    return _plot("segment_tokens", "Segment length", caption, 3.0, draw)


def _curve_plot(results: Mapping[str, Any], group: str, title: str, axis: str) -> Plot:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        colour = _METHODS["lm_switcher"]
        _curve(axes, results["ablations"][group], label("lm_switcher"), colour, "o")
        _reference(axes, results)
        _log_axis(axes, _lengths(results, (group,)), axis)
        _accuracy_axis(figure, axes)

    caption = (
        "Accuracy of the LM switcher, with 95 % intervals. The dashed line is the best single "
        "model over all seeds."
    )
    return _plot(group, title, caption, 2.8, draw)


def cost_plot(results: Mapping[str, Any]) -> Plot:
    """Accuracy against work: one labelled point a method."""
    points = {
        name: (results["cost"][name]["positions_per_token"], row)
        for name, row in results["accuracy"].items()
        if results["cost"][name]["positions_per_token"]
    }

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, (x, row) in points.items():
            y, colour = 100 * row["mean"], method_colour(name)
            axes.errorbar(x, y, yerr=_errors([row]), fmt="none", ecolor=colour, elinewidth=1.2)
            axes.plot(x, y, marker="o", markersize=6, color=colour, linestyle="none")
        work = [x for x, _ in points.values()]
        if work and max(work) > 6 * min(work):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.minorticks_off()
        else:
            axes.locator_params(axis="x", nbins=6)
        axes.margins(x=0.12)
        axes.set_ylim(-4, 104)
        axes.set_xlabel("positions a written token, all models")
        axes.set_ylabel("accuracy, %")
        axes.grid()
        _label_points(figure, axes, points)

    caption = "Accuracy and work of each method; up and to the left is better."
    return _plot("cost", "Accuracy and work", caption, 3.9, draw)


def _label_points(figure: Any, axes: Any, points: Mapping[str, tuple[float, Any]]) -> None:
    """Write each method beside its point where nothing else stands."""
    figure.canvas.draw()  # the layout must be settled before anything is measured
    figure.set_layout_engine("none")
    at, taken = {}, []
    for name, (x, row) in points.items():
        (left, low), (_, high) = axes.transData.transform(
            [(x, 100 * row["low"]), (x, 100 * row["high"])]
        )
        middle = axes.transData.transform((x, 100 * row["mean"]))
        at[name] = (float(middle[0]), float(middle[1]))
        taken.append(Box(left - 2, low, left + 2, high))
        taken.append(Box(middle[0] - 5, middle[1] - 5, middle[0] + 5, middle[1] + 5))
    sizes = {}
    for name in points:
        text = axes.text(0, 0, label(name), fontsize=8.5)
        extent = text.get_window_extent(figure.canvas.get_renderer())
        sizes[name] = (float(extent.width) + 6, float(extent.height) + 2)
        text.remove()
    frame = axes.get_window_extent()
    inside = Box(frame.x0, frame.y0, frame.x1, frame.y1)
    for name, box in place(at, sizes, taken, inside).items():
        spot = ((box.left + box.right) / 2, (box.low + box.high) / 2)
        to_data = axes.transData.inverted()
        axes.text(*to_data.transform(spot), label(name), fontsize=8.5, ha="center", va="center")
        end = leader(at[name], box)
        if end is not None:
            line = to_data.transform([at[name], end])
            axes.plot(line[:, 0], line[:, 1], color=_GREY, linewidth=0.7, zorder=1)


def method_colour(method: str) -> str:
    """A candidate's own colour, one for each switcher, grey for the rest."""
    return CANDIDATES.get(method) or _METHODS.get(method) or _GREY


def _errors(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Lengths of the bars below and above the means, in per cent."""
    return [
        [max(0.0, 100 * (row["mean"] - row["low"])) for row in rows],
        [max(0.0, 100 * (row["high"] - row["mean"])) for row in rows],
    ]


def _curve(axes: Any, rows: Mapping[str, Any], text: str, colour: str, marker: str) -> None:
    known = [(int(name), row) for name, row in rows.items() if name.isdigit()]
    axes.errorbar(
        [x for x, _ in known],
        [100 * row["mean"] for _, row in known],
        yerr=_errors([row for _, row in known]),
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.6,
        capsize=2.5,
        label=text,
    )


def _reference(axes: Any, results: Mapping[str, Any]) -> None:
    best = results["best_single"]
    axes.axhline(
        100 * results["accuracy"][best]["mean"],
        color=method_colour(best),
        linestyle="--",
        linewidth=1.2,
        label=f"best single ({best})",
    )


def _lengths(results: Mapping[str, Any], groups: Sequence[str]) -> list[int]:
    names = {name for group in groups for name in results["ablations"].get(group, {})}
    return sorted(int(name) for name in names if name.isdigit())


def _log_axis(axes: Any, ticks: Sequence[int], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(title)


def _accuracy_axis(figure: Any, axes: Any) -> None:
    axes.set_ylim(0, 103)
    axes.set_ylabel("accuracy, %")
    axes.grid()
    handles, texts = axes.get_legend_handles_labels()
    figure.legend(
        [*handles[1:], handles[0]],  # the dashed line last
        [*texts[1:], texts[0]],
        loc="outside upper left",
        ncols=3,
        handlelength=1.6,
        columnspacing=1.2,
    )


def _plot(name: str, title: str, caption: str, height: float, draw: Callable[[Any], None]) -> Plot:
    """Draw once, keep as SVG and PNG; nothing in either depends on when or where."""
    with _style(name):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(_WIDTH, height), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(
            svg,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Title": title},
        )
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return Plot(name, title, caption, svg.getvalue(), png.getvalue())


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the user's configuration says."""
    from matplotlib import style

    with style.context(["default", {**_STYLE, "svg.hashsalt": salt}]):
        yield
