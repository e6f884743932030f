"""Libraries that talk are asked to be quiet: what a run prints is for its user."""

import logging
import os

import datasets
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """No progress bars and no advice of dependencies; their errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns when loader workers fork
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # two lines for each retry
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what ails a picture is in the error that names its sample
