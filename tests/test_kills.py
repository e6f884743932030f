"""kill -9, again and again, at random moments: in the end everything is as if it had never happened.

Checkpoints are written after every second step, in the background, so many moments lie inside a save. CI kills a few
times; ``VLMKIT_KILLS=20 python -m pytest -m slow tests/test_kills.py`` kills twenty times.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import QUICK, command_environment
from tests.test_train import metrics, reproducible
from tests.tracking.wandb_files import read_offline_rows

STEPS = 30
SETTINGS = (
    *(argument for argument in QUICK if not argument.startswith(("trainer.max_training_steps", "trainer.eval_interval"))),
    f"trainer.max_training_steps={STEPS}",
    "trainer.eval_interval=2",
    "trainer.save_in_background=true",
    "trainer.keep_last=3",
    "logger=wandb",
    "logger.wandb=offline",
)


def start(run: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vlmkit.train", f"run_dir={run}", *SETTINGS],
        cwd=run.parent,
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(run: Path) -> None:
    process = start(run)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def kill_somewhere(run: Path, moment: random.Random) -> bool:
    """Kill a start at some moment after its first new step; False if it came to its end before."""
    before = len(metrics(run)) if (run / "metrics.jsonl").exists() else 0
    process = start(run)
    deadline = time.monotonic() + 120
    new_steps = moment.randrange(1, 6)
    while process.poll() is None and time.monotonic() < deadline:
        lines = (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0
        if lines >= min(before, STEPS - 6) + new_steps:
            break
        time.sleep(0.01)
    time.sleep(moment.uniform(0, 0.3))
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)  # with its loader workers
    process.communicate()
    return killed


@pytest.mark.slow
def test_killed_at_random_moments_a_run_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole)
    moment = random.Random(0)
    for _ in range(int(os.environ.get("VLMKIT_KILLS", "3"))):
        kill_somewhere(killed, moment)
    finish(killed)
    assert_same(killed, whole)
