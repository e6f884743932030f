"""Jobs: how what launchers started is known again. They write it down, ``vlmkit.status`` and ``vlmkit.cancel`` read it.

    FOLDER/job.json             of a job of a sweep: what was handed over, and under which id
    FOLDER/job_report.json      what the job said last of itself; who is killed says nothing more
    FOLDER/.job.lock            held by a pool from when it takes the job until it has ended
    evals/step_N/.TASK.job.json, .TASK.job_report.json     of the job that answers an evaluation cell
    SWEEP/manifest.json         all jobs that were launched into the folder of a sweep

Read next: ``launchers/``.
"""

import json
import os
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Self

from vlmkit.errors import UserError, one_line
from vlmkit.paths import is_locked, whole_file

FORMAT = 1  # goes up when an older file means something else
SECONDS_FOR_AN_ANSWER = 60.0  # of SLURM's commands, which wait while its controller is away
MANIFEST = "manifest.json"
LEAVING = "was asked to end: it saves and leaves"  # reported of a job that runs


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


def read_cell_jobs(evals: Path) -> dict[JobPlace, Job]:
    """What was handed over to answer the evaluation cells of a run, in its folder evals/."""
    name = JobPlace.of_cell(Path("*")).record.name
    folders = [path.with_name(path.name[1:].removesuffix(name[2:])) for path in sorted(evals.glob(f"step_*/{name}"))]
    return {place: job for folder in folders if (job := read_job(place := JobPlace.of_cell(folder)))}


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
    is_ending: bool = False  # it runs, and is about to end

    @property
    def is_under_way(self) -> bool:
        """Whether it waits or runs."""
        return self.state in (JobState.waiting, JobState.running)

    @property
    def since(self) -> float:
        """When it last said something, or was handed over: seconds since 1970."""
        return self.report.time if self.report else self.job.submitted


def stand(places: Iterable[JobPlace]) -> dict[JobPlace, JobStanding]:
    """How the jobs of some places stand; places without a job are left out. SLURM is asked once for all."""
    return stand_of({place: job for place in places if (job := read_job(place))})


def stand_of(jobs: Mapping[JobPlace, Job]) -> dict[JobPlace, JobStanding]:
    """How some jobs stand. SLURM is asked once for all that did not say themselves that they are done."""
    reports = {place: _own_report(place, job) for place, job in jobs.items()}
    is_open = [job for place, job in jobs.items() if not _is_done(reports[place])]
    slurm = slurm_states(job.job_id for job in is_open if job.launcher is Launcher.slurm)
    return {place: _stand(place, job, reports[place], slurm) for place, job in jobs.items()}


def _own_report(place: JobPlace, job: Job) -> JobReport | None:
    report = read_report(place)
    return report if report is not None and report.job_id == job.job_id else None


def _is_done(report: JobReport | None) -> bool:
    """Whether nobody has to be asked: what has done its work may be long forgotten by SLURM."""
    return report is not None and report.state is JobState.done


def _stand(place: JobPlace, job: Job, report: JobReport | None, slurm: Mapping[str, "SlurmState"]) -> JobStanding:
    said, reason = (report.state, report.reason) if report else (JobState.waiting, "")
    is_final = said in (JobState.done, JobState.failed)
    if job.launcher is Launcher.slurm and not _is_done(report):
        now = slurm[job.job_id]
        if now.is_another_than(job):
            now = SlurmState(JobState.unknown, "", "its number is another job's here")
        if now.state is JobState.unknown:
            return JobStanding(job, said if is_final else JobState.unknown, reason if is_final else now.reason, report)
        reason = (reason or now.reason) if now.state is said else (now.reason or now.word)
        return JobStanding(job, now.state, reason, report, is_ending=now.word == "COMPLETING")
    if is_final or is_locked(place.lock):
        return JobStanding(job, said, reason, report, is_ending=reason == LEAVING)
    return JobStanding(job, JobState.ended, "the pool that it was of has ended", report)


# ---- what SLURM says -----------------------------------------------------------------------------------

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
NO_ANSWER = "SLURM does not answer here"
NOT_KNOWN = "SLURM here does not know it, or not any more"
NO_SUCH_JOB = "Invalid job id specified"  # all that squeue says if it was asked for one job alone
ARRAY = re.compile(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]")  # jobs of an array that never began, as sacct has them


@dataclass(frozen=True, slots=True)
class SlurmState:
    """What SLURM says of a job."""

    state: JobState
    word: str  # SLURM's own, as OUT_OF_MEMORY; "" if it says nothing
    reason: str = ""  # why it waits, in SLURM's word; or why nothing is known
    command: str = ""  # what was submitted, if that is known

    def is_another_than(self, job: Job) -> bool:
        """Whether the number of a job is that of another one now, or on this cluster.

        What submitit submits lies beside the log.
        """
        return bool(self.command) and str(Path(job.log).parent) not in self.command


def slurm_states(job_ids: Iterable[str]) -> dict[str, SlurmState]:
    """What SLURM says of jobs: what waits or runs as squeue has it, the rest from the accounting, if there is one.

    A job that neither knows, or that nobody answers for, is unknown.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    jobs = f"--jobs={','.join(sorted({job_id.partition('_')[0] for job_id in wanted}))}"
    queue = _ask("squeue", "--noheader", "--array", "--states=all", jobs, "--format=%i|%T|%r|%o")
    account = _ask("sacct", "--noheader", "--allocations", "--parsable2", jobs, "--format=JobID,State,SubmitLine")
    states = _accounted(account or []) | _queued(queue or [])  # the queue is never late
    unknown = SlurmState(JobState.unknown, "", NO_ANSWER if queue is None else NOT_KNOWN)
    # An array of which no job ever began is one job for the accounting.
    return {job_id: states.get(job_id) or states.get(job_id.partition("_")[0], unknown) for job_id in wanted}


def cancel_slurm(job_ids: Collection[str]) -> None:
    """End jobs: what waits never begins; what runs gets TERM, and KILL after KillWait. Twice does no harm.

    Raises:
        UserError: SLURM did not take it; the message is its own.
    """
    try:
        command = ("scancel", *job_ids)
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_FOR_AN_ANSWER)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"scancel: {one_line(error)}") from error
    if done.returncode != 0:
        raise UserError("; ".join(done.stderr.split("\n")).strip("; ") or f"scancel ended with {done.returncode}")


def _queued(lines: Iterable[str]) -> dict[str, SlurmState]:
    """Of squeue's lines: job id, state, why it waits, what was submitted."""
    rows = (line.split("|", 3) for line in lines if line.count("|") >= 3)
    return {job_id: _slurm_state(word, why, command) for job_id, word, why, command in rows}


def _accounted(lines: Iterable[str]) -> dict[str, SlurmState]:
    """Of sacct's lines: job id or ids, state, how it was submitted. What a job says of itself counts more."""
    rows = [line.split("|", 2) for line in lines if line.count("|") >= 2]
    rows.sort(key=lambda row: "[" not in row[0])
    return {job_id: _slurm_state(word, "", command) for ids, word, command in rows for job_id in expanded_ids(ids)}


def expanded_ids(ids: str) -> list[str]:
    """Each id of jobs that SLURM tells together: 12_[0-2,7%3] are 12_0, 12_1, 12_2 and 12_7."""
    array = ARRAY.fullmatch(ids)
    if array is None:
        return [ids]
    numbers: list[int] = []
    for part in array[2].split(","):
        first, _, rest = part.partition("-")
        last, _, each = rest.partition(":")
        numbers += range(int(first), int(last or first) + 1, int(each or 1))
    return [f"{array[1]}_{number}" for number in numbers]


def _slurm_state(words: str, reason: str, command: str) -> SlurmState:
    """Of the first word of a state: CANCELLED may be followed by whose doing it was."""
    word = (words.split() or [""])[0]
    if word in WAITING:
        return SlurmState(JobState.waiting, word, reason, command)
    if word in RUNNING:
        return SlurmState(JobState.running, word, "", command)
    states = {"COMPLETED": JobState.done, "FAILED": JobState.failed}
    return SlurmState(states.get(word, JobState.ended), word, "", command)


def _ask(*command: str) -> list[str] | None:
    """The lines of a command's output; None if it is not there, fails, or does not answer in time."""
    environment = dict(os.environ) | {"SLURM_BITSTR_LEN": "0"}  # or long arrays are told with dots
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_FOR_AN_ANSWER, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines() if done.returncode == 0 or NO_SUCH_JOB in done.stderr else None
