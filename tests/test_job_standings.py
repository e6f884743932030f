"""How a job stands is what it said itself, unless SLURM or the lock of its pool says more."""

from pathlib import Path

import pytest

from tests.conftest import Held, says
from tests.test_jobs import job
from vlmkit.job_standings import stand
from vlmkit.jobs import Job, JobPlace, JobReport, JobState, Launcher
from vlmkit.slurm_states import NOT_KNOWN

SCRIPT = "/sweep/logs/.submission_file_1.sh"


@pytest.fixture
def place(tmp_path: Path) -> JobPlace:
    return JobPlace.of_folder(tmp_path / "run")


def test_a_local_job_is_under_way_only_while_its_pool_holds_it(place: JobPlace) -> None:
    job(place.record.parent).write(place)
    with Held(place.lock):
        assert stand([place])[place].state is JobState.waiting
        JobReport("host:1", JobState.running, "", None, 5.0).write(place)
        found = stand([place])[place]
        assert (found.state, found.since, found.is_under_way) == (JobState.running, 5.0, True)
    found = stand([place])[place]
    assert (found.state, found.reason) == (JobState.ended, "the pool that it was of has ended")


def test_what_a_job_said_stays_when_its_pool_has_ended(place: JobPlace) -> None:
    job(place.record.parent).write(place)
    JobReport("host:1", JobState.failed, "no such file (ended with 1)", None, 5.0).write(place)
    found = stand([place])[place]
    assert (found.state, found.reason) == (JobState.failed, "no such file (ended with 1)")


def test_what_an_earlier_job_reported_does_not_count(place: JobPlace) -> None:
    JobReport("host:1", JobState.done, "", None, 5.0).write(place)
    job(place.record.parent, job_id="host:2").write(place)
    with Held(place.lock):
        found = stand([place])[place]
    assert (found.state, found.report, found.since) == (JobState.waiting, None, 1.0)


def slurm_job(place: JobPlace) -> Job:
    made = Job(Launcher.slurm, "7", ["true"], str(place.record.parent), "/sweep/logs/7_0_log.out", 1.0)
    made.write(place)
    return made


@pytest.mark.parametrize(
    ("said", "queue", "expected"),
    [
        (None, "7|PENDING|Resources|{}", (JobState.waiting, "Resources")),
        ((JobState.waiting, "stopped by SIGUSR2, queued again"), "7|PENDING|BeginTime|{}",
         (JobState.waiting, "stopped by SIGUSR2, queued again")),
        ((JobState.running, ""), "7|RUNNING|None|{}", (JobState.running, "")),
        ((JobState.running, ""), "7|PENDING|BeginTime|{}", (JobState.waiting, "BeginTime")),
        ((JobState.running, ""), "7|NODE_FAIL|None|{}", (JobState.ended, "NODE_FAIL")),
        ((JobState.running, ""), "", (JobState.unknown, NOT_KNOWN)),
        ((JobState.failed, "no data (ended with 1)"), "7|FAILED|None|{}", (JobState.failed, "no data (ended with 1)")),
        ((JobState.failed, "no data (ended with 1)"), "", (JobState.failed, "no data (ended with 1)")),
        ((JobState.running, ""), "7|RUNNING|None|/home/another/job.sh",
         (JobState.unknown, "its number is another job's here")),
    ],
)  # fmt: skip
def test_where_slurm_says_more_it_counts(
    no_slurm: Path, place: JobPlace, said: tuple[JobState, str] | None, queue: str, expected: tuple[JobState, str]
) -> None:
    says(no_slurm, "squeue", queue.format(SCRIPT) + "\n")
    slurm_job(place)
    if said:
        JobReport("7", *said, None, 5.0).write(place)
    found = stand([place])[place]
    assert (found.state, found.reason) == expected


def test_nobody_is_asked_of_a_job_that_is_done(no_slurm: Path, place: JobPlace) -> None:
    says(no_slurm, "squeue", f"7|PENDING|Priority|{SCRIPT}\n")
    slurm_job(place)
    JobReport("7", JobState.done, "", None, 5.0).write(place)
    assert stand([place])[place].state is JobState.done
    assert not (no_slurm / "asked").exists()
