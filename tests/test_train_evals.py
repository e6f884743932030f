"""Whole runs that evaluate their checkpoints on easy-VQA's test questions while they train."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICK, command_environment, composed
from tests.test_train import free_port, metrics, reproducible, start_train
from tests.tracking.test_sinks import evaluations_in_jsonl, evaluations_in_wandb, in_wandb
from vlmkit.errors import ConfigError
from vlmkit.evaluation.cells import CellState, read_cell, read_cells
from vlmkit.evaluation.samples import read_samples
from vlmkit.paths import RunPaths
from vlmkit.preflight import check_training

pytestmark = pytest.mark.slow
STEPS = (4, 8, 12)
LIMIT = 40
EVALS = (f"eval_suite.limit={LIMIT}", "eval_suite.batch_size=8", "logger.wandb=offline")
Answers = dict[int, list[str]]


def finish(run: Path, *arguments: str) -> str:
    """Run to the end; what was printed."""
    process = start_train(run, *EVALS, *arguments)
    printed, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    return printed


def training_rows(run: Path) -> list[dict[str, Any]]:
    return reproducible([row for row in metrics(run) if "global_step" in row])


def answers(run: Path) -> Answers:
    """Step → the answers to its questions; every cell must be done."""
    found = {}
    for step in STEPS:
        [cell] = read_cells(RunPaths(run).cells(step))
        assert (cell.state, cell.folder.name) == (CellState.done, f"easyvqa.limit{LIMIT}")
        found[step] = [line["answer"] for line in read_samples(cell.folder).values()]
    return found


def results(run: Path) -> dict[int, float]:
    """Step → what the merged file says."""
    found = {step: json.loads((run / "evals" / f"step_{step}.json").read_text()) for step in STEPS}
    return {step: merged["results"]["easyvqa_exact_match"] for step, merged in found.items()}


def assert_logged(run: Path) -> None:
    """Each result once, in metrics.jsonl and in wandb, with no training row lost."""
    values = dict(results(run).items())
    rows = evaluations_in_jsonl(run)
    assert {step: row[f"lmms_eval_limit{LIMIT}/easyvqa_exact_match"] for step, row in rows} == values
    assert len(rows) == len(STEPS)
    assert sorted(rows, key=str) == sorted(evaluations_in_wandb(run), key=str)
    assert {step: row["batch_loss"] for step, row in in_wandb(run).items()} == {
        row["global_step"]: row["batch_loss"] for row in training_rows(run)
    }


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that evaluates each checkpoint itself."""
    run = tmp_path_factory.mktemp("inline") / "run"
    finish(run, "evals=inline")
    return run


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_inline_evaluation_changes_nothing_in_training(inline: Path, tmp_path: Path) -> None:
    finish(tmp_path / "run")
    assert training_rows(inline) == training_rows(tmp_path / "run")
    assert_logged(inline)


def test_what_is_done_is_not_done_again(inline: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in inline.glob("evals/**/*.json*")}
    printed = finish(inline, "evals=inline")
    assert "evaluated" not in printed
    assert {path: path.stat().st_mtime_ns for path in inline.glob("evals/**/*.json*")} == stamps


def test_two_processes_share_the_questions(inline: Path, tmp_path: Path) -> None:
    """Their checkpoints differ from those of one process in the last digits, so answers may."""
    halved = ("trainer.batch_size=6", "dataset.num_workers=0")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    launch += [f"--master-port={free_port()}", "-m", "vlmkit.train", "run_dir=run", *QUICK, *halved]
    done = subprocess.run(
        [sys.executable, *launch, "evals=inline", *EVALS],
        cwd=tmp_path,
        env=command_environment() | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert {step: len(found) for step, found in answers(run).items()} == dict.fromkeys(STEPS, LIMIT)
    assert results(run)[12] == pytest.approx(results(inline)[12], abs=0.2)
    assert_logged(run)


def test_processes_beside_the_run_give_the_same_results_and_surplus_checkpoints_go_when_they_are_done(
    inline: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    printed = finish(run, "evals=local", "evals.workers=2", "trainer.keep_last=1", "trainer.keep_best=false")
    assert answers(run) == answers(inline)
    assert training_rows(run) == training_rows(inline)
    assert_logged(run)
    assert list(RunPaths(run).all_checkpoints) == [12]
    assert "waiting for evaluations: step_4 easyvqa" in printed


def test_after_kill_9_an_orphan_goes_on_and_the_next_start_does_the_rest(inline: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start_train(run, *EVALS, "evals=local")
    cell = RunPaths(run).cells(4) / f"easyvqa.limit{LIMIT}"
    wait_for(lambda: (found := read_cell(cell)) and found.is_held)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    finish(run, "evals=local")
    assert answers(run) == answers(inline)
    assert training_rows(run) == training_rows(inline)
    assert_logged(run)


def test_a_signal_ends_the_processes_beside_the_run_and_the_next_start_goes_on(inline: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start_train(run, *EVALS, "evals=local")
    wait_for((RunPaths(run).cells(12) / f"easyvqa.limit{LIMIT}").exists)  # in training the last one is planned
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGTERM, errors
    assert not any(cell.is_held for step in STEPS for cell in read_cells(RunPaths(run).cells(step)))
    finish(run, "evals=local")
    assert answers(run) == answers(inline)
    assert_logged(run)


def test_a_run_goes_on_where_slurm_cannot_be_reached(
    inline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each evaluation is told; the command that is named at the end, on another machine for instance, does them all."""
    run = tmp_path / "run"
    monkeypatch.setenv("PATH", str(tmp_path))
    printed = finish(run, "evals=slurm")
    assert training_rows(run) == training_rows(inline)
    cells = [RunPaths(run).cells(step) / f"easyvqa.limit{LIMIT}" for step in STEPS]
    assert [cell and cell.state for cell in map(read_cell, cells)] == [CellState.planned] * 3
    told = printed.splitlines()
    assert any(line.startswith("warning: evaluations of step_4") and "Could not detect" in line for line in told)
    [again] = [line for line in told if line.startswith("warning: not handed over to SLURM: step_4 easyvqa")]
    assert shlex.split(again.split("or: ")[1])[:3] == ["python", "-m", "vlmkit.eval"]
    assert all(str(cell) in again for cell in cells)


def test_a_task_that_nobody_knows_is_told_before_the_run_begins(tmp_path: Path) -> None:
    config = composed("train", "evals=local", "eval_suite.tasks=[mmstarr]")
    with pytest.raises(ConfigError, match="mmstarr"):
        check_training(config, RunPaths(tmp_path))
