"""Jobs: how what launchers started is known again. They write it down, ``vlmkit.status`` and ``vlmkit.cancel`` read it.

    FOLDER/job.json             of a run of a sweep: what was handed over, and under which id
    FOLDER/job_end.json         how it ended, written by the job itself: who was killed has written nothing
    evals/step_N/.TASK.job.json, .TASK.job_end.json    the same of an evaluation cell
    SWEEP/manifest.json         all jobs that were launched into a sweep's folder

Read next: ``launchers/``.
"""

import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Self

from vlmkit.paths import whole_file

FORMAT = 1  # goes up when an older job.json means something else
SECONDS_FOR_AN_ANSWER = 60.0  # of SLURM's commands, which wait while its controller is away


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
    ended = "ended"  # something ended it: a person, the time limit, the node
    unknown = "unknown"  # SLURM does not know it any more, or does not answer


@dataclass(frozen=True, slots=True)
class JobPlace:
    """The two files about a job: beside what it makes."""

    record: Path
    end: Path

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Of a job that has a folder, which nobody puts aside."""
        return cls(folder / "job.json", folder / "job_end.json")

    @classmethod
    def of_cell(cls, folder: Path) -> Self:
        """Of one that answers an evaluation cell: beside its folder."""
        return cls(folder.with_name(f".{folder.name}.job.json"), folder.with_name(f".{folder.name}.job_end.json"))


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
        """Write it down; how an earlier one ended is no news any more."""
        place.end.unlink(missing_ok=True)
        write_json(place.record, asdict(self) | {"launcher": self.launcher.value, "format": FORMAT})


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended, as it says itself."""

    job_id: str
    state: JobState  # done, failed, or waiting if it was queued again
    reason: str  # in one line
    config: str | None  # digest of the config that it was started with
    ended: float  # seconds since 1970

    def write(self, place: JobPlace) -> None:
        """Write it down."""
        write_json(place.end, asdict(self) | {"state": self.state.value, "format": FORMAT})


def read_job(place: JobPlace) -> Job | None:
    """What was handed over; None if nothing was, or it cannot be read."""
    said = read_json(place.record)
    try:
        return Job(**said | {"launcher": Launcher(said["launcher"])}) if said else None
    except (KeyError, TypeError, ValueError):
        return None


def read_end(place: JobPlace) -> JobEnd | None:
    """How the job of a place ended; None if it has not, or nothing could be written."""
    said = read_json(place.end)
    try:
        return JobEnd(**said | {"state": JobState(said["state"])}) if said else None
    except (KeyError, TypeError, ValueError):
        return None


def write_json(path: Path, said: dict[str, Any]) -> None:
    """Write a small file whole."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """An object of this version's format, without the format; None if there is none."""
    try:
        said = json.loads(path.read_text())
        return said if said.pop("format") == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


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
