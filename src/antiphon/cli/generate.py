"""`antiphon generate`: let a pool answer prompts, and see who wrote what."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antiphon.cli.flags import add_config_flags, config_from
from antiphon.cli.threads import use_threads
from antiphon.errors import InputError

if TYPE_CHECKING:
    from antiphon.cli.view import View
    from antiphon.config import GenerateConfig
    from antiphon.decoding.engine import TurnOptions
    from antiphon.evaluation.generation import Item
    from antiphon.record import ResultsFile
    from antiphon.types import ModelUsage


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "generate",
        help="let candidates take turns answering prompts",
        description="Let candidates take turns answering prompts. Options are those of the "
        "configuration file; a flag overrides the file.",
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts; - reads stdin")
    parser.add_argument("--prompts-file", "-f", type=Path, help="text (one a line) or JSONL")
    parser.add_argument("--config", type=Path, help="YAML configuration")
    parser.add_argument(
        "--output", "-o", help="JSONL with traces, resumed if it is there; - for stdout"
    )
    parser.add_argument("--overwrite", action="store_true", help="drop earlier results")
    parser.add_argument(
        "--table", action="store_true", help="show coloured traces and work also with --output"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's own choice)")
    add_config_flags(parser)
    parser.set_defaults(run=run)


def read_prompts(options: argparse.Namespace) -> list[Item]:
    """Prompts from arguments, a file, or stdin.

    Raises:
        InputError: none, several sources at once, or malformed ones.
    """
    from antiphon.evaluation.generation import Item, parse_items, read_items

    given = list(options.prompts)
    if given and options.prompts_file:
        raise InputError(
            "prompts were given both as arguments and by --prompts-file",
            remedy="use one of the two",
        )
    if options.prompts_file:
        return read_items(options.prompts_file)
    if given and given != ["-"]:
        for number, text in enumerate(given, 1):
            if not text.strip():
                raise InputError(f"prompt {number} is empty", remedy="give it text")
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise InputError(f"prompt {number} is not UTF-8", remedy="give it as UTF-8 text")
        return [Item(text, {"input": text}) for text in given]
    if not given and sys.stdin.isatty():
        raise InputError(
            "no prompts were given", remedy="give them as arguments, by --prompts-file, or on stdin"
        )
    return parse_items(sys.stdin.buffer.read(), "stdin")


def run(options: argparse.Namespace) -> int:
    """The verb."""
    from antiphon.cli.quiet import quiet

    config = config_from(options)
    items = read_prompts(options)
    quiet()
    use_threads(options.threads)
    from antiphon.cli.view import View
    from antiphon.decoding.build import build_options
    from antiphon.decoding.switcher_card import check_switcher
    from antiphon.evaluation.generation import check_fields, item_keys, run_fingerprint
    from antiphon.record import ResultsFile

    turn_options = build_options(config)
    check_switcher(config.policy, config.candidates)
    fingerprint = run_fingerprint(config)
    keys = item_keys(items, config, fingerprint)
    to_file = options.output not in (None, "-")
    with contextlib.ExitStack() as stack:
        results = None
        if to_file:
            file = ResultsFile(Path(options.output), keys, overwrite=options.overwrite)
            results = stack.enter_context(file)
            check_fields(items, results)
        view = View(
            [candidate.name for candidate in config.candidates],
            traces=options.table or not options.output,
            progress=not options.no_progress,
            live=len(items) == 1 and not options.output,
        )
        if results is not None and len(results.lines) == len(items):
            _show_stored(view, items, results)
            view.say(f"all {len(items)} items were done already in {results.path}")
            return 0
        _generate(_Job(config, turn_options, items, keys, fingerprint, results, view), options)
    return 0


@dataclass(frozen=True)
class _Job:
    """Everything a run needs, checked."""

    config: GenerateConfig
    turn_options: TurnOptions
    items: list[Item]
    keys: list[str]
    fingerprint: dict[str, Any]
    results: ResultsFile | None
    view: View


def _generate(job: _Job, options: argparse.Namespace) -> None:
    from antiphon.decoding.build import build_policy
    from antiphon.decoding.pool import CandidatePool
    from antiphon.evaluation.generation import generate_items, result_line
    from antiphon.methods.switch_generation import SwitchGeneration
    from antiphon.reports.totals import add_usage

    config, view, items = job.config, job.view, job.items
    pool = CandidatePool.load(config.candidates, sampling=config.sampling.params())
    method = SwitchGeneration(pool, build_policy(config.policy, pool.loader), job.turn_options)
    earlier = len(job.results.lines) if job.results else 0
    began = time.perf_counter()
    usage: dict[str, ModelUsage] = {}
    if view.live:
        view.ask(items[0].query)
    with view.progress(len(items), earlier) as advance:
        for index, completion in generate_items(
            method,
            items,
            job.keys,
            config,
            job.results,
            on_done=lambda _, completion: advance(completion),
            on_piece=view.piece if view.live else None,
        ):
            add_usage(usage, completion)
            if options.output == "-":
                line = result_line(items[index], job.keys[index], completion)
                print(json.dumps(line, ensure_ascii=False), flush=True)
            else:
                view.show(index + 1, items[index].query, completion)
    view.usage(usage)
    if job.results is not None:
        _write_record(job, earlier, time.perf_counter() - began, usage)
        results = "1 result" if len(items) == 1 else f"{len(items)} results"
        view.say(f"{results} in {job.results.path} ({earlier} there already)")


def _write_record(job: _Job, earlier: int, seconds: float, usage: dict[str, ModelUsage]) -> None:
    """What the run was, beside its results."""
    from antiphon.record import environment, write_json

    assert job.results is not None
    record = {
        "fingerprint": job.fingerprint,
        "environment": environment(),
        "items": len(job.items),
        "resumed_from": earlier,
        "seconds": round(seconds, 3),
        "usage": {name: work.to_dict() for name, work in usage.items()},
    }
    write_json(job.results.path.with_name(job.results.path.name + ".run.json"), record)


def _show_stored(view: View, items: list[Item], results: ResultsFile) -> None:
    from antiphon.evaluation.generation import COMPLETION
    from antiphon.reports.totals import total_usage
    from antiphon.types import Completion

    if not view.traces:
        return
    stored = [Completion.from_dict(line[COMPLETION]) for line in results.lines]
    for number, (item, completion) in enumerate(zip(items, stored, strict=True), 1):
        view.show(number, item.query, completion)
    view.usage(total_usage(stored))
