"""A process with loader workers ends, whatever happens to it."""

import subprocess
import sys

from tests.conftest import command_environment

ERROR_WITH_WORKERS = """
import sys
from vlmkit.data.loader import ValidationSet
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import load_tokenizer

layout = ImageLayout(
    tile_size=64, tokens_per_tile=16, max_img_size=256, resize_to_max_side_len=False, mean=0.5, std=0.5
)
empty_packs = [()] * 100
batches = iter(ValidationSet(empty_packs, [], ChatEncoder(load_tokenizer("tiny"), layout), batch_size=1, num_workers=2))
next(batches)
sys.exit("an error")
"""


def test_a_process_that_ends_in_an_error_does_not_wait_for_its_workers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ERROR_WITH_WORKERS],
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr.strip()) == (1, "an error")
