"""From a run's directory to results.json, report.md, report.html and plots/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from antiphon.errors import InputError
from antiphon.record import write_json
from antiphon.reports.switch.examples import examples
from antiphon.reports.switch.markdown import markdown
from antiphon.reports.switch.page import page
from antiphon.reports.switch.plots import plots, require_matplotlib
from antiphon.reports.switch.records import read_records
from antiphon.reports.switch.results import results

FILES = ("results.json", "report.md", "report.html")
"""What is written beside ``plots/``."""


def build_report(root: Path) -> dict[str, Any]:
    """Write the report of a run from its records; the same bytes from the same records.

    Each file is there whole or not at all, and nothing is written before all is computed.

    Args:
        root: the run's directory, with ``run.json`` and ``records/``.

    Returns:
        What ``results.json`` holds; see :func:`antiphon.reports.switch.results.results`.

    Raises:
        InputError: records are missing, torn or do not fit together, or the directory cannot be
            written.
        CapabilityError: matplotlib is not installed.
    """
    require_matplotlib()
    records = read_records(root)
    found = results(records)
    made = plots(found)
    text = markdown(found, [plot.name for plot in made])
    html = page(found, made, examples(records))
    try:
        folder = root / "plots"
        folder.mkdir(exist_ok=True)
        for plot in made:
            _write(folder / f"{plot.name}.svg", plot.svg.encode())
            _write(folder / f"{plot.name}.png", plot.png)
        _write(root / "report.md", text.encode())
        _write(root / "report.html", html.encode())
        write_json(root / "results.json", found)
    except OSError as error:
        raise InputError(
            f"the report cannot be written to {root}: {error.strerror or error}",
            remedy="make room, or copy the directory to a place that can be written",
        ) from error
    return found


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
