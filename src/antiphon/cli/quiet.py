"""Libraries' own progress bars and notices, kept out of the command line's output."""

from __future__ import annotations

import os


def quiet() -> None:
    """Only errors from transformers, and no loading bars; call before models are loaded."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
