"""Jobs are known again by what was written down."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.jobs import (
    MANIFEST,
    Job,
    JobPlace,
    JobReport,
    JobState,
    Launcher,
    SweepJob,
    read_cell_jobs,
    read_job,
    read_manifest,
    read_merge_jobs,
    read_report,
    write_manifest,
)

texts = st.text(st.characters(exclude_categories=["Cs"]))
jobs = st.builds(
    Job, st.sampled_from(Launcher), texts, st.lists(texts), texts, texts, st.floats(0, 1e10, allow_nan=False)
)
finals = st.sampled_from([JobState.waiting, JobState.running, JobState.done, JobState.failed])
reports = st.builds(JobReport, texts, finals, texts, st.none() | texts, st.floats(0, 1e10, allow_nan=False))


def job(folder: Path, launcher: Launcher = Launcher.local, job_id: str = "host:1") -> Job:
    """That works in a folder."""
    return Job(launcher, job_id, ["true"], str(folder), str(folder.parent / "logs" / "1.out"), submitted=1.0)


@pytest.fixture
def place(tmp_path: Path) -> JobPlace:
    return JobPlace.of_folder(tmp_path / "run")


@given(jobs, reports)
def test_records_and_reports_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, written: Job, said: JobReport
) -> None:
    place = JobPlace.of_folder(tmp_path_factory.mktemp("run"))
    written.write(place)
    said.write(place)
    assert (read_job(place), read_report(place)) == (written, said)


@given(st.lists(st.builds(SweepJob, st.lists(texts), jobs), max_size=4))
def test_a_manifest_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, written: list[SweepJob]
) -> None:
    sweep = tmp_path_factory.mktemp("sweep")
    write_manifest(sweep, written)
    assert read_manifest(sweep) == written


def test_what_cannot_be_read_is_no_record(place: JobPlace) -> None:
    assert (read_job(place), read_report(place)) == (None, None)
    whole = job(place.record.parent)
    whole.write(place)
    JobReport(whole.job_id, JobState.done, "", None, 2.0).write(place)
    for path, read in ((place.record, read_job), (place.report, read_report)):
        text = path.read_text()
        newer = json.dumps(json.loads(text) | {"format": 99})
        for broken in (text[:-20], "[]", "", "{}", newer, text.replace(":", ";")):
            path.write_text(broken)
            assert read(place) is None
    (place.record.parent / MANIFEST).write_text('{"jobs": [')
    with pytest.raises(ValueError, match=r"manifest\.json: cannot be read \(JSONDecodeError"):
        read_manifest(place.record.parent)


def test_the_jobs_of_cells_and_of_merges_are_found_again(tmp_path: Path) -> None:
    cells = [tmp_path / "evals" / step / task for step, task in (("step_4", "mme"), ("step_8", "mmstar.limit8"))]
    for cell in cells:
        job(cell).write(JobPlace.of_cell(cell))
    (cells[0].parent / ".other.job.json").write_text("{")
    evals = tmp_path / "evals"
    merges = {JobPlace.of_merge(evals, array): job(evals, job_id=f"host:{array}") for array in ("12", "14")}
    for place, merge in merges.items():
        merge.write(place)
    assert read_cell_jobs(evals) == {JobPlace.of_cell(cell): job(cell) for cell in cells}
    assert read_merge_jobs(evals) == merges


def test_jobs_and_how_they_stand_import_nothing_heavy() -> None:
    code = "import sys, vlmkit.job_standings; print(*{'torch', 'omegaconf', 'hydra', 'yaml'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")
