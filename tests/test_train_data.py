"""Whole runs over data that are odd, streamed, and read by a changing number of processes."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import QUICK, command_environment
from tests.test_train import free_port, metrics, wait_for_step

PACKS_IN_A_STEP = 4
BAD_EVERY = 15


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parquet files of 60 rows: text only, one picture, two; rated; every BAD_EVERYth picture cut off."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    number = 0
    for file in range(3):
        rows = []
        for _ in range(60):
            buffer = io.BytesIO()
            Image.fromarray(random.integers(0, 255, (60, 50 + 30 * file, 3), dtype=np.uint8)).save(buffer, "JPEG")
            encoded = buffer.getvalue()
            if number % BAD_EVERY == 1:
                encoded = encoded[: len(encoded) // 2]
            turns = [{"user": f"what is {turn}?", "assistant": str(number)} for turn in range(1 + number % 3)]
            ratings = [1 + (number + turn) % 5 for turn in range(len(turns))]
            images = [{"bytes": encoded, "path": None}] * (number % 3)
            rows.append({"images": images, "texts": turns, "relevance_ratings": ratings})
            number += 1
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{file}.parquet", row_group_size=20)
    return folder


def start(run: Path, data: Path, *more: str, processes: int = 1) -> subprocess.Popen[str]:
    """A quick run over the data; the packs of a step are as many for any number of processes."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-addr=127.0.0.1"]
    arguments = [
        *QUICK,
        f"run_dir={run}",
        "dataset=local",
        f"dataset.path={data}",
        "dataset.val_size=10",
        "dataset.max_bad_share=0.5",
        "filter.relevance_min_rating=2",
        "packing.seq_length=192",
        f"trainer.batch_size={PACKS_IN_A_STEP // 2 // processes}",
        "trainer.gradient_accumulation_steps=2",
        *more,
    ]
    return subprocess.Popen(
        [
            sys.executable,
            *([*launcher, f"--master-port={free_port()}"] if processes > 1 else []),
            "-m",
            "vlmkit.train",
            *arguments,
        ],
        cwd=run.parent,
        env=command_environment() | {"ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run that is to end well; what it printed."""
    printed, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return printed


@pytest.mark.parametrize("streaming", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_on_two_processes_as_if_nothing_had_happened(
    data: Path, tmp_path: Path, streaming: bool
) -> None:
    mode = f"dataset.streaming={str(streaming).lower()}"
    whole = tmp_path / "whole"
    finish(start(whole, data, mode))
    killed = tmp_path / "killed"
    first = start(killed, data, mode, "dataset.num_workers=2")
    wait_for_step(killed, 6)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    printed = finish(start(killed, data, mode, processes=2))
    assert "going on after step" in printed
    expected = {row["global_step"]: row["batch_loss"] for row in metrics(whole) if "batch_loss" in row}
    found = {row["global_step"]: row["batch_loss"] for row in metrics(killed) if "batch_loss" in row}
    assert found == pytest.approx(expected, rel=1e-3)
    assert all(found[step] == expected[step] for step in range(1, 5))  # one process each: bit for bit


@pytest.mark.slow
def test_bad_samples_are_named_and_too_many_of_them_end_the_run(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(start(run, data, "dataset.streaming=true", "trainer.max_training_steps=40", "trainer.eval_interval=40"))
    lines = [json.loads(line) for line in (run / "bad_samples.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in lines} == {"cannot read the picture"}
    for line in lines:
        _, file, row = line["sample"].split("/")
        number = 60 * int(file.removesuffix(".parquet")) + int(row)
        assert number % BAD_EVERY == 1
        assert number % 3 > 0

    few = tmp_path / "few"
    process = start(
        few, data, "dataset.streaming=true", "trainer.max_training_steps=400", "dataset.max_bad_share=0.001"
    )
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "samples cannot be read, more than dataset.max_bad_share=0.001: cannot read the picture" in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_place_in_other_data_is_refused_with_the_key(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(start(run, data, "trainer.max_training_steps=4"))
    checkpoint = run / "checkpoints" / "step_4"
    other = start(tmp_path / "other", data, f"resume={checkpoint}", "filter.relevance_min_rating=3")
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 1
    assert errors.strip() == (
        f"error: {checkpoint}: its place in the data belongs to another config: "
        f"filter.relevance_min_rating=2 there, 3 here; model.init_from={checkpoint} takes the weights alone and begins "
        "at step 1"
    )
