"""Rows in metrics.jsonl and in the real wandb, offline: each step once, whatever was killed in between."""

import json
import math
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import wandb

from tests.conftest import command_environment
from vlmkit.config import LoggerConfig, WandbMode
from vlmkit.paths import RunPaths
from vlmkit.tracking.jsonl import EVAL_STEP_KEY, JsonlTracker, read_last_step, read_results, read_rows
from vlmkit.tracking.sinks import Trackers, build_tracker
from vlmkit.tracking.wandb_file import read_records
from vlmkit.tracking.wandb_sink import WandbTracker, read_wandb_file

# Logs the steps of a run that goes on after a step, each with a value that tells the step; every fifth row has more.
# Evaluations of checkpoints come late, are updated, and come back to what they were.
TRAIN = """
import os, signal, subprocess, sys
from pathlib import Path
from vlmkit.config import LoggerConfig, WandbMode
from vlmkit.paths import RunPaths
from vlmkit.tracking.sinks import build_tracker

EVALUATED = {9: [(5, 0.5)], 22: [(5, 0.75), (10, 0.25)], 30: [(5, 0.5)]}
run, first, last, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
config = LoggerConfig(wandb=WandbMode.offline)
with build_tracker(config, RunPaths(run), {"seed": 0}, first - 1, True, print) as tracker:
    for step in range(first, last + 1):
        tracker.log(step, {"batch_loss": step / 7, "grad_norm": float("nan") if step == 3 else 1.0})
        if step % 5 == 0:
            tracker.log(step, {"val_loss": step / 3})
        for due in EVALUATED.get(step, ()):
            tracker.log_evaluation(due[0], {"lmms_eval/easyvqa_exact_match": due[1]})
    tracker.flush()
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "lose wandb":
        service = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, check=True)
        os.kill(int(service.stdout), signal.SIGKILL)
        while tracker._trackers[1]._tracker:  # until the connection is seen to be gone
            last += 1
            tracker.log(last, {"batch_loss": last / 7, "grad_norm": 1.0})
"""


def train(run: Path, first: int, last: int, end: str = "finish") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TRAIN, str(run), str(first), str(last), end],
        env=command_environment() | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )


def offline_files(run: Path) -> list[Path]:
    """What wandb wrote of all starts, in order; its service ends first, as with a process: then all is on disk."""
    wandb.teardown()
    return sorted((run / "wandb").glob("offline-run-*/*.wandb"))


def in_wandb(run: Path) -> dict[int, dict[str, float]]:
    """All rows of all offline files together: step → values. A key that is twice there for a step is an error."""
    seen: Counter[tuple[int, str]] = Counter()
    rows: dict[int, dict[str, float]] = {}
    for path in offline_files(run):
        for row in read_wandb_file(path):
            values = {key: json.loads(value) for key, value in row.items() if not key.startswith("_")}
            if EVAL_STEP_KEY in values:
                assert "global_step" not in values  # wandb adds it to what it takes for a training row
                continue
            step = values.pop("global_step")
            seen.update((step, key) for key in values)
            rows.setdefault(step, {}).update(values)
    assert max(seen.values()) == 1, seen.most_common(3)
    return rows


def in_jsonl(run: Path) -> dict[int, dict[str, float]]:
    """The lines of metrics.jsonl: step → values; one line a step, in order."""
    rows = [row for row in read_rows(run / "metrics.jsonl") if EVAL_STEP_KEY not in row]
    steps = [row.pop("global_step") for row in rows]
    assert steps == list(range(1, len(steps) + 1))
    return dict(zip(steps, rows, strict=True))


def evaluations_in_wandb(run: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of evaluation results of all offline files, in order."""
    found = []
    for path in offline_files(run):
        for row in read_wandb_file(path):
            values = {key: json.loads(value) for key, value in row.items() if not key.startswith("_")}
            if EVAL_STEP_KEY in values:
                found.append((values.pop(EVAL_STEP_KEY), values))
    return found


def evaluations_in_jsonl(run: Path) -> list[tuple[int, dict[str, float]]]:
    rows = [row for row in read_rows(run / "metrics.jsonl") if EVAL_STEP_KEY in row]
    return [(row.pop(EVAL_STEP_KEY), row) for row in rows]


def step_metrics_in_wandb(run: Path) -> dict[str, str]:
    """Key → the key of its x axis, as wandb was told, or worked out itself."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = offline_files(run)
    metrics = [record.metric for record in map(Record.FromString, read_records(path)) if record.HasField("metric")]
    return {metric.name or metric.glob_name: metric.step_metric for metric in metrics}


def without_nan(rows: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {
        step: {k: None if v in ("NaN", None) or v != v else v for k, v in row.items()} for step, row in rows.items()
    }


@pytest.mark.parametrize(
    "steps_before_kill",
    [
        pytest.param(400, id="written in part"),
        pytest.param(30, id="nothing written yet", marks=pytest.mark.slow),
    ],
)
def test_after_kill_9_each_step_is_there_once(tmp_path: Path, steps_before_kill: int) -> None:
    """wandb's service writes in blocks, of some 90 rows here: it lacks rows from before and has rows from after."""
    killed = train(tmp_path, 1, steps_before_kill, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [torn] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    written_before = len(list(read_wandb_file(torn)))
    assert written_before < steps_before_kill
    resumed_step = 20
    again = train(tmp_path, resumed_step + 1, steps_before_kill + 10)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    rows = in_jsonl(tmp_path)
    assert len(rows) == steps_before_kill + 10
    assert rows[3]["grad_norm"] is None
    assert rows[10] == {"batch_loss": 10 / 7, "grad_norm": 1.0, "val_loss": 10 / 3}
    assert without_nan(in_wandb(tmp_path)) == rows
    evaluated = evaluations_in_jsonl(tmp_path)
    assert [row["lmms_eval/easyvqa_exact_match"] for step, row in evaluated if step == 5][:3] == [0.5, 0.75, 0.5]
    assert sorted(evaluated, key=str) == sorted(evaluations_in_wandb(tmp_path), key=str)
    run_id = (tmp_path / "wandb_run_id").read_text()
    assert [run_id in path.name for path in (tmp_path / "wandb").glob("offline-run-*")] == [True, True]


def test_a_wandb_that_dies_is_one_line_and_the_next_start_hands_in_what_it_lacks(tmp_path: Path) -> None:
    broken = train(tmp_path, 1, 5, "lose wandb")
    assert broken.returncode == 0, broken.stderr
    assert broken.stderr == ""
    [line] = broken.stdout.splitlines()
    assert line.startswith("warning: wandb: ")
    assert "metrics go on in metrics.jsonl" in line
    steps = len(in_jsonl(tmp_path))
    assert train(tmp_path, steps + 1, steps + 2).returncode == 0
    assert without_nan(in_wandb(tmp_path)) == in_jsonl(tmp_path)


def test_a_wandb_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    said: list[str] = []
    with build_tracker(LoggerConfig(), RunPaths(tmp_path), {}, 0, True, said.append) as tracker:
        tracker.log(1, {"batch_loss": 0.5})
    [line] = said
    assert line.startswith("warning: wandb: ")
    assert in_jsonl(tmp_path) == {1: {"batch_loss": 0.5}}


def test_a_server_that_cannot_be_reached_means_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said: list[str] = []
    with build_tracker(LoggerConfig(wandb=WandbMode.online), RunPaths(tmp_path), {}, 0, True, said.append) as tracker:
        tracker.log(1, {"batch_loss": 0.5})
    [line] = said
    assert line.startswith("warning: wandb: http://127.0.0.1:9 cannot be reached")
    assert in_wandb(tmp_path) == {1: {"batch_loss": 0.5}}
    WandbTracker.abandon()


def test_what_comes_late_for_a_step_is_added_to_its_line(tmp_path: Path) -> None:
    """As the test result does: the row of its step was written before the checkpoint."""
    path = tmp_path / "metrics.jsonl"
    for resumed_step, metrics in ((0, {"batch_loss": 0.5}), (2, {"test_exact_match": 0.9})):
        with Trackers([JsonlTracker(path, resumed_step)]) as tracker:
            if not resumed_step:
                tracker.log(1, {"batch_loss": 0.7})
            tracker.log(2, metrics)
    assert in_jsonl(tmp_path) == {1: {"batch_loss": 0.7}, 2: {"batch_loss": 0.5, "test_exact_match": 0.9}}


def test_evaluations_have_their_own_axis_and_take_no_training_row_along(tmp_path: Path) -> None:
    """Late, updated, for a step whose row is still being gathered; metrics.jsonl and wandb have the same."""
    config = LoggerConfig(wandb=WandbMode.offline)
    late = [
        (1, {"lmms_eval/easyvqa_exact_match": 0.5, "lmms_eval/easyvqa_exact_match_stderr": 0.1}),
        (2, {"lmms_eval_limit8/easyvqa_exact_match": 0.25}),
        (1, {"lmms_eval/easyvqa_exact_match": 0.75}),
    ]
    with build_tracker(config, RunPaths(tmp_path), {}, 0, True, print) as tracker:
        for step in range(1, 5):
            tracker.log(step, {"batch_loss": step / 2})
            if step > 1:
                tracker.log_evaluation(*late[step - 2])
            tracker.log(step, {"val_loss": 1.0})
    training = {step: {"batch_loss": step / 2, "val_loss": 1.0} for step in range(1, 5)}
    assert in_wandb(tmp_path) == in_jsonl(tmp_path) == training
    assert evaluations_in_wandb(tmp_path) == evaluations_in_jsonl(tmp_path) == late
    assert read_results(tmp_path / "metrics.jsonl")[1]["lmms_eval/easyvqa_exact_match"] == 0.75
    axes = step_metrics_in_wandb(tmp_path)
    assert {axes[key] for _, row in late for key in row} == {EVAL_STEP_KEY}
    assert axes.get("batch_loss", axes["*"]) == "global_step"  # newer versions of wandb do not write it out


def test_results_outlive_a_resume_and_a_torn_end_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Trackers([JsonlTracker(path, 0)]) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"batch_loss": 1.0})
        tracker.log_evaluation(2, {"lmms_eval/x_acc": 0.5})
        tracker.log(4, {"batch_loss": 1.0})
    with path.open("a") as file:
        file.write('{"<lmms-eval-step>": 2, "lmms_ev')
    assert read_last_step(path) == 4
    assert read_results(path) == {2: {"lmms_eval/x_acc": 0.5}}
    JsonlTracker(path, math.inf).close()
    assert read_last_step(path) == 4
    JsonlTracker(path, 2).close()
    assert (read_last_step(path), read_results(path)) == (2, {2: {"lmms_eval/x_acc": 0.5}})


def test_lines_without_a_step_outlive_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"global_step": 1, "batch_loss": 0.5}, {"lmms-eval-step": 9, "x": 1.0}, {"global_step": 2}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"global_st')
    JsonlTracker(path, 1).close()
    assert list(read_rows(path)) == lines[:2]


def test_who_logs_late_leaves_the_file_to_who_appends_to_it(tmp_path: Path) -> None:
    """Both at once: on a file system that knows no locks."""
    path = tmp_path / "metrics.jsonl"
    with Trackers([JsonlTracker(path, 0)]) as training:
        training.log(1, {"batch_loss": 0.5})
        training.flush()
        with Trackers([JsonlTracker(path, math.inf)]) as late:
            late.log_evaluation(1, {"lmms_eval/x_acc": 0.5})
        training.log(2, {"batch_loss": 0.25})
    assert in_jsonl(tmp_path) == {1: {"batch_loss": 0.5}, 2: {"batch_loss": 0.25}}
    assert evaluations_in_jsonl(tmp_path) == [(1, {"lmms_eval/x_acc": 0.5})]
