"""What a job does around its command, where no SLURM is needed; ``tests/slurm/`` has the rest."""

import sys
from pathlib import Path

import pytest

from vlmkit.jobs import JobPlace, JobState, read_report
from vlmkit_launchers.task import Task, rendezvous


@pytest.fixture(autouse=True)
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")


def test_a_job_reports_and_gives_its_command_the_variables_of_its_config(tmp_path: Path) -> None:
    place = JobPlace.of_folder(tmp_path)
    wants = "import os, sys; sys.exit(os.environ['OWN'] != 'a b')"
    Task([sys.executable, "-c", wants], place, {"OWN": "a b"}, 0, "digest")()
    report = read_report(place)
    assert report is not None
    assert (report.job_id, report.state, report.reason, report.config) == ("12", JobState.done, "", "digest")


def test_a_report_that_cannot_be_written_does_not_stop_the_work(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    Task(["echo", "worked"], JobPlace.of_folder(tmp_path / "file"), {}, 0)()
    told = capfd.readouterr().out
    assert "\nworked\n" in told
    assert "warning: done, but that cannot be written down: [Errno " in told


def test_one_process_meets_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert rendezvous() == {}
