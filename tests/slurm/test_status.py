"""Jobs on a real SLURM are seen as they are, and ended."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.slurm.conftest import Slurm
from vlmkit.cancel import cancel_sweep
from vlmkit.config import ClusterConfig, JobConfig
from vlmkit.job_standings import stand
from vlmkit.jobs import Job, JobPlace, JobState, Launcher, SweepJob, write_manifest
from vlmkit.status import show_sweep
from vlmkit.tracking.console import Screen
from vlmkit_launchers.slurm import submit
from vlmkit_launchers.task import Task

SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: None)
print("begun", flush=True)
signal.pause()
time.sleep(2)
print("saved", flush=True)
sys.exit(128 + signal.SIGTERM)
"""
FAILS = "import sys; sys.exit('there are no such data')"
LASTS = "import signal; signal.pause()"


@pytest.fixture
def sweep(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; SLURM's commands speak to the cluster."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "a sweep's folder"


def start(sweep: Path, codes: Sequence[str], parallelism: int | None = None, **options: str | bool) -> list[JobPlace]:
    """Submit pieces of Python as the jobs of a sweep, and write them down as launchers do."""
    folders = [sweep / f"seed={number}" for number in range(len(codes))]
    places = [JobPlace.of_folder(folder) for folder in folders]
    commands = [[sys.executable, "-c", code] for code in codes]
    tasks = [Task(command, place, {}, 2) for command, place in zip(commands, places, strict=True)]
    job = JobConfig(cpus_per_task=1, additional_parameters=dict(options)).on(ClusterConfig())
    taken = submit(tasks, job, sweep / "logs", "vlmkit-status", parallelism)
    rows = []
    for folder, place, command, each in zip(folders, places, commands, taken, strict=True):
        record = Job(Launcher.slurm, each.job_id, command, str(folder), str(each.log), time.time())
        record.write(place)
        rows.append(SweepJob([folder.name], record))
    write_manifest(sweep, rows)
    return places


def are(places: Sequence[JobPlace], *states: JobState) -> Callable[[], bool]:
    """Whether jobs stand so."""

    def look() -> bool:
        found = stand(places)
        return [found[place].state for place in places] == list(states)

    return look


def has_printed(place: JobPlace, text: str) -> Callable[[], bool]:
    log = Path(stand([place])[place].job.log)
    return lambda: log.exists() and text in log.read_text().splitlines()


def end(sweep: Path) -> None:
    cancel_sweep(sweep, Screen())


def test_waiting_running_done_and_failed_jobs_are_told(
    slurm: Slurm, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting, running, done, failed = JobState.waiting, JobState.running, JobState.done, JobState.failed
    places = start(sweep, ["pass", FAILS, LASTS, LASTS], parallelism=1)
    slurm.wait_until(are(places, done, failed, running, waiting))
    show_sweep(sweep, Screen())
    printed = capsys.readouterr().out
    assert "jobs   4: 1 waiting, 1 running, 1 done, 1 failed\n" in printed
    log = stand(places)[places[1]].job.log
    assert f"failed (there are no such data (ended with 1)); its log: {log}\n" in printed
    assert stand(places)[places[3]].reason == "JobArrayTaskLimit"
    end(sweep)
    slurm.wait_until(are(places, done, failed, JobState.ended, JobState.ended))
    assert [stand(places)[place].reason for place in places[2:]] == ["CANCELLED", "CANCELLED"]


def test_a_cancelled_job_saves_and_is_not_queued_again(
    slurm: Slurm, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = start(sweep, [SAVES, LASTS], parallelism=1)
    slurm.wait_until(has_printed(places[0], "begun"))
    end(sweep)
    assert "seed=1: job " in capsys.readouterr().out
    end(sweep)  # while it saves
    slurm.wait_until(are(places, JobState.ended, JobState.ended))
    assert has_printed(places[0], "saved")()
    slurm.wait_until(lambda: set(slurm.states(stand(places)[places[0]].job.job_id).values()) == {"CANCELLED"})
    capsys.readouterr()
    end(sweep)
    assert capsys.readouterr().out == "nothing is to be ended; before: 2 ended\n"


@pytest.mark.parametrize("codes", [["pass"], ["pass"] * 3])
def test_when_the_queue_has_forgotten_accounting_tells(
    slurm: Slurm, sweep: Path, codes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the jobs of an array that never began, which it tells together."""
    places = start(sweep, codes, hold=True)
    end(sweep)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sacct").symlink_to(str(shutil.which("sacct")))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    slurm.wait_until(are(places, *[JobState.ended] * len(codes)))
    assert {standing.reason for standing in stand(places).values()} == {"CANCELLED"}


def test_a_job_that_slurm_runs_under_the_number_of_another_is_left_alone(
    slurm: Slurm, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = start(sweep, [LASTS])
    slurm.wait_until(are(places, JobState.running))
    real = stand(places)[places[0]].job
    other = tmp_path / "other" / "seed=0"
    Job(Launcher.slurm, real.job_id, ["true"], str(other), str(other.parent / "logs" / "1.out"), 1.0).write(
        JobPlace.of_folder(other)
    )
    end(other.parent)
    assert are(places, JobState.running)()
    assert stand([JobPlace.of_folder(other)])[JobPlace.of_folder(other)].reason == "its number is another job's here"
    end(sweep)
