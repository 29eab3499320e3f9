"""`antiphon models check`: what can be done with these models, before any weights are read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from antiphon.config import ModelConfig
from antiphon.errors import InputError


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("models", help="look at models before they are used")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="do they share a vocabulary, templates, context lengths?",
        description="Reads configurations and tokenizers only.",
    )
    check.add_argument("models", nargs="+", metavar="[NAME=]MODEL", help="hub id or directory")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run)


def named_models(given: list[str]) -> dict[str, str]:
    """Names and models; a model without a name is called by its path's last part.

    Raises:
        InputError: two models would have one name.
    """
    models: dict[str, str] = {}
    for text in given:
        name, equals, model = text.partition("=")
        if not equals:
            name, model = Path(text).name or text, text
        if name in models:
            raise InputError(
                f"two models are called {name!r}", remedy="name them: NAME=MODEL NAME=MODEL"
            )
        models[name] = model
    return models


def run(options: argparse.Namespace) -> int:
    """The verb."""
    from antiphon.cli.quiet import quiet

    models = named_models(options.models)
    quiet()
    from rich.console import Console
    from rich.table import Table

    from antiphon.backends.compatibility import check_pool

    report = check_pool({name: ModelConfig(model=model) for name, model in models.items()})
    if options.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
        return 0
    console = Console()
    table = Table(title="models", title_justify="left")
    for column in ("name", "family", "vocabulary", "context", "chat template", "end", "decoding"):
        table.add_column(column, overflow="fold")
    for model in report.models:
        table.add_row(
            model.name,
            model.family,
            str(model.vocabulary_size),
            str(model.context_length or "no limit"),
            model.template or "none",
            " ".join(model.eos) or "none",
            model.decoding if model.usable else f"[red]{model.decoding}[/red]",
        )
    console.print(table)
    if report.pairs:
        pairs = Table(title="pairs", title_justify="left")
        for column in ("models", "token ids", "chat template"):
            pairs.add_column(column, overflow="fold")
        for pair in report.pairs:
            pairs.add_row(
                f"{pair.first}, {pair.second}",
                pair.difference or "the same",
                "the same" if pair.same_template else "different",
            )
        console.print(pairs)
    for line in report.conclusions:
        console.print(f"- {line}", highlight=False)
    return 0
