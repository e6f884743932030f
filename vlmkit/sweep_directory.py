"""What lies in the folder of a sweep: the jobs of its manifest, and runs that were started in another way."""

import json
import os
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from vlmkit.config import require
from vlmkit.errors import UserError
from vlmkit.evaluation.schedule import Schedule
from vlmkit.evaluation.standing import describe_job
from vlmkit.job_standings import JobStanding, stand_of
from vlmkit.jobs import MANIFEST, Job, JobPlace, JobState, read_job, read_manifest
from vlmkit.paths import RunPaths, is_locked
from vlmkit.run_directory import read_config
from vlmkit.tracking.console import format_seconds
from vlmkit.tracking.jsonl import read_last_step

SCHEDULE = ("evals", "eval_suite", "trainer")  # the groups that say what is evaluated when
DEEPEST = 4  # folders between that of the sweep and those of its jobs: a value with a slash makes one


@dataclass(frozen=True, slots=True)
class SweepEntry:
    """A job of a sweep, or a run of it."""

    name: str  # what it was called with and not all others, too; its folder's name if that is nothing
    folder: Path  # where it lies now
    job: Job | None  # None if no launcher handed it over, or that cannot be read

    @property
    def place(self) -> JobPlace:
        """The files about its job."""
        return JobPlace.of_folder(self.folder)


def find_run(name: str, key: str = "run") -> RunPaths:
    """The run directory that a key names, or one in which a job is to begin a run.

    Raises:
        ConfigError: It is none.
    """
    paths = RunPaths(_absolute(name))
    require(_is_of_a_job(paths.root), key, name, "a run directory, with a config.yaml")
    return paths


def find_sweep(name: str) -> Path:
    """The folder that ``sweep`` names.

    Raises:
        ConfigError: There is nothing of a sweep in it.
    """
    sweep = _absolute(name)
    is_one = (sweep / MANIFEST).exists() or (sweep.is_dir() and any(_folders(sweep, DEEPEST)))
    require(is_one, "sweep", name, f"the folder of a sweep, with a {MANIFEST} or with run directories")
    return sweep


def _absolute(name: str) -> Path:
    """Without ~ and .. in it, as a shell reads it: links stay as they are named."""
    return Path(os.path.normpath(Path(name).expanduser().absolute()))


def read_entries(sweep: Path) -> tuple[list[SweepEntry], str | None]:
    """All that is in the folder of a sweep: the jobs in the order of the manifest, then what it does not name.

    Returns:
        The entries, and what is wrong with the manifest, if something is.
    """
    problem, manifest = None, []
    try:
        manifest = read_manifest(sweep)
    except ValueError as error:
        problem = str(error)
    shared = set.intersection(*(set(each.overrides) for each in manifest)) if manifest else set()
    entries = []
    for each in manifest:
        folder = _where_now(sweep, Path(each.job.folder))
        job = read_job(JobPlace.of_folder(folder)) or each.job
        own = [override for override in each.overrides if override not in shared]
        entries.append(SweepEntry(" ".join(own) or folder.name, folder, job))
    others = _others(sweep, {entry.folder.resolve() for entry in entries})
    entries += [SweepEntry(str(path.relative_to(sweep)), path, read_job(JobPlace.of_folder(path))) for path in others]
    return entries, problem


def _others(sweep: Path, known: Set[Path]) -> list[Path]:
    """The folders of a sweep that are not known yet, in order: each once, by its own name if links lead to it, too."""
    root = sweep.resolve()
    places = {path: path.resolve() for path in sorted(_folders(sweep, DEEPEST))}
    found: dict[Path, Path] = {}
    for path in sorted(places, key=lambda path: places[path] != root / path.relative_to(sweep)):  # links last
        found.setdefault(places[path], path)
    return sorted(found[place] for place in found.keys() - known)


def _where_now(sweep: Path, folder: Path) -> Path:
    """The folder of a job, in a sweep that may have been moved since."""
    if folder.is_relative_to(sweep):
        return folder
    inside = (sweep.joinpath(*folder.parts[-length:]) for length in range(1, DEEPEST + 1))
    return next((path for path in inside if path.is_dir()), folder)


def _folders(parent: Path, deepest: int) -> Iterator[Path]:
    """The folders below one that hold a run or a job; not those inside these."""
    with os.scandir(parent) as found:
        inside = [Path(each.path) for each in found if each.is_dir() and not each.name.startswith(".")]
    for folder in inside:
        if _is_of_a_job(folder):
            yield folder
        elif deepest > 1:
            yield from _folders(folder, deepest - 1)


def _is_of_a_job(folder: Path) -> bool:
    return RunPaths(folder).config.is_file() or JobPlace.of_folder(folder).record.is_file()


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run of a sweep is, as its files say: little is read, as there may be hundreds."""

    reached: int  # step
    last_step: int
    is_training: bool
    changed: float | None  # when its last line came, seconds since 1970
    evaluations_due: int
    evaluations_done: int

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Of the run in a folder; None if there is none, or its config cannot be read."""
        paths = RunPaths(folder)
        try:
            config = read_config(paths)
            schedule = _schedule(json.dumps({name: config[name] for name in SCHEDULE if name in config}))
        except (UserError, KeyError, TypeError):
            return None
        reached = max([read_last_step(paths.metrics), *paths.all_checkpoints])
        due = {step: schedule.tasks_at(step) for step in schedule.due_steps(reached)}
        left = sum(len(schedule.tasks_left(paths, step)) for step in due)
        total = sum(map(len, due.values()))
        return cls(
            reached,
            schedule.last_step,
            is_locked(paths.lock),
            _last_written(paths.metrics),
            evaluations_due=total,
            evaluations_done=total - left,
        )

    @property
    def is_whole(self) -> bool:
        """Whether it has trained to its end."""
        return self.reached >= self.last_step


@cache  # runs of a sweep have few, and to check one takes as long as to read all else of a run
def _schedule(said: str) -> Schedule:
    return Schedule.from_plain(json.loads(said))


def _last_written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class JobOfSweep:
    """A job of a sweep as it is now."""

    entry: SweepEntry
    standing: JobStanding | None  # None: no launcher has handed it over, as far as is known
    run: RunProgress | None  # None: it is no run, or has not begun

    @property
    def state(self) -> JobState:
        """What SLURM, the job and the run's files say, whichever knows more."""
        if self.run and self.run.is_training:
            return JobState.running
        if self.standing and self.standing.state is not JobState.unknown:
            return self.standing.state
        if self.run and self.run.is_whole:
            return JobState.done
        return JobState.unknown if self.standing else JobState.ended

    @property
    def training(self) -> str:
        """How far the run is."""
        return f"step {self.run.reached:,} of {self.run.last_step:,}" if self.run else ""

    @property
    def evaluations(self) -> str:
        """How many of those that are due by now have a result."""
        if self.run is None or self.run.evaluations_due == 0:
            return ""
        return f"{self.run.evaluations_done} of {self.run.evaluations_due}"

    @property
    def has_holes(self) -> bool:
        """Whether evaluations that are due have no result."""
        return self.run is not None and self.run.evaluations_done < self.run.evaluations_due

    @property
    def since(self) -> str:
        """How long it is as it is, and when its last line came if it runs."""
        line = _age(self.run.changed) if self.run and self.run.changed else None
        if self.standing is None or self.state is not self.standing.state:
            return "" if line is None else f"last line {line} ago"
        age = _age(self.standing.since)
        if self.state is JobState.waiting:
            return f"waits for {age}"
        if self.state is JobState.running:
            return f"runs for {age}" + ("" if line is None else f", last line {line} ago")
        return f"{age} ago" if self.standing.report and self.state is not JobState.ended else ""

    @property
    def reason(self) -> str | None:
        """Why it is neither done nor under way; None if it is."""
        if self.state not in (JobState.failed, JobState.ended, JobState.unknown):
            return None
        if self.standing is None:
            return "no process works on it"
        return describe_job(self.standing)


def read_jobs(entries: Sequence[SweepEntry]) -> list[JobOfSweep]:
    """How the jobs and runs of a sweep are now. SLURM is asked once for all."""
    standings = stand_of({entry.place: entry.job for entry in entries if entry.job})
    return [JobOfSweep(each, standings.get(each.place), RunProgress.read(each.folder)) for each in entries]


def _age(time_of: float) -> str:
    return format_seconds(max(time.time() - time_of, 0))
