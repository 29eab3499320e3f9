"""What all tests share: one thread, quiet libraries."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # read when the hub's client is imported: no test may wait for it
)

from collections.abc import Iterator

import pytest
import torch
from transformers.utils import logging


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are slower on many threads, and sums in a fixed order repeat exactly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def quiet_transformers() -> None:
    """Missing optional kernels are logged once a model; they are no news here."""
    logging.set_verbosity_error()
