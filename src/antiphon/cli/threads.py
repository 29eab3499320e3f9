"""How many CPU threads a command computes with."""

from __future__ import annotations

import argparse
import os

from antiphon.errors import InputError


def add_threads(parser: argparse.ArgumentParser) -> None:
    """`--threads` for commands that compute with small models: one by default.

    Small models gain little from more threads, and threads that wait for each other on a shared
    machine lose a factor of ten or more.
    """
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")


def use_threads(count: int | None) -> None:
    """Set torch's thread count; ``None`` leaves it as it is.

    Raises:
        InputError: fewer than one.
    """
    if count is None:
        return
    most = 8 * (os.cpu_count() or 1)
    if not 1 <= count <= most:
        raise InputError(f"--threads is {count}", remedy=f"give 1 to {most}")
    import torch

    torch.set_num_threads(count)
