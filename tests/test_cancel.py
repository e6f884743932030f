"""``python -m vlmkit.cancel`` ends what waits or runs, and nothing else."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Held, Run, says
from tests.evaluation import made_up_cells as made
from vlmkit import cancel
from vlmkit.cancel import cancel_run, cancel_sweep
from vlmkit.errors import UserError
from vlmkit.jobs import LAUNCH_LOCK, SUBMIT_LOCK, Job, JobPlace, JobReport, JobState, Launcher, SweepJob, write_manifest
from vlmkit.paths import FLOCK, RunPaths
from vlmkit.slurm_states import NO_ANSWER
from vlmkit.tracking.console import Screen


def job(folder: Path, launcher: Launcher, job_id: str) -> Job:
    """A job that is written down."""
    made_job = Job(launcher, job_id, ["true"], str(folder), str(folder.parent / "logs" / "1.out"), time.time())
    made_job.write(JobPlace.of_folder(folder))
    return made_job


def make_sweep(sweep: Path, launcher: Launcher, *ids: str) -> list[JobPlace]:
    folders = [sweep / f"seed={number}" for number in range(len(ids))]
    rows = [SweepJob([path.name], job(path, launcher, job_id)) for path, job_id in zip(folders, ids, strict=True)]
    write_manifest(sweep, rows)
    return [JobPlace.of_folder(folder) for folder in folders]


def end_sweep(sweep: Path) -> None:
    cancel_sweep(sweep, Screen())


def end_run(folder: Path) -> None:
    cancel_run(folder, Screen())


def gets_sigterm(held: Held) -> bool:
    return held.process.wait(timeout=20) == -signal.SIGTERM


@contextmanager
def held_elsewhere(lock: Path) -> Iterator[None]:
    """A lock that no process holds that can be seen: as one of another machine is shown."""
    with lock.open("a") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        yield


# ---- processes on this machine -------------------------------------------------------------------------


def test_a_pool_gets_one_sigterm_for_all_its_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = make_sweep(tmp_path, Launcher.local, "host:1", "host:1", "host:1")
    JobReport("host:1", JobState.done, "", None, 1.0).write(places[0])
    with Held(places[1].lock, places[2].lock) as pool:
        end_sweep(tmp_path)
        assert gets_sigterm(pool)
    told = [f"seed={number}: process {pool.process.pid} gets SIGTERM" for number in (1, 2)]
    end = ["what runs saves and leaves; before: 1 done", "the same command as before goes on with what is not done"]
    assert capsys.readouterr().out.splitlines() == [*told, *end]
    end_sweep(tmp_path)
    assert capsys.readouterr().out == "nothing is to be ended; before: 1 done, 2 ended\n"


def test_a_process_that_a_file_alone_names_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Held(tmp_path / "lock") as another:
        places = make_sweep(tmp_path, Launcher.local, f"host:{another.process.pid}")
        JobReport(f"host:{another.process.pid}", JobState.running, "", None, 1.0).write(places[0])
        end_sweep(tmp_path)
        assert another.process.poll() is None
    assert capsys.readouterr().out == "nothing is to be ended; before: 1 ended\n"


def test_what_runs_on_another_machine_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [place] = make_sweep(tmp_path, Launcher.local, "node7:1")
    with held_elsewhere(place.lock), pytest.raises(UserError, match="1 may go on: they cannot be ended from here"):
        end_sweep(tmp_path)
    assert "seed=0: its pool cannot be ended from here; call this on node7" in capsys.readouterr().out


def test_a_run_that_was_started_by_hand_gets_sigterm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Held(RunPaths(tmp_path).lock) as training:
        end_run(tmp_path)
        assert gets_sigterm(training)
    end_run(tmp_path)
    assert capsys.readouterr().out.endswith("goes on with what is not done\nnothing is to be ended\n")
    lock = RunPaths(tmp_path).lock
    with held_elsewhere(lock), pytest.raises(UserError, match="1 may go on"):
        end_run(tmp_path)


def test_a_sweep_without_a_launcher_is_ended_by_its_runs(tmp_path: Path) -> None:
    for name in ("seed=0", "seed=1"):
        (tmp_path / name).mkdir()
        RunPaths(tmp_path / name).config.write_text("")
    with Held(RunPaths(tmp_path / "seed=1").lock) as training:
        end_sweep(tmp_path)
        assert gets_sigterm(training)


def test_a_run_of_a_pool_is_ended_without_the_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = make_sweep(tmp_path, Launcher.local, "host:1", "host:1")
    JobReport("host:1", JobState.running, "", None, 1.0).write(places[0])
    folders = [place.record.parent for place in places]
    with Held(places[0].lock, places[1].lock) as pool, Held(RunPaths(folders[0]).lock) as training:
        end_run(folders[0])
        assert gets_sigterm(training)
        with pytest.raises(UserError, match="1 may go on"):
            end_run(folders[1])
        assert pool.process.poll() is None
    assert "run: waits in a pool; end all that this works on: python -m vlmkit.cancel sweep=DIR" in (
        capsys.readouterr().out
    )


# ---- SLURM ---------------------------------------------------------------------------------------------


def queue(sweep: Path, **states: str) -> str:
    """What squeue says of jobs _0, _1, … of a sweep."""
    script = sweep / "logs" / ".submission_file_1.sh"
    return "".join(f"{job_id[1:]}|{word}|None|{script}\n" for job_id, word in states.items())


def test_all_that_waits_or_runs_is_cancelled_with_one_question(
    tmp_path: Path, no_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    ids = [f"7_{number}" for number in range(5)]
    places = make_sweep(sweep, Launcher.slurm, *ids)
    JobReport("7_0", JobState.done, "", None, 1.0).write(places[0])
    words = {"_7_0": "RUNNING", "_7_1": "RUNNING", "_7_2": "PENDING", "_7_3": "COMPLETING", "_7_4": "TIMEOUT"}
    says(no_slurm, "squeue", queue(sweep, **words))
    says(no_slurm, "scancel", "")
    with Held(RunPaths(places[1].record.parent).lock) as training:  # SLURM ends it
        end_sweep(sweep)
        assert training.process.poll() is None
    assert (no_slurm / "asked").read_text().splitlines()[1:] == ["7_1 7_2"]
    assert capsys.readouterr().out.splitlines() == [
        "seed=1: job 7_1 gets SIGTERM",
        "seed=2: job 7_2 does not begin any more",
        "what runs saves and leaves; before: 1 done, 1 ending, 1 ended",
        "the same command as before goes on with what is not done",
    ]


@pytest.fixture
def evaluated(tmp_path: Path) -> RunPaths:
    """A run with jobs for a cell, and behind it the one that merges."""
    paths = RunPaths(tmp_path / "run")
    made.checkpoint(paths, 4)
    hand_over(paths, "7", "8")
    return paths


def hand_over(paths: RunPaths, answers: str, merges: str) -> None:
    """What a submitter writes down when SLURM has taken an evaluation."""
    cell = made.planned(paths, 4, "mmstar")
    places = {answers: JobPlace.of_cell(cell.folder), merges: JobPlace.of_merge(paths.evals, answers)}
    for job_id, place in places.items():
        log = paths.evals / ".jobs" / f"{job_id}.out"
        Job(Launcher.slurm, job_id, ["true"], str(cell.folder), str(log), 1.0).write(place)


def test_the_jobs_of_a_run_s_evaluations_are_ended_with_it(
    evaluated: RunPaths, no_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them: of two arrays one can be answered while the other waits."""
    JobReport("8", JobState.done, "", None, 1.0).write(JobPlace.of_merge(evaluated.evals, "7"))
    hand_over(evaluated, "9", "10")
    words = {"9": "RUNNING", "10": "PENDING"}
    lines = [f"{job_id}|{word}|None|{evaluated.evals}/.jobs/job.sh\n" for job_id, word in words.items()]
    says(no_slurm, "squeue", "".join(lines))
    says(no_slurm, "scancel", "")
    end_run(evaluated.root)
    assert (no_slurm / "asked").read_text().splitlines()[1:] == ["10 9"]  # else 9 would make way for 10
    assert capsys.readouterr().out.splitlines() == [
        "run: merge of evaluations: job 10 does not begin any more",
        "run: evaluation of step_4 mmstar: job 9 gets SIGTERM",
        "what runs saves and leaves; before: 1 done",
        "the same command as before goes on with what is not done",
    ]


class Waiting(Screen):
    """Does something when it is told that the command waits."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__()
        self._then = then

    def say(self, line: str) -> None:
        super().say(line)
        if line.endswith("waiting for somebody who hands over jobs …"):
            self._then()


def test_jobs_that_are_just_being_handed_over_are_ended_too(
    evaluated: RunPaths, no_slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says(no_slurm, "squeue", f"9|PENDING|None|{evaluated.evals}/.jobs/job.sh\n")
    says(no_slurm, "scancel", "")
    with Held(evaluated.evals / SUBMIT_LOCK) as submitter:

        def end_submission() -> None:
            hand_over(evaluated, "9", "10")
            submitter.process.terminate()

        cancel_run(evaluated.root, Waiting(end_submission))
    printed = capsys.readouterr().out
    assert printed.startswith(f"{evaluated.evals}: waiting for somebody who hands over jobs …\n")
    assert "run: evaluation of step_4 mmstar: job 9 does not begin any more\n" in printed

    sweep = tmp_path / "sweep"
    says(no_slurm, "squeue", queue(sweep, _7="PENDING"))
    with Held(sweep / LAUNCH_LOCK) as launch:

        def end_launch() -> None:
            make_sweep(sweep, Launcher.slurm, "7")
            launch.process.terminate()

        cancel_sweep(sweep, Waiting(end_launch))
    printed = capsys.readouterr().out
    assert printed.startswith(f"{sweep}: waiting for somebody who hands over jobs …\n")
    assert "seed=0: job 7 does not begin any more\n" in printed


def test_who_hands_over_jobs_for_too_long_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is known is ended even so."""
    monkeypatch.setattr(cancel, "SECONDS_TO_SETTLE", 0.0)
    [place] = make_sweep(tmp_path, Launcher.local, "host:1")
    with Held(tmp_path / LAUNCH_LOCK), Held(place.lock) as pool:
        with pytest.raises(UserError, match="1 may go on"):
            end_sweep(tmp_path)
        assert gets_sigterm(pool)
    told = f"{tmp_path}: somebody hands over jobs, and takes long; call this again\n"
    assert told in capsys.readouterr().out


def test_a_job_that_is_another_s_now_is_left_alone(
    tmp_path: Path, no_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path / "sweep", Launcher.slurm, "7")
    says(no_slurm, "squeue", queue(tmp_path / "of_another", _7="RUNNING"))
    says(no_slurm, "scancel", "")
    end_sweep(tmp_path / "sweep")
    assert len((no_slurm / "asked").read_text().splitlines()) == 1
    assert capsys.readouterr().out == "nothing is to be ended; before: 1 unknown\n"


def test_what_slurm_does_not_answer_for_may_go_on(
    tmp_path: Path, no_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path / "sweep", Launcher.slurm, "7")
    with pytest.raises(UserError, match="1 may go on"):
        end_sweep(tmp_path / "sweep")
    assert f"seed=0: job 7: {NO_ANSWER}\n" in capsys.readouterr().out
    says(no_slurm, "squeue", queue(tmp_path / "sweep", _7="RUNNING"))
    says(no_slurm, "scancel", "", code=1, errors="scancel: error: Access denied\n")
    with pytest.raises(UserError, match=r"^scancel: error: Access denied$"):
        end_sweep(tmp_path / "sweep")
    assert "gets SIGTERM" not in capsys.readouterr().out


# ---- the command ---------------------------------------------------------------------------------------


def test_the_command(vlmkit: Run, tmp_path: Path) -> None:
    """Also in a folder whose name would mean a sweep to Hydra."""
    places = make_sweep(tmp_path / "a,b=c sweep", Launcher.local, "host:1")
    with Held(places[0].lock) as pool:
        done = vlmkit("cancel", f"sweep={tmp_path}/a,b=c sweep")
        assert gets_sigterm(pool)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"seed=0: process {pool.process.pid} gets SIGTERM\n")
    refused = vlmkit("cancel", "run=nowhere")
    assert (refused.returncode, refused.stderr) == (
        1,
        "error: run=nowhere: must be a run directory, with a config.yaml\n",
    )


def test_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'scipy', 'wandb', 'datasets', 'lmms_eval', 'submitit'}"
    code = f"import sys, vlmkit.cancel; print(*{heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")
