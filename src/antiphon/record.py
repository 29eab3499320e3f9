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

from antiphon.errors import AntiphonError, InputError

KEY = "run_key"
"""Field of a result line that says under which configuration, prompt and seed it was made."""

_WHOLE = 64 * 2**20
_BLOCK = 2**20


def digest(value: Any) -> str:
    """SHA-256 of a JSON-ready value, the same however its mappings are ordered."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def what_differs(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two JSON-ready values differ, e.g. ``["config.completions: 8, now 16"]``."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for name in sorted({*before, *now}):
            inner = f"{path}.{name}" if path else str(name)
            found += what_differs(before.get(name), now.get(name), inner)
        return found
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        found = []
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            found += what_differs(old, new, f"{path}[{index}]")
        return found
    return [] if before == now else [f"{path}: {_short(before)}, now {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:24] + "..." + text[-12:]


def directory_fingerprint(folder: Path) -> str:
    """SHA-256 over a model directory's files: names, sizes, contents.

    Files above 64 MiB would take long to read whole: of those, one MiB in every sixteen, the last
    MiB and the time of the last change count.
    """
    state = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        status = path.stat()
        state.update(f"{path.name}\0{status.st_size}\0".encode())
        with path.open("rb") as file:
            if status.st_size <= _WHOLE:
                while block := file.read(_BLOCK):
                    state.update(block)
                continue
            state.update(str(status.st_mtime_ns).encode())
            for start in (*range(0, status.st_size, 16 * _BLOCK), status.st_size - _BLOCK):
                file.seek(start)
                state.update(file.read(_BLOCK))
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


def exclusive(path: Path, otherwise: str) -> IO[bytes]:
    """Open a file for appending so that no other run can; closing it lets others in again.

    The lock ends with the process, however it ends. Systems without ``flock`` have none.

    Args:
        path: the file; made if it does not exist.
        otherwise: what to do instead of waiting, for the message.

    Raises:
        InputError: another run holds it.
    """
    held = path.open("ab")
    if sys.platform == "win32":
        return held
    import fcntl

    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise InputError(
            f"another run is writing {path}", remedy=f"wait for it, or {otherwise}"
        ) from error
    return held


class ResultsFile:
    """Appends result lines and knows which are there already. Close it, or use it in ``with``.

    Nothing on disk changes before the first :meth:`append`.

    Args:
        path: the file; made if it does not exist.
        keys: the key of every item of this run, in order.
        overwrite: drop what an earlier run left, once there is something to put in its place.
        remedy: what to do about a file of another run.

    Raises:
        InputError: the path cannot be written, is being written by another run, or holds anything
            but results of the same configuration, prompts and seeds.
    """

    def __init__(
        self,
        path: Path,
        keys: Sequence[str],
        *,
        overwrite: bool = False,
        remedy: str = "give another --output, or --overwrite to replace that file",
    ) -> None:
        self.path = path
        self._remedy = remedy
        self.lines: list[dict[str, Any]] = []
        self._size = 0
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
        self._held = exclusive(path, remedy.partition(",")[0])
        try:
            if not overwrite:
                self._read()
                self._check(keys)
        except InputError:
            self.close()
            raise

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other runs write the file."""
        self._held.close()

    def _read(self) -> None:
        """Whole lines of an earlier run. What is torn off behind them is cut by the next append;
        a file without a whole line of ours is not ours to cut."""
        data = self.path.read_bytes()
        self._size = data.rfind(b"\n") + 1
        raw_lines = data[: self._size].split(b"\n")[:-1]
        if data and not raw_lines:
            raw_lines = [data]  # one line without an end: ours if it is a result, and cut then
        for number, raw in enumerate(raw_lines, 1):
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                line = None
            if not isinstance(line, dict) or KEY not in line:
                raise InputError(
                    f"line {number} of {self.path} is not a result of this command",
                    remedy=self._remedy,
                )
            self.lines.append(line)
        if not self._size:
            self.lines = []

    def _check(self, keys: Sequence[str]) -> None:
        if len(self.lines) > len(keys):
            raise InputError(
                f"{self.path} holds {len(self.lines)} results and this run has {len(keys)} items",
                remedy=self._remedy,
            )
        for number, (line, key) in enumerate(zip(self.lines, keys, strict=False), 1):
            if line[KEY] != key:
                raise InputError(
                    f"{self.path} was made by another run: its result {number} has another "
                    "configuration, model, prompt or seed than item "
                    f"{number} of this run",
                    remedy=self._remedy,
                )

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Add finished items and wait until they are on disk.

        Raises:
            AntiphonError: the disk is full or gone; what was there before is still there.
        """
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        data = text.encode("utf-8")
        try:
            with self.path.open("r+b") as file:
                file.truncate(self._size)
                file.seek(self._size)
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, self._size)
                    raise
        except OSError as error:
            raise AntiphonError(
                f"{len(lines)} results could not be written to {self.path}: "
                f"{error.strerror or error}",
                remedy=f"make room and run again; the {len(self.lines)} results before are kept",
            ) from error
        self._size += len(data)
        self.lines.extend(lines)
