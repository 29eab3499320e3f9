"""`antiphon generate`: let a pool answer prompts, and see who wrote what."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from antiphon.config import GenerateConfig, parse, read_yaml
from antiphon.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from antiphon.evaluation.generation import Item
    from antiphon.methods.switch_generation import SwitchGeneration
    from antiphon.types import Completion

_SCALARS = (int, float, str, bool)


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
    add_config_flags(parser)
    parser.set_defaults(run=run)


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for the pool, the policy, and every plain field of the configuration."""
    pool = parser.add_argument_group("pool and policy")
    pool.add_argument(
        "--candidate", "-c", action="append", metavar="NAME=MODEL", help="a candidate (repeat)"
    )
    pool.add_argument("--policy", help="uniform, round_robin, fixed, schedule, lm")
    pool.add_argument("--speaker", help="the candidate of --policy fixed")
    pool.add_argument("--schedule", help="names in order, e.g. P,A,P")
    pool.add_argument("--switcher", metavar="MODEL", help="LM switcher (implies --policy lm)")
    pool.add_argument("--select", choices=("top_p", "argmax"), help="how the switcher chooses")
    pool.add_argument("--boundary", help="tokens, sentence, entropy")
    pool.add_argument("--entropy-threshold", type=float, help="nats, for --boundary entropy")
    pool.add_argument("--dtype", help="of every model: float32, bfloat16, float16, auto")
    pool.add_argument("--device", help="of every model: cpu, cuda, cuda:1, auto")
    pool.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key, e.g. policy.temperature=0.5",
    )
    sampling = parser.add_argument_group("sampling")
    for name, field in GenerateConfig.model_fields["sampling"].annotation.model_fields.items():  # type: ignore[union-attr]
        sampling.add_argument(_flag(name), type=field.annotation, help=field.description)
    turns = parser.add_argument_group("turns")
    for name, field in GenerateConfig.model_fields.items():
        kind: Any = field.annotation
        if kind == list[str]:
            turns.add_argument(_flag(name), action="append", help=field.description)
        elif get_origin(kind) is Literal:
            turns.add_argument(_flag(name), choices=get_args(kind), help=field.description)
        else:
            plain = [part for part in (get_args(kind) or (kind,)) if part in _SCALARS]
            if plain:
                turns.add_argument(_flag(name), type=plain[0], help=field.description)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def config_from(options: argparse.Namespace) -> GenerateConfig:
    """The configuration file with the flags laid over it.

    Raises:
        InputError: every mistake at once.
    """
    data: dict[str, Any] = read_yaml(options.config) if options.config else {}
    if options.config:
        _resolve_paths(data, options.config.parent)
    for pair in options.set:
        _set_path(data, pair)
    if options.candidate:
        data["candidates"] = [_candidate(text) for text in options.candidate]
    _policy_flags(data, options)
    for name in ("temperature", "top_p", "top_k", "min_p"):
        if getattr(options, name) is not None:
            data.setdefault("sampling", {})[name] = getattr(options, name)
    for name in GenerateConfig.model_fields:
        value = getattr(options, name, None)
        if name not in ("candidates", "policy", "boundary", "sampling") and value is not None:
            data[name] = value
    if not data.get("candidates"):
        raise InputError(
            "no candidates were given",
            remedy="use --candidate NAME=MODEL (repeat it), or `candidates:` in --config",
        )
    source = str(options.config) if options.config else "the command line"
    _models_flags(data, options)
    return parse(GenerateConfig, data, source)


def _resolve_paths(data: Any, folder: Path) -> None:
    """Let `model` and `adapter` in a file name directories beside the file."""
    if isinstance(data, dict):
        for name, value in data.items():
            beside = folder / value if isinstance(value, str) else folder
            if name in ("model", "adapter") and isinstance(value, str) and beside.is_dir():
                data[name] = str(beside)
            else:
                _resolve_paths(value, folder)
    elif isinstance(data, list):
        for value in data:
            _resolve_paths(value, folder)


def _policy_flags(data: dict[str, Any], options: argparse.Namespace) -> None:
    policy = data.setdefault("policy", {}) or {}
    data["policy"] = policy
    kind = options.policy or ("lm" if options.switcher else None)
    if kind and isinstance(policy, dict):
        if policy.get("kind", "uniform") != kind:
            # Another kind than the file's: what belongs to the file's kind goes with it.
            for name in ("candidate", "schedule", "switcher", "labels"):
                policy.pop(name, None)
        policy["kind"] = kind
    if options.switcher:
        policy["switcher"] = {"model": options.switcher}
    if options.speaker:
        policy["candidate"] = options.speaker
    if options.schedule:
        policy["schedule"] = [name.strip() for name in options.schedule.split(",")]
    if options.select:
        policy["select"] = options.select
    if options.boundary:
        data["boundary"] = {"kind": options.boundary}
    if options.entropy_threshold is not None:
        data.setdefault("boundary", {})["threshold"] = options.entropy_threshold


def _models_flags(data: dict[str, Any], options: argparse.Namespace) -> None:
    models = [c for c in data["candidates"] if isinstance(c, dict)]
    if isinstance(data["policy"].get("switcher"), dict):
        models.append(data["policy"]["switcher"])
    for name in ("dtype", "device"):
        if getattr(options, name) is not None:
            for model in models:
                model[name] = getattr(options, name)


def _candidate(text: str) -> dict[str, str]:
    name, equals, model = text.partition("=")
    if not (name and equals and model):
        raise InputError(
            f"--candidate {text!r} is not NAME=MODEL", remedy="e.g. --candidate P=.lab/P"
        )
    return {"name": name, "model": model}


def _set_path(data: dict[str, Any], pair: str) -> None:
    import yaml

    path, equals, value = pair.partition("=")
    if not (path and equals):
        raise InputError(f"--set {pair!r} is not KEY=VALUE", remedy="e.g. --set seed=1")
    *parents, last = path.split(".")
    for part in parents:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise InputError(
                f"--set {pair!r}: `{part}` holds no keys", remedy="write it in the --config file"
            )
    data[last] = yaml.safe_load(value)


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
        return [Item(text, {"input": text}) for text in given]
    if not given and sys.stdin.isatty():
        raise InputError(
            "no prompts were given", remedy="give them as arguments, by --prompts-file, or on stdin"
        )
    text = sys.stdin.read()
    return parse_items(text, "stdin", jsonl=text.lstrip().startswith("{"))


def run(options: argparse.Namespace) -> int:
    """The verb."""
    with contextlib.ExitStack() as opened:
        options.opened = opened
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    from antiphon.cli.quiet import quiet

    config = config_from(options)
    items = read_prompts(options)
    quiet()
    from antiphon.decoding.build import build_options, build_policy
    from antiphon.decoding.pool import CandidatePool
    from antiphon.evaluation.generation import item_keys, run_fingerprint
    from antiphon.methods.switch_generation import SwitchGeneration
    from antiphon.record import ResultsFile

    turn_options = build_options(config)
    fingerprint = run_fingerprint(config)
    keys = item_keys(items, config, fingerprint)
    results = None
    if options.output and options.output != "-":
        results = options.opened.enter_context(
            ResultsFile(Path(options.output), keys, overwrite=options.overwrite)
        )
        if len(results.lines) == len(items):
            print(f"all {len(items)} items are done in {options.output}", file=sys.stderr)
            _show_stored(config, items, results, options)
            return 0
    pool = CandidatePool.load(config.candidates, sampling=config.sampling.params())
    method = SwitchGeneration(pool, build_policy(config.policy, pool.loader), turn_options)
    _generate(method, items, keys, config, results, options, fingerprint)
    return 0


def _generate(
    method: SwitchGeneration,
    items: list[Item],
    keys: list[str],
    config: GenerateConfig,
    results: Any,
    options: argparse.Namespace,
    fingerprint: dict[str, Any],
) -> None:
    from antiphon.evaluation.generation import generate_items, result_line

    view = _View(config, options)
    earlier = len(results.lines) if results else 0
    began, done = time.time(), []
    with view.progress(len(items), earlier) as advance:
        for index, completion in generate_items(
            method, items, keys, config, results, on_done=lambda i, c: advance(c)
        ):
            done.append(completion)
            if options.output == "-":
                print(
                    json.dumps(
                        result_line(items[index], keys[index], completion), ensure_ascii=False
                    ),
                    flush=True,
                )
            elif view.traces:
                view.show(index, items[index], completion)
    view.usage(done)
    if results is not None:
        from antiphon.record import environment, write_json

        record = {
            "fingerprint": fingerprint,
            "environment": environment(),
            "items": len(items),
            "resumed_from": earlier,
            "seconds": round(time.time() - began, 3),
            "usage": {n: u.to_dict() for n, u in view.total(done).items()},
        }
        write_json(results.path.with_name(results.path.name + ".run.json"), record)
        view.say(f"{len(items)} results in {results.path} ({earlier} were there already)")


def _show_stored(
    config: GenerateConfig, items: list[Item], results: Any, options: argparse.Namespace
) -> None:
    from antiphon.evaluation.generation import COMPLETION
    from antiphon.types import Completion

    view = _View(config, options)
    if not view.traces:
        return
    stored = [Completion.from_dict(line[COMPLETION]) for line in results.lines]
    for index, (item, completion) in enumerate(zip(items, stored, strict=True)):
        view.show(index, item, completion)
    view.usage(stored)


class _View:
    """What a person sees: traces and tables on stdout, progress on stderr."""

    def __init__(self, config: GenerateConfig, options: argparse.Namespace) -> None:
        from rich.console import Console

        from antiphon.reports.terminal import Palette

        self.console: Console = Console()
        self.errors: Console = Console(stderr=True)
        self.traces = options.table or not options.output
        self.with_progress = not options.no_progress
        self.palette = Palette([c.name for c in config.candidates], self.console)
        if self.traces:
            self.console.print(self.palette.legend())
            self.console.print()

    def progress(self, total: int, earlier: int) -> Any:
        from contextlib import contextmanager

        from rich import progress as bars

        @contextmanager
        def running() -> Any:
            columns = (
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                bars.TimeRemainingColumn(),
                bars.TextColumn("{task.fields[speed]}"),
            )
            bar = bars.Progress(
                *columns,
                console=self.errors,
                transient=True,
                disable=not (self.with_progress and self.errors.is_terminal),
            )
            tokens, began = 0, time.time()
            with bar:
                task = bar.add_task("answering", total=total, completed=earlier, speed="")

                def advance(completion: Completion) -> None:
                    nonlocal tokens
                    tokens += sum(len(s.token_ids) for s in completion.segments)
                    speed = f"{tokens / (time.time() - began):.0f} tokens/s"
                    bar.update(task, advance=1, speed=speed)

                yield advance

        return running()

    def show(self, index: int, item: Item, completion: Completion) -> None:
        from antiphon.reports.terminal import show_completion

        show_completion(self.console, self.palette, index + 1, item.query, completion)

    def total(self, completions: list[Completion]) -> Any:
        from antiphon.reports.totals import total_usage

        return total_usage(completions)

    def usage(self, completions: list[Completion]) -> None:
        from antiphon.reports.terminal import usage_table

        if self.traces and completions:
            self.console.print(usage_table(self.total(completions)))

    def say(self, text: str) -> None:
        self.errors.print(text, highlight=False)
