"""Evaluations as jobs: what is missing becomes an array, a merge follows, the same command fills what is left."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import QUICK, command_environment, composed, save_untrained
from tests.evaluation.made_up_tasks import TASKS
from tests.slurm.conftest import Slurm
from tests.tracking.test_sinks import evaluations_in_jsonl
from vlmkit.cancel import cancel_run
from vlmkit.config import ModelConfig
from vlmkit.errors import UserError
from vlmkit.evaluation.cells import CellState, read_cell
from vlmkit.evaluation.samples import read_samples
from vlmkit.evaluation.subjects import find_subjects, plan_cells
from vlmkit.evaluation.submission import HandedOver, Submission
from vlmkit.job_standings import stand
from vlmkit.jobs import JobPlace, JobState, read_job, read_merge_jobs, read_report
from vlmkit.paths import RunPaths
from vlmkit.processing.chat import ChatEncoder
from vlmkit.run_directory import plain_config
from vlmkit.tracking.console import Screen

LIMIT = 3
THREE = ("chartqa", "mmstar", "ocrbench")
HELD = "+evals.job.additional_parameters.hold=true"  # SLURM starts them when they are released


@pytest.fixture
def paths(tmp_path: Path, tiny_model_config: ModelConfig, encoder: ChatEncoder) -> RunPaths:
    """A run with two checkpoints that have learnt nothing, and the data of tasks beside it."""
    paths = RunPaths(tmp_path / "a run, lr=1e-3")
    save_untrained(paths, (4, 8), tiny_model_config, encoder)
    paths.config.write_text(yaml.safe_dump(plain_config(composed("train", "logger=none"))))
    for task in THREE:
        TASKS[task]().save(tmp_path / "data" / task)
    return paths


@pytest.fixture
def environment(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of commands; and this process speaks to the cluster too."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return command_environment() | {"HF_HUB_OFFLINE": "1"}


def arguments(paths: RunPaths, *more: str) -> list[str]:
    suite = (f"eval_suite.local_data={paths.root.parent / 'data'}", f"eval_suite.limit={LIMIT}")
    return [f"run='{paths.root}'", *suite, "evals=slurm", "cluster.mem_gb=1", *more]


def evaluate(paths: RunPaths, environment: dict[str, str], *more: str) -> list[str]:
    """The lines that the command prints."""
    command = [sys.executable, "-m", "vlmkit.eval", *arguments(paths, *more)]
    done = subprocess.run(command, env=environment, cwd=paths.root.parent, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def jobs_of(lines: list[str]) -> tuple[str, str]:
    """The array and the job that merges."""
    found = re.search(r"as job (\d+), merged by job (\d+)", "\n".join(lines))
    assert found is not None, lines
    return found[1], found[2]


def submission(paths: RunPaths, *more: str) -> Submission:
    config = composed("eval", *arguments(paths, *more))
    return Submission(plan_cells(config, find_subjects(config)), config.evals, config.cluster)


def merged(paths: RunPaths, step: int) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((paths.evals / f"step_{step}.json").read_text())
    return said


def processes_about(cell: Path) -> list[int]:
    """The processes that answer a cell: the command that its job has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if f"cells=['{cell}']".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def is_over(slurm: Slurm, job: str) -> bool:
    return not slurm.run("squeue", "--noheader", f"--jobs={job}", "--states=PD,R,CG") and job in slurm.states(job)


def test_a_crash_leaves_a_hole_that_is_named_and_the_same_command_fills_it_alone(
    slurm: Slurm, paths: RunPaths, environment: dict[str, str]
) -> None:
    command = (f"tasks=[{','.join(THREE)}]", "evals.parallelism=2")
    lines = evaluate(paths, environment, *command)
    assert lines[0] == "6 to evaluate, 0 of them done before"
    array, merge = jobs_of(lines)
    assert evaluate(paths, environment, *command)[1] == "evaluations of step_4, step_8: 6 under way already"
    hole = paths.cells(4) / f"chartqa.limit{LIMIT}"
    slurm.wait_until(lambda: processes_about(hole))
    os.kill(processes_about(hole)[0], signal.SIGKILL)
    assert "ArrayTaskThrottle=2" in slurm.run("scontrol", "show", "job", array)
    slurm.wait_until(lambda: slurm.states(merge).get(merge) == "COMPLETED", 300)
    assert slurm.states(array)[f"{array}_0"] == "FAILED"
    assert merged(paths, 4)["why_missing"]["chartqa"].startswith(f"planned; job {array}_0 failed: ")
    assert (merged(paths, 4)["missing"], merged(paths, 8)["missing"]) == (["chartqa"], [])

    stamps = {path: path.stat().st_mtime_ns for path in paths.evals.glob("*/*/cell.json")}
    lines = evaluate(paths, environment, *command)
    assert lines[0] == "6 to evaluate, 5 of them done before"
    _, merge = jobs_of(lines)
    slurm.wait_until(lambda: slurm.states(merge).get(merge) == "COMPLETED", 120)
    changed = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {hole / "cell.json"}
    assert [merged(paths, step)["complete"] for step in (4, 8)] == [True, True]
    assert {step for step, _ in evaluations_in_jsonl(paths.root)} == {4, 8}
    assert evaluate(paths, environment, *command)[0] == "6 to evaluate, 6 of them done before"


def test_two_submitters_at_once_submit_a_cell_once_and_all_is_cancelled_together(
    slurm: Slurm, paths: RunPaths, environment: dict[str, str]
) -> None:
    both = [submission(paths, f"tasks=[{','.join(THREE)}]", HELD) for _ in range(2)]
    results: list[HandedOver] = [each.wait() for each in both]
    [first] = [result for result in results if result.job is not None]
    [second] = [result for result in results if result.job is None]
    assert (len(second.under_way), first.under_way, second.merge) == (6, [], None)
    queue = slurm.run("squeue", "--noheader", "--array", "--format=%i").split()
    assert sorted(queue) == sorted([*(f"{first.job}_{number}" for number in range(6)), str(first.merge)])
    places = [JobPlace.of_cell(Path(cell.folder)) for cell in both[0].cells]
    assert [job and job.job_id for job in map(read_job, places)] == [f"{first.job}_{number}" for number in range(6)]
    [merge] = stand(read_merge_jobs(paths.evals)).values()
    assert (merge.job.job_id, merge.state, merge.reason) == (first.merge, JobState.waiting, "Dependency")
    cancel_run(paths.root, Screen())
    left = ("--noheader", f"--jobs={first.job},{first.merge}", "--states=PD,R,CG")
    slurm.wait_until(lambda: not slurm.run("squeue", *left))


def test_slurm_is_handed_as_many_as_it_takes(
    slurm: Slurm, paths: RunPaths, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The QOS takes one job, so not the one that merges either."""
    both = submission(paths, "tasks=[chartqa]", "evals.job.qos=one", HELD)
    result = both.wait()
    assert (len(result.left), result.merge) == (1, None)
    assert "QOSMaxSubmitJobPerUserLimit" in result.warning
    job = str(result.job)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="SLURM does not answer here, and may have jobs"):
        submission(paths, "tasks=[chartqa]", HELD).wait()
    monkeypatch.undo()
    slurm.run("scancel", job)


def test_a_job_that_nobody_has_noted_down_does_no_harm(
    slurm: Slurm, paths: RunPaths, environment: dict[str, str]
) -> None:
    """Its submitter was killed when SLURM had taken it: the next one submits the cell again."""
    one = ("steps=4", "tasks=[chartqa]", HELD)
    jobs = []
    for _ in range(2):
        handed_over = submission(paths, *one)
        [cell] = handed_over.cells
        result = handed_over.wait()
        assert result.job is not None and result.merge is not None
        jobs += [result.job]
        slurm.run("scancel", result.merge)
        if len(jobs) == 1:
            JobPlace.of_cell(cell.folder).record.unlink()
    slurm.run("scontrol", "release", ",".join(jobs))
    slurm.wait_until(lambda: set(slurm.states(*jobs).values()) == {"COMPLETED"}, 120)
    done = read_cell(cell.folder)
    assert done is not None and done.state is CellState.done
    assert len(read_samples(cell.folder)) == LIMIT
    logs = [path.read_text() for job in jobs for path in paths.evals.glob(f".jobs/{job}_*_log.out")]
    left = [("another process answers it now" in log) or ("1 of them done before" in log) for log in logs]
    assert sorted(left) == [False, True]


def test_a_job_can_hand_over_evaluations_and_nothing_of_it_is_theirs(
    slurm: Slurm, paths: RunPaths, environment: dict[str, str]
) -> None:
    outer = paths.root.parent / "outer.sh"
    asked = arguments(paths, "steps=4", "tasks=[chartqa]", HELD)
    command = " ".join(f'"{argument}"' for argument in (sys.executable, "-m", "vlmkit.eval", *asked))
    outer.write_text(f"#!/bin/sh\n{command}\n")
    output = paths.root.parent / "outer.log"
    options = ("--partition=low", "--ntasks=2", "--mem=700", "--job-name=outer", f"--output={output}")
    job = slurm.run("sbatch", "--parsable", *options, str(outer))
    slurm.wait_until(lambda: is_over(slurm, job))
    assert slurm.states(job) == {job: "COMPLETED"}, output.read_text()
    inner, merge = jobs_of(output.read_text().splitlines())
    told = slurm.run("scontrol", "show", "job", inner)
    assert "Partition=main" in told and "NumTasks=1" in told and f"eval-{paths.root.name}-step_4-chartqa" in told
    slurm.run("scancel", inner, merge)


def test_a_job_that_is_stopped_while_it_answers_goes_on_with_the_next_question(
    slurm: Slurm, paths: RunPaths, environment: dict[str, str]
) -> None:
    """The task sets no limit to an answer: each takes a second or more, so that a signal comes before the last."""
    questions = 6
    one_by_one = ("eval_suite.batch_size=1", f"eval_suite.limit={questions}")
    handed_over = submission(paths, "steps=4", "tasks=[mmstar]", *one_by_one)
    [folder] = [cell.folder for cell in handed_over.cells]
    result = handed_over.wait()
    job, merge = str(result.job), str(result.merge)
    slurm.wait_until(lambda: read_samples(folder), 120)
    slurm.run("scancel", "--signal=USR2", job)
    slurm.wait_until(lambda: slurm.run("squeue", "--noheader", "--format=%T", f"--jobs={job}") == "PENDING")
    report = read_report(JobPlace.of_cell(folder))
    assert report is not None and report.reason == "stopped by SIGUSR2, queued again"
    answers = read_samples(folder)
    assert 0 < len(answers) < questions
    slurm.wait_until(lambda: slurm.states(merge).get(merge) == "COMPLETED", 180)
    done = read_cell(folder)
    assert done is not None and done.state is CellState.done
    assert done.provenance["answered_before"] == len(answers)  # so none was asked again
    assert list(read_samples(folder)) == list(range(questions))
    assert [read_samples(folder)[index]["answer"] for index in answers] == [each["answer"] for each in answers.values()]
    assert merged(paths, 4)["complete"]


def test_what_jobs_find_after_the_run_has_ended_is_logged_by_the_merge(
    slurm: Slurm, environment: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    short = [each for each in QUICK if not each.startswith("trainer.max_training_steps")]
    evals = ("evals=slurm", f"eval_suite.limit={LIMIT}", "cluster.mem_gb=1", "trainer.max_training_steps=4")
    command = [sys.executable, "-m", "vlmkit.train", f"run_dir={run}", *short, *evals]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    _, merge = jobs_of(done.stdout.splitlines())
    slurm.wait_until(lambda: slurm.states(merge).get(merge) == "COMPLETED", 120)
    assert [step for step, _ in evaluations_in_jsonl(run)] == [4]
