"""Jobs are known again by what was written down; what SLURM says of them is read as SLURM writes it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Held, says
from vlmkit.errors import UserError
from vlmkit.jobs import (
    MANIFEST,
    NO_ANSWER,
    NOT_KNOWN,
    Job,
    JobPlace,
    JobReport,
    JobState,
    Launcher,
    SlurmState,
    SweepJob,
    cancel_slurm,
    expanded_ids,
    read_cell_jobs,
    read_job,
    read_manifest,
    read_report,
    slurm_states,
    stand,
    write_manifest,
)
from vlmkit.paths import held_lock, lock_holder

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


def test_the_jobs_of_cells_lie_beside_them(tmp_path: Path) -> None:
    cells = [tmp_path / "evals" / step / task for step, task in (("step_4", "mme"), ("step_8", "mmstar.limit8"))]
    for cell in cells:
        job(cell).write(JobPlace.of_cell(cell))
    (cells[0].parent / ".other.job.json").write_text("{")
    assert read_cell_jobs(tmp_path / "evals") == {JobPlace.of_cell(cell): job(cell) for cell in cells}


# ---- local pools ---------------------------------------------------------------------------------------


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


def test_the_holder_of_a_lock_is_known_by_what_it_has_open(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert lock_holder(lock) is None
    held = Held(lock)
    with held:
        assert lock_holder(lock) == held.process.pid
    assert lock_holder(lock) is None
    with held_lock(lock, wait=False):
        assert lock_holder(lock) is None  # one's own


# ---- SLURM ---------------------------------------------------------------------------------------------

SCRIPT = "/sweep/logs/.submission_file_1.sh"


@pytest.mark.parametrize(
    ("queue", "account", "expected"),
    [
        ("7_1|PENDING|Priority|x", "", SlurmState(JobState.waiting, "PENDING", "Priority", "x")),
        ("7_1|RUNNING|None|x", "7_1|PENDING|sbatch x", SlurmState(JobState.running, "RUNNING", "", "x")),
        ("7_1|COMPLETING|None|x", "", SlurmState(JobState.running, "COMPLETING", "", "x")),
        ("", "7_1|COMPLETED|sbatch x", SlurmState(JobState.done, "COMPLETED", "", "sbatch x")),
        ("", "7_1|FAILED|sbatch x|y", SlurmState(JobState.failed, "FAILED", "", "sbatch x|y")),
        ("", "7_1|OUT_OF_MEMORY|x", SlurmState(JobState.ended, "OUT_OF_MEMORY", "", "x")),
        ("", "7_1|CANCELLED by 1000|x", SlurmState(JobState.ended, "CANCELLED", "", "x")),
        ("", "7_[0-4%2]|CANCELLED by 0|x", SlurmState(JobState.ended, "CANCELLED", "", "x")),
        ("", "7|CANCELLED by 0|x", SlurmState(JobState.ended, "CANCELLED", "", "x")),
        ("", "7_1|TIMEOUT|x\n7_[0-4]|PENDING|x", SlurmState(JobState.ended, "TIMEOUT", "", "x")),
        ("7_2|RUNNING|None|x", "7_11|FAILED|x", SlurmState(JobState.unknown, "", NOT_KNOWN)),
    ],
)  # fmt: skip
def test_what_slurm_says(no_slurm: Path, queue: str, account: str, expected: SlurmState) -> None:
    says(no_slurm, "squeue", f"{queue}\n")
    says(no_slurm, "sacct", f"{account}\n")
    assert slurm_states(["7_1"]) == {"7_1": expected}


def test_slurm_is_asked_once_for_all(no_slurm: Path) -> None:
    says(no_slurm, "squeue", "")
    assert set(slurm_states(["7_1", "7_2", "9", "7_1"])) == {"7_1", "7_2", "9"}
    [asked] = (no_slurm / "asked").read_text().splitlines()
    assert "--jobs=7,9 " in asked
    assert slurm_states([]) == {}


def test_no_answer_is_not_that_slurm_does_not_know(no_slurm: Path) -> None:
    assert slurm_states(["7"])["7"].reason == NO_ANSWER
    says(no_slurm, "squeue", "", code=1, errors="slurm_load_jobs error: Unable to contact slurm controller")
    assert slurm_states(["7"])["7"].reason == NO_ANSWER
    says(no_slurm, "squeue", "", code=1, errors="slurm_load_jobs error: Invalid job id specified")
    assert slurm_states(["7"])["7"].reason == NOT_KNOWN


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.integers(1, 3)), min_size=1), st.booleans())
def test_ids_that_slurm_tells_together_are_expanded(parts: list[tuple[int, int, int]], limited: bool) -> None:
    told = ",".join(f"{first}-{first + more}:{each}" if more else str(first) for first, more, each in parts)
    numbers = [number for first, more, each in parts for number in range(first, first + more + 1, each)]
    assert expanded_ids(f"12_[{told}{'%4' if limited else ''}]") == [f"12_{number}" for number in numbers]


def test_other_ids_are_left_as_they_are() -> None:
    assert [expanded_ids(each) for each in ("12", "12_3", "12_[1,...]", "12.batch")] == [
        ["12"], ["12_3"], ["12_[1,...]"], ["12.batch"],
    ]  # fmt: skip


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


def test_jobs_are_cancelled_together_and_slurm_s_words_are_told(no_slurm: Path) -> None:
    says(no_slurm, "scancel", "")
    cancel_slurm(["7_1", "9"])
    assert (no_slurm / "asked").read_text() == "7_1 9\n"
    says(no_slurm, "scancel", "", code=1, errors="scancel: error: Access denied\n")
    with pytest.raises(UserError, match=r"^scancel: error: Access denied$"):
        cancel_slurm(["7"])
    (no_slurm / "scancel").unlink()
    with pytest.raises(UserError, match=r"^scancel: FileNotFoundError"):
        cancel_slurm(["7"])


def test_jobs_import_nothing_heavy() -> None:
    code = "import sys, vlmkit.jobs; print(*{'torch', 'omegaconf', 'hydra', 'yaml'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")
