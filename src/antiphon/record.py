"""What a run was: fingerprints, versions, and a results file that survives ``kill -9``.

A results file is JSON lines, one a finished item, in the items' order. Lines are appended and
flushed to disk before the next window of items starts, so a killed run loses at most the items in
flight; a torn last line is cut off when the run is resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from antiphon.errors import InputError

KEY = "key"
"""Field of a result line that says under which configuration, prompt and seed it was made."""

_WHOLE = 64 * 2**20
_EDGE = 2**20


def digest(value: Any) -> str:
    """SHA-256 of a JSON-ready value, the same however its mappings are ordered."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def directory_fingerprint(folder: Path) -> str:
    """SHA-256 over a model directory's files: names, sizes, contents.

    Of files above 64 MiB only the first and last MiB are read: retraining changes them.
    """
    state = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        size = path.stat().st_size
        state.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                while block := file.read(_EDGE):
                    state.update(block)
            else:
                state.update(file.read(_EDGE))
                file.seek(size - _EDGE)
                state.update(file.read(_EDGE))
    return state.hexdigest()


def environment() -> dict[str, str]:
    """Versions and machine, for a run's record."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "command": " ".join(sys.argv),
    }
    for package in ("antiphon", "torch", "transformers", "tokenizers", "peft"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


class ResultsFile:
    """Appends result lines and knows which are there already.

    Args:
        path: the file; made if it does not exist.
        keys: the key of every item of this run, in order.
        overwrite: drop what an earlier run left.

    Raises:
        InputError: the path cannot be written, or holds results of another configuration, other
            prompts or other seeds.
    """

    def __init__(self, path: Path, keys: Sequence[str], *, overwrite: bool = False) -> None:
        self.path = path
        self._held: IO[bytes] | None = None
        if path.is_dir():
            raise InputError(f"the output {path} is a directory", remedy="name a file in it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab"):
                pass
        except OSError as error:
            raise InputError(
                f"the output {path} cannot be written: {error.strerror or error}",
                remedy="choose a path that can be written",
            ) from error
        self._lock()
        try:
            if overwrite:
                os.truncate(path, 0)
            self.lines = self._read()
            self._check(keys)
        except InputError:
            self.close()
            raise

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        """Keep a second run from appending to the same file; held until the process ends."""
        if sys.platform == "win32":  # no advisory locks there
            return
        import fcntl

        self._held = self.path.open("ab")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._held.close()
            raise InputError(
                f"another run is writing {self.path}",
                remedy="wait for it, or give another --output",
            ) from error

    def close(self) -> None:
        """Let other runs write the file."""
        if self._held is not None:
            self._held.close()

    def _read(self) -> list[dict[str, Any]]:
        """Whole lines of an earlier run; what was torn off in writing is cut away."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        lines = []
        for number, raw in enumerate(data[:whole].splitlines(), 1):
            try:
                line = json.loads(raw)
                if KEY not in line:
                    raise ValueError
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"line {number} of {self.path} is not a result of this command",
                    remedy="give another --output, or --overwrite to replace that file",
                ) from error
            lines.append(line)
        return lines

    def _check(self, keys: Sequence[str]) -> None:
        if len(self.lines) > len(keys):
            raise InputError(
                f"{self.path} holds {len(self.lines)} results and this run has {len(keys)} items",
                remedy="give another --output, or --overwrite to replace that file",
            )
        for number, (line, key) in enumerate(zip(self.lines, keys, strict=False), 1):
            if line[KEY] != key:
                raise InputError(
                    f"{self.path} was made by another run: its result {number} has another "
                    "configuration, model, prompt or seed than item "
                    f"{number} of this run",
                    remedy="give another --output, or --overwrite to replace that file",
                )

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Add finished items and wait until they are on disk."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with self.path.open("ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        self.lines.extend(lines)
