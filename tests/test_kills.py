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

import pytest
import torch
from safetensors.torch import load_file

from tests.test_train import metrics, reproducible, start_train
from vlmkit.tracking.wandb_sink import read_wandb_file

STEPS = 80
SETTINGS = (
    f"trainer.max_training_steps={STEPS}",
    "trainer.eval_interval=2",
    "trainer.save_in_background=true",
    "trainer.keep_last=3",
    "trainer.stats_log_interval=5",
    "logger.wandb=offline",
)


def finish(run: Path) -> None:
    process = start_train(run, *SETTINGS)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def killed_after(run: Path, seconds: float) -> bool:
    """Start, and kill the process and its loader workers; False if it came to its end before."""
    process = start_train(run, *SETTINGS)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0
    return False


def assert_same(run: Path, whole: Path) -> None:
    """Every line and every weight, bit for bit; nothing half-written is left."""
    assert reproducible(metrics(run)) == reproducible(metrics(whole))
    assert [row["global_step"] for row in metrics(run)] == list(range(1, STEPS + 1))
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
    for name in names:
        mine, theirs = (load_file(folder / "checkpoints" / name / "model.safetensors") for folder in (run, whole))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def assert_wandb_has_each_step_once(run: Path) -> None:
    """In the offline files of all starts together, with the values of metrics.jsonl."""
    logged = Counter[tuple[int, str]]()
    losses = {}
    for path in (run / "wandb").glob("offline-run-*/*.wandb"):
        for row in read_wandb_file(path):
            step = int(row["global_step"])
            logged.update((step, key) for key in row if not key.startswith("_") and key != "global_step")
            losses |= {step: json.loads(row["batch_loss"])} if "batch_loss" in row else {}
    assert set(logged.values()) == {1}
    rows = metrics(run)
    assert logged.keys() == {(row["global_step"], key) for row in rows for key in row if key != "global_step"}
    assert losses == {row["global_step"]: row["batch_loss"] for row in rows}


@pytest.mark.slow
def test_killed_at_random_moments_a_run_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    began = time.monotonic()
    finish(whole)
    duration, moment = time.monotonic() - began, random.Random(0)
    kills, runs = 0, [tmp_path / "0"]
    while kills < int(os.environ.get("VLMKIT_KILLS", "3")):
        if killed_after(runs[-1], moment.uniform(0, duration)):
            kills += 1
        else:
            runs.append(tmp_path / str(len(runs)))
    finish(runs[-1])
    for run in runs:
        assert_same(run, whole)
        assert_wandb_has_each_step_once(run)
    sys.stdout.write(f"{kills} kills in {len(runs)} run(s) of {STEPS} steps, each of {duration:.0f} s\n")
