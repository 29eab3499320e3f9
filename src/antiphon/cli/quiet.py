"""Libraries' own progress bars and notices, kept out of the command line's output."""

from __future__ import annotations

import os


def quiet() -> None:
    """Only errors from transformers, and no loading bars; call before models are loaded."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
