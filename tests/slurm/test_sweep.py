"""Sweeps as arrays of SLURM jobs."""

import signal
from pathlib import Path

import pytest

from tests.conftest import Run, composed
from tests.launchers.commands import COUNTING, PATIENT, start_launch, states
from tests.slurm.conftest import Slurm
from vlmkit.jobs import JobState, read_manifest
from vlmkit.run_directory import RunPaths, claim


def ids(sweep: Path) -> list[str]:
    return [each.job.job_id for each in read_manifest(sweep)]


def make_run(path: Path) -> None:
    """A run directory that ``vlmkit.status``, the cheapest of the commands, can look at."""
    with claim(RunPaths(path), composed("train")):
        pass


def test_a_failed_job_of_six_is_told_and_the_same_command_starts_it_alone(
    vlmkit: Run, slurm: Slurm, tmp_path: Path
) -> None:
    for name in "abcef":
        make_run(tmp_path / name)
    sweep = tmp_path / "runs" / "sweep"
    command = ("status", "-m", "run=a,b,c,d,e,f", "hydra/launcher=slurm")
    done = vlmkit(*command, **slurm.environment)
    assert done.returncode == 1, done.stderr
    assert "6 of 6 jobs started" in done.stdout
    log = read_manifest(sweep)[3].job.log
    assert "job 3 run=d: error: run=d: must be a run directory" in done.stdout
    assert f"    log: {log}\nthe same command starts again what is not done" in done.stdout
    assert "error: run=d: must be a run directory" in Path(log).read_text()
    assert states(sweep) == [JobState.done] * 3 + [JobState.failed] + [JobState.done] * 2
    [array] = {job_id.partition("_")[0] for job_id in ids(sweep)}
    ended = {f"{array}_{number}": "FAILED" if number == 3 else "COMPLETED" for number in range(6)}
    slurm.wait_until(lambda: slurm.states(array) == ended)

    before = ids(sweep)
    make_run(tmp_path / "d")
    again = vlmkit(*command, **slurm.environment)
    assert again.returncode == 0, again.stdout
    assert "1 of 6 jobs started, 5 done before" in again.stdout
    assert [number for number in range(6) if ids(sweep)[number] != before[number]] == [3]


@pytest.fixture
def here(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """The cluster, for who asks how jobs stand in this process."""
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    return slurm


def test_no_more_jobs_run_at_a_time_than_the_launcher_says(here: Slurm, tmp_path: Path) -> None:
    start_launch(tmp_path, PATIENT, PATIENT, launcher="slurm", detach=True).communicate(timeout=60)
    here.wait_until((tmp_path / "seed=0" / "begun").exists)
    assert states(tmp_path) == [JobState.running, JobState.waiting]
    first, second = ids(tmp_path)
    assert here.run("squeue", "--noheader", "--array", f"--jobs={second}", "--format=%r") == "JobArrayTaskLimit"
    for number in range(2):
        (tmp_path / f"seed={number}" / "may_end").touch()
    here.wait_until(lambda: states(tmp_path) == [JobState.done] * 2)
    assert first.partition("_")[0] == second.partition("_")[0]


def test_a_detached_sweep_goes_on_is_left_alone_and_told_how_it_ended(here: Slurm, tmp_path: Path) -> None:
    told, _ = start_launch(tmp_path, PATIENT, PATIENT, launcher="slurm", at_once=2, detach=True).communicate(timeout=60)
    assert "2 of 2 jobs started" in told
    assert f"{tmp_path}/manifest.json" in told
    assert f"python -m vlmkit.cancel sweep={tmp_path}" in told
    here.wait_until(lambda: all((tmp_path / f"seed={number}" / "begun").exists() for number in range(2)))
    waiting = start_launch(tmp_path, PATIENT, PATIENT, launcher="slurm")
    assert waiting.stdout is not None
    assert "0 of 2 jobs started, 2 under way" in waiting.stdout.readline()
    here.run("scancel", ids(tmp_path)[0])
    (tmp_path / "seed=1" / "may_end").touch()
    rest, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert "job 0 seed=0: ended: CANCELLED" in rest
    assert "job 1 seed=1: done" in rest
    assert states(tmp_path) == [JobState.ended, JobState.done]


def test_jobs_go_on_after_ctrl_c(here: Slurm, tmp_path: Path) -> None:
    command = start_launch(tmp_path, PATIENT, launcher="slurm")
    here.wait_until((tmp_path / "seed=0" / "begun").exists)
    here.wait_until(lambda: read_manifest(tmp_path))
    assert command.stdout is not None
    assert "1 of 1 jobs started" in command.stdout.readline()
    command.send_signal(signal.SIGINT)
    told, _ = command.communicate(timeout=30)
    assert command.returncode == 130
    assert "the jobs go on in SLURM" in told
    assert f"python -m vlmkit.status sweep={tmp_path}" in told
    assert states(tmp_path) == [JobState.running]
    (tmp_path / "seed=0" / "may_end").touch()
    here.wait_until(lambda: states(tmp_path) == [JobState.done])


def test_two_launches_at_once_submit_each_job_once(here: Slurm, tmp_path: Path) -> None:
    commands = [start_launch(tmp_path, *[COUNTING] * 3, launcher="slurm", at_once=3) for _ in range(2)]
    for command in commands:
        told, _ = command.communicate(timeout=90)
        assert command.returncode == 0, told
    assert [(tmp_path / f"seed={number}" / "starts").read_text() for number in range(3)] == ["x"] * 3


def test_what_slurm_refuses_is_one_line(vlmkit: Run, slurm: Slurm, tmp_path: Path) -> None:
    arguments = ("train", "-m", "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partition=nowhere")
    done = vlmkit(*arguments, **slurm.environment)
    assert done.returncode == 1
    [told] = done.stderr.splitlines()
    assert told.startswith("error: SLURM did not take vlmkit-sweep: invalid partition specified: nowhere")
    assert not list(tmp_path.glob("**/job.json"))
