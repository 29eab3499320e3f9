"""A tiny lab for everything that runs whole commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from antiphon.lab.build import Lab, build_lab
from antiphon.lab.pool import write_run_file

Ask = Callable[..., Path]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """P, F and A at the size for tests: ordinary directories, no skill."""
    built = build_lab(tmp_path_factory.mktemp("lab"), size="tiny", seed=0)
    write_run_file(built)
    return built


@pytest.fixture
def questions(tmp_path: Path) -> Ask:
    """Writes a JSONL file of prompts with a field to carry through."""

    def write(count: int, name: str = "questions.jsonl") -> Path:
        path = tmp_path / name
        keys = ("KXA", "KXAKXA", "VLHRMVQZB")
        lines = [{"id": i, "input": f"What is QZB plus {keys[i % 3]}?"} for i in range(count)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    return write
