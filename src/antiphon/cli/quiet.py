"""Libraries' own progress bars and notices, kept out of the command line's output."""

from __future__ import annotations

import logging
import os


def quiet() -> None:
    """Only errors from transformers, and no loading bars; call before models are loaded."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
