"""`antiphon cost`: what taking turns would cost, by arithmetic; nothing is run."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from antiphon.errors import InputError, did_you_mean

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "cost",
        help="estimate positions, compute, memory and time of taking turns",
        description="Arithmetic over sizes: no model is loaded or run. See docs/costs.md.",
    )
    parser.add_argument(
        "--candidates", required=True, metavar="SIZE,SIZE,...", help="8B, 350M, or directories"
    )
    parser.add_argument(
        "--switcher", default="none", help="none, hidden, a size or a directory (none)"
    )
    parser.add_argument("--prompt-tokens", type=int, default=100, help="(100)")
    parser.add_argument("--new-tokens", type=int, default=512, help="(512)")
    parser.add_argument("--segment-tokens", type=int, default=50, help="(50)")
    parser.add_argument("--rows", type=int, default=8, help="responses at once (8)")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16, float16 (bfloat16)")
    parser.add_argument(
        "--shared-base", action="store_true", help="candidates are adapters over one base"
    )
    parser.add_argument(
        "--tag-tokens", type=int, default=11, help="an LM switcher's tags around a segment (11)"
    )
    parser.add_argument(
        "--question-tokens", type=int, default=23, help="an LM switcher's question (23)"
    )
    times = parser.add_argument_group("rough times (a model of a GPU, not a measurement)")
    times.add_argument("--bandwidth", type=float, metavar="GB/S", help="memory bandwidth")
    times.add_argument("--tflops", type=float, help="10^12 operations a second")
    rollouts = parser.add_argument_group("training rollouts of a switcher")
    rollouts.add_argument("--rollouts", type=int, metavar="N", help="instances to collect")
    rollouts.add_argument("--completions", type=int, default=32, help="of every branch (32)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The verb."""
    from antiphon.reports.cost import estimate, rollouts

    setting, machine = _setting(options), _machine(options)
    for flag, value in (("--rollouts", options.rollouts), ("--completions", options.completions)):
        if value is not None and value < 1:
            raise InputError(f"{flag} is {value}", remedy="give 1 or more")
    models, kind, switcher = _models(options)
    found = estimate(models, setting, kind, switcher, machine)
    if options.rollouts is not None:
        costs = rollouts(models, setting, options.completions)
        found["rollouts"] = {
            "instances": options.rollouts,
            "completions": options.completions,
            **{name: vars(cost.times(options.rollouts)) for name, cost in costs.items()},
        }
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found, timed=machine is not None)
    return 0


def _setting(options: argparse.Namespace) -> Any:
    from antiphon.reports.cost import Setting

    if options.dtype not in _BYTES:
        raise InputError(
            f"unknown dtype {options.dtype!r}", remedy=did_you_mean(options.dtype, _BYTES)
        )
    return Setting(
        prompt=options.prompt_tokens,
        new=options.new_tokens,
        segment=options.segment_tokens,
        rows=options.rows,
        tags=options.tag_tokens,
        question=options.question_tokens,
        bytes=_BYTES[options.dtype],
        shared_base=options.shared_base,
    )


def _machine(options: argparse.Namespace) -> Any:
    """The machine whose times are asked for, or ``None``."""
    from antiphon.reports.cost import Machine

    given = (options.bandwidth, options.tflops)
    if given == (None, None):
        return None
    if None in given:
        raise InputError(
            "rough times need both --bandwidth and --tflops",
            remedy="e.g. --bandwidth 3350 --tflops 990; both are on a GPU's data sheet",
        )
    for flag, value in zip(("--bandwidth", "--tflops"), given, strict=True):
        if not 0 < value < math.inf:
            raise InputError(f"{flag} is {value}", remedy="give a number above 0")
    return Machine(options.bandwidth * 1e9, options.tflops * 1e12)


def _models(options: argparse.Namespace) -> tuple[list[Any], str, Any]:
    """Candidates, kind of switcher, and the LM switcher if it is one."""
    from antiphon.reports.cost import HIDDEN, LM, NONE
    from antiphon.reports.sizes import model_size

    names = options.candidates.split(",")
    models = [model_size(name, place) for place, name in enumerate(names)]
    if options.switcher in (HIDDEN, NONE):
        return models, options.switcher, None
    return models, LM, model_size(options.switcher, len(models))


def _show(found: dict[str, Any], *, timed: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    setting, console = found["setting"], Console()

    def table(title: str, first: str, *columns: str) -> Any:
        made = Table(title=title, title_justify="left")
        made.add_column(first)
        for column in columns:
            made.add_column(column, justify="right")
        return made

    ways = table(
        f"positions a written token: {setting['prompt']} + {setting['new']} tokens, segments of "
        f"{setting['segment']}",
        "way",
        *("candidates", "switcher", "all", "compute to alone"),
    )
    for name, way in found["ways"].items():
        shares = [way[part]["positions"] / setting["new"] for part in ("candidates", "switcher")]
        numbers = (*shares, way["positions_per_token"], way["compute_to_alone"])
        ways.add_row(escape(name), *(f"{number:.2f}" for number in numbers))
    console.print(ways)
    if timed:
        times = table(f"rough times, {setting['rows']} rows", "way", "tokens/s", "time to alone")
        for name, way in found["ways"].items():
            if "seconds" in way:
                tokens, ratio = way["tokens_per_second"], way["time_to_alone"]
                times.add_row(escape(name), f"{tokens:,.0f}", f"{ratio:.2f}")
        console.print(times)
    unit, size = ("GB", 1e9) if found["memory"]["total"] >= 1e9 else ("MB", 1e6)
    held = table(f"memory in {unit}, {setting['rows']} rows", "what", "turns", "alone")
    for name, amount in found["memory"].items():
        cells = [f"{x / size:,.2f}" for x in (amount, found["memory_alone"][name])]
        held.add_row(name.replace("_", " "), *cells, style="bold" if name == "total" else "")
    console.print(held)
    if "rollouts" in found:
        asked = found["rollouts"]
        collected = table(
            f"rollouts: {asked['instances']:,} instances, {asked['completions']} completions a "
            "branch",
            "prefixes",
            "positions",
            "multiple",
        )
        for name, said in _PREFIXES.items():
            positions = asked[name]["positions"]
            multiple = positions / asked["shared"]["positions"]
            collected.add_row(said, f"{positions:,.0f}", f"{multiple:.2f}")
        console.print(collected)
    for line in _notes(found, timed):
        console.print(f"- {line}", highlight=False)


_PREFIXES = {
    "shared": "shared by forking caches",
    "unshared": "cached, but each completion from its query on",
    "rereading": "whole text again at every turn",
}


def _notes(found: dict[str, Any], timed: bool) -> list[str]:
    notes = ["expected values for even choices and responses that do not end early"]
    if any(not model["is_local"] for model in found["models"]):
        notes.append("sizes stand for shapes of Llama 3's kind")
    if timed:
        notes.append("times are a roofline model, not a measurement: real runs are slower")
    return notes
