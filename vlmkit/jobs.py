"""Jobs: how what launchers started is known again. They write it down, ``vlmkit.status`` and ``vlmkit.cancel`` read it.

    FOLDER/job.json             of a job of a sweep: what was handed over, and under which id
    FOLDER/job_report.json      what the job said last of itself; who is killed says nothing more
    FOLDER/.job.lock            held by a pool from when it takes the job until it has ended
    evals/step_N/.TASK.job.json, .TASK.job_report.json     of the job that answers an evaluation cell
    SWEEP/manifest.json         all jobs that were launched into the folder of a sweep

Read next: ``launchers/``.
"""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Self

from vlmkit.paths import is_locked, whole_file

FORMAT = 1  # goes up when an older file means something else
SECONDS_FOR_AN_ANSWER = 60.0  # of SLURM's commands, which wait while its controller is away
MANIFEST = "manifest.json"


class Launcher(Enum):
    """Who starts a job."""

    slurm = "slurm"
    local = "local"  # a pool of processes on one machine


class JobState(Enum):
    """How far a job is."""

    waiting = "waiting"
    running = "running"
    done = "done"
    failed = "failed"  # it said so itself
    ended = "ended"  # something else ended it: a person, the time limit, the node, the end of its pool
    unknown = "unknown"  # SLURM does not know it any more, or does not answer


@dataclass(frozen=True, slots=True)
class JobPlace:
    """The files about a job: beside what it makes."""

    record: Path
    report: Path
    lock: Path

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Of a job that has a folder, which nobody puts aside."""
        return cls(folder / "job.json", folder / "job_report.json", folder / ".job.lock")

    @classmethod
    def of_cell(cls, folder: Path) -> Self:
        """Of one that answers an evaluation cell: beside its folder."""
        return cls(
            *(folder.with_name(f".{folder.name}.{name}") for name in ("job.json", "job_report.json", "job.lock"))
        )


@dataclass(frozen=True, slots=True)
class Job:
    """A job that was handed over."""

    launcher: Launcher
    job_id: str  # SLURM's, as 12 or 12_3 in an array; of a pool its host and process id, as host:123
    command: list[str]
    folder: str  # what it works in: a run directory, or a cell
    log: str
    submitted: float  # seconds since 1970

    def write(self, place: JobPlace) -> None:
        """Write it down; what an earlier one reported counts no more, as that has another id."""
        _write_json(place.record, _plain(self))


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a job said last of itself."""

    job_id: str
    state: JobState  # not ended, not unknown
    reason: str  # in one line
    config: str | None  # digest of the config that it was started with
    time: float  # seconds since 1970

    def write(self, place: JobPlace) -> None:
        """Write it down."""
        _write_json(place.report, _plain(self))


@dataclass(frozen=True, slots=True)
class SweepJob:
    """A job of a sweep, as its manifest has it."""

    overrides: list[str]
    job: Job


def read_job(place: JobPlace) -> Job | None:
    """What was handed over; None if nothing was, or it cannot be read."""
    try:
        return _job(_read_json(place.record))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def read_report(place: JobPlace) -> JobReport | None:
    """What the job of a place said last; None if it has said nothing, or it cannot be read."""
    try:
        said = _read_json(place.report)
        return JobReport(**said | {"state": JobState(said["state"])})
    except (OSError, KeyError, TypeError, ValueError):
        return None


def write_manifest(sweep: Path, jobs: Sequence[SweepJob]) -> None:
    """Write down all jobs of a sweep's folder."""
    rows = [{"overrides": each.overrides, **_plain(each.job)} for each in jobs]
    _write_json(sweep / MANIFEST, {"jobs": rows})


def read_manifest(sweep: Path) -> list[SweepJob]:
    """All jobs that were launched into a sweep's folder, in order; none if there is no manifest.

    Raises:
        ValueError: There is one, and it cannot be read.
    """
    try:
        rows = _read_json(sweep / MANIFEST)["jobs"]
        return [SweepJob(row.pop("overrides"), _job(row)) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{sweep / MANIFEST}: cannot be read ({type(error).__name__}: {error})") from error


def _plain(record: Job | JobReport) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in asdict(record).items()}


def _job(said: Mapping[str, Any]) -> Job:
    return Job(**{**said, "launcher": Launcher(said["launcher"])})


def _write_json(path: Path, said: dict[str, Any]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(said | {"format": FORMAT}, indent=2, ensure_ascii=False) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    """Raises KeyError if it is of another format."""
    said = json.loads(path.read_text())
    if said.pop("format") != FORMAT:
        raise KeyError("format")
    return said


# ---- how jobs stand ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobStanding:
    """A job, and how far it is."""

    job: Job
    state: JobState
    reason: str  # why, in one line, if there is more to say; SLURM's own word for what it ended
    report: JobReport | None  # of this job, not of an earlier one


def stand(places: Iterable[JobPlace]) -> dict[JobPlace, JobStanding]:
    """How the jobs of some places stand; places without a job are left out. SLURM is asked once for all."""
    jobs = {place: job for place in places if (job := read_job(place))}
    slurm = slurm_states(job.job_id for job in jobs.values() if job.launcher is Launcher.slurm)
    return {place: _stand(place, job, slurm) for place, job in jobs.items()}


def _stand(place: JobPlace, job: Job, slurm: Mapping[str, "SlurmState"]) -> JobStanding:
    report = read_report(place)
    if report is not None and report.job_id != job.job_id:
        report = None
    said, reason = (report.state, report.reason) if report else (JobState.waiting, "")
    is_final = said in (JobState.done, JobState.failed)
    if job.launcher is Launcher.slurm:
        now = slurm[job.job_id]
        if now.state is JobState.unknown:
            return JobStanding(job, said if is_final else JobState.unknown, reason, report)
        return JobStanding(job, now.state, reason if now.state is said else now.word, report)
    if is_final or is_locked(place.lock):
        return JobStanding(job, said, reason, report)
    return JobStanding(job, JobState.ended, "the pool that it was of has ended", report)


# ---- what SLURM says -----------------------------------------------------------------------------------

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")


@dataclass(frozen=True, slots=True)
class SlurmState:
    """What SLURM says of a job."""

    state: JobState
    word: str  # SLURM's own, as OUT_OF_MEMORY; "" if it says nothing


UNKNOWN = SlurmState(JobState.unknown, "")


def slurm_states(job_ids: Iterable[str]) -> dict[str, SlurmState]:
    """What SLURM says of jobs: what waits or runs as squeue has it, the rest from the accounting, if there is one.

    A job that neither knows, or that nobody answers for, is unknown.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    whole = ",".join(sorted({job_id.partition("_")[0] for job_id in wanted}))
    plain = ("--noheader", "--array", f"--jobs={whole}")
    queue = _ask("squeue", *plain, "--states=all", "--format=%i|%T")
    account = _ask("sacct", *plain, "--allocations", "--parsable2", "--format=JobID,State")
    words = {**_words(account), **_words(queue)}  # the queue is never late
    return {job_id: _slurm_state(words.get(job_id, "")) for job_id in wanted}


def _words(lines: Iterable[str]) -> dict[str, str]:
    """Job id → the first word of its state: CANCELLED may be followed by whose doing it was."""
    pairs = (line.split("|") for line in lines if "|" in line)
    return {job_id: (state.split() or [""])[0] for job_id, state, *_ in pairs}


def _slurm_state(word: str) -> SlurmState:
    if not word:
        return UNKNOWN
    if word in WAITING:
        return SlurmState(JobState.waiting, word)
    if word in RUNNING:
        return SlurmState(JobState.running, word)
    states = {"COMPLETED": JobState.done, "FAILED": JobState.failed}
    return SlurmState(states.get(word, JobState.ended), word)


def _ask(*command: str) -> list[str]:
    """The lines of a command's output; none if it is not there, fails, or does not answer in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_FOR_AN_ANSWER, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
