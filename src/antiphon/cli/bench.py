"""`antiphon bench`: costs, counted and measured; the last line is JSON."""

from __future__ import annotations

import argparse
import json
from typing import Any

from antiphon.cli.threads import add_threads, use_threads
from antiphon.errors import InputError

SIZES = ("tiny", "3M", "12M")


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("bench", help="count positions and measure ratios")
    benches = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    switch = benches.add_parser(
        "switch",
        help="turn-taking against plain generate of one candidate",
        description="Three random candidates and an LM switcher of one size, ragged prompts, no "
        "early end. Everything is measured in turn in this process; ratios are to plain "
        "`generate` of one candidate.",
    )
    switch.add_argument("--rows", type=int, default=8, help="responses at once (8)")
    switch.add_argument("--segment-tokens", type=int, default=25, help="(25)")
    switch.add_argument("--new-tokens", type=int, default=256, help="(256)")
    switch.add_argument("--size", choices=SIZES, default="3M", help="parameters of a model (3M)")
    switch.add_argument(
        "--policy", choices=("uniform", "lm", "both"), default="both", help="(both)"
    )
    switch.add_argument("--repeats", type=int, default=3, help="measured runs of each (3)")
    add_threads(switch)
    switch.add_argument(
        "--peer-loop", action="store_true", help="measure the re-prefilling way as well"
    )
    switch.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    switch.set_defaults(run=run_switch)


def run_switch(options: argparse.Namespace) -> int:
    """`antiphon bench switch`."""
    for name in ("rows", "segment_tokens", "new_tokens", "repeats", "threads"):
        if getattr(options, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} is {getattr(options, name)}", remedy="give 1 or more")
    from antiphon.cli.quiet import quiet

    quiet()
    use_threads(options.threads)
    from antiphon.benchmarks.switch import Setting, run

    setting = Setting(
        options.rows, options.segment_tokens, options.new_tokens, options.size, options.repeats
    )
    policies = ("uniform", "lm") if options.policy == "both" else (options.policy,)
    results = []
    for policy in policies:
        results.append(run(setting, policy, peer_loop=options.peer_loop))
        if not options.json:
            _show(results[-1])
    # The last policy's fields stand at the top; all of them are in `runs`.
    print(json.dumps({**results[-1], "runs": results}))
    return 0


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result['policy']}: {result['rows']} rows, {result['new_tokens']} new tokens, "
        f"segments of {result['segment_tokens']}, {result['parameters'] / 1e6:.1f} M parameters",
        title_justify="left",
    )
    table.add_column("way")
    for name in ("positions a token", "CPU to plain", "wall to plain"):
        table.add_column(name, justify="right")
    table.add_row("plain generate", f"{result['plain_positions_per_token']:.2f}", "1.00", "1.00")
    rows = [("antiphon", {**result, "positions_per_token": result["positions_per_token"]["total"]})]
    if "peer" in result:
        rows.append(("re-prefilling loop", result["peer"]))
    for name, fields in rows:
        table.add_row(
            name,
            f"{fields['positions_per_token']:.2f}",
            f"{fields['cpu_ratio_to_plain']:.2f}",
            f"{fields['wall_ratio_to_plain']:.2f}",
        )
    Console().print(table)
