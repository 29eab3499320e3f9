"""Flags of a run's configuration: those of the YAML file, and they override it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from antiphon.config import GenerateConfig, SamplingConfig, parse, read_yaml
from antiphon.errors import InputError

_SCALARS = (int, float, str, bool)


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for the pool, the policy, and every plain field of the configuration."""
    pool = parser.add_argument_group("pool and policy")
    pool.add_argument(
        "--candidate", "-c", action="append", metavar="NAME=MODEL", help="a candidate (repeat)"
    )
    pool.add_argument("--policy", help="uniform, round_robin, fixed, schedule, lm")
    pool.add_argument("--speaker", help="the candidate that writes all (implies --policy fixed)")
    pool.add_argument("--schedule", help="names in order, e.g. P,A,P (implies --policy schedule)")
    pool.add_argument("--switcher", metavar="MODEL", help="LM switcher (implies --policy lm)")
    pool.add_argument("--select", choices=("top_p", "argmax"), help="how the switcher chooses")
    pool.add_argument("--boundary", help="tokens, sentence, entropy")
    pool.add_argument("--entropy-threshold", type=float, help="nats (implies --boundary entropy)")
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
    for name, field in SamplingConfig.model_fields.items():
        number: Any = field.annotation
        sampling.add_argument(_flag(name), type=number, help=_help(field))
    turns = parser.add_argument_group("turns")
    for name, field in GenerateConfig.model_fields.items():
        kind: Any = field.annotation
        if kind == list[str]:
            turns.add_argument(_flag(name), action="append", help=_help(field))
        elif get_origin(kind) is Literal:
            turns.add_argument(_flag(name), choices=get_args(kind), help=_help(field))
        else:
            plain = [part for part in (get_args(kind) or (kind,)) if part in _SCALARS]
            if plain:
                turns.add_argument(_flag(name), type=plain[0], help=_help(field))


def _help(field: Any) -> str:
    default = field.default
    shown = "" if default in (None, "") or field.default_factory else f" ({default})"
    return f"{field.description}{shown}".replace("%", "%%")


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
    for name in SamplingConfig.model_fields:
        if getattr(options, name) is not None:
            _section(data, "sampling")[name] = getattr(options, name)
    for name in GenerateConfig.model_fields:
        value = getattr(options, name, None)
        if name not in ("candidates", "policy", "boundary", "sampling") and value is not None:
            data[name] = value
    if not data.get("candidates"):
        raise InputError(
            "no candidates were given",
            remedy="use --candidate NAME=MODEL (repeat it), or `candidates:` in --config",
        )
    source = f"{options.config} and the flags" if options.config else "the flags"
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


def _section(data: dict[str, Any], name: str) -> dict[str, Any]:
    """A mapping inside the configuration, to lay flags over.

    Raises:
        InputError: the file holds something else there.
    """
    section = data.get(name)
    if section is None:
        section = data[name] = {}
    if not isinstance(section, dict):
        raise InputError(
            f"`{name}` holds {section!r} and not keys and values",
            remedy=f"write e.g. `{name}: {{kind: ...}}`; see docs/switch-generation.md",
        )
    return section


def _policy_flags(data: dict[str, Any], options: argparse.Namespace) -> None:
    policy = _section(data, "policy")
    implied = [
        kind
        for kind, given in (
            ("lm", options.switcher),
            ("schedule", options.schedule),
            ("fixed", options.speaker),
        )
        if given
    ]
    if len(implied) > 1:
        raise InputError(
            "--switcher, --schedule and --speaker each mean another policy",
            remedy="give one of them",
        )
    kind = options.policy or next(iter(implied), None)
    if kind:
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
        boundary = _section(data, "boundary")
        boundary["threshold"] = options.entropy_threshold
        boundary.setdefault("kind", "entropy")


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
