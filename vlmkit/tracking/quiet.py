"""Libraries that talk are asked to be quiet: what a run prints is for its user."""

import os

from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """No progress bars and no advice of dependencies; their errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns when loader workers fork
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
