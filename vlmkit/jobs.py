"""Jobs: how what launchers started is known again. They write it down, ``vlmkit.status`` and ``vlmkit.cancel`` read it.

    FOLDER/job.json             of a job of a sweep: what was handed over, and under which id
    FOLDER/job_report.json      what the job said last of itself; who is killed says nothing more
    FOLDER/.job.lock            held by a pool from when it takes the job until it has ended
    evals/step_N/.TASK.job.json, .TASK.job_report.json     of the job that answers an evaluation cell
    evals/.merge_ARRAY.job.json, .merge_ARRAY.job_report.json   of the one that merges what an array of them finds
    SWEEP/manifest.json         all jobs that were launched into the folder of a sweep
    SWEEP/.launch.lock, evals/.submit.lock   held while jobs are looked at, handed over and written down

Read next: ``job_standings.py``, ``launchers/``.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Self

from vlmkit.paths import whole_file

FORMAT = 1  # goes up when an older file means something else
MANIFEST = "manifest.json"
LAUNCH_LOCK, SUBMIT_LOCK = ".launch.lock", ".submit.lock"
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

    @classmethod
    def of_merge(cls, evals: Path, array: str) -> Self:
        """Of one that merges what an array of such jobs finds: several arrays of a run may be under way."""
        return cls.of_cell(evals / f"merge_{array}")


HIDDEN_RECORD = JobPlace.of_cell(Path("*")).record.name  # .*.job.json


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


def read_cell_jobs(evals: Path, step: int | None = None) -> dict[JobPlace, Job]:
    """What was handed over to answer the evaluation cells of a run, in its folder evals/: of one step, or of all."""
    return _read_hidden(sorted(evals.glob(f"step_{'*' if step is None else step}/{HIDDEN_RECORD}")))


def read_merge_jobs(evals: Path) -> dict[JobPlace, Job]:
    """What was handed over to merge what these find."""
    return _read_hidden(sorted(evals.glob(HIDDEN_RECORD)))


def _read_hidden(records: Iterable[Path]) -> dict[JobPlace, Job]:
    names = [path.with_name(path.name[1:].removesuffix(HIDDEN_RECORD[2:])) for path in records]
    return {place: job for name in names if (job := read_job(place := JobPlace.of_cell(name)))}


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
