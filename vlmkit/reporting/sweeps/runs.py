"""What the runs of a sweep left on disk, as far as a report needs it. Nothing is written, nothing is trusted.

A run of which nothing can be told, as it never began or cannot be read, is a hole. Files may be being written.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmkit.config import KIND, ReportConfig, require
from vlmkit.errors import ConfigError, one_line
from vlmkit.evaluation.merge import results_now
from vlmkit.evaluation.merged import Merged
from vlmkit.evaluation.typed import is_finite_number
from vlmkit.jobs import JobPlace, JobState, read_job
from vlmkit.logs import last_line
from vlmkit.paths import RunPaths
from vlmkit.reporting.sweeps.content import Hole, Value
from vlmkit.run_directory import read_config, result_keys
from vlmkit.sweep_directory import JobOfSweep, SweepEntry, find_run, find_sweep, read_entries, read_jobs
from vlmkit.tracking.jsonl import STEP_KEY, read_rows_so_far

Watch = Callable[[Sequence[JobOfSweep]], Iterable[JobOfSweep]]
KEPT_TURNS, KEPT_SAMPLES = "filtered_turns_ratio", "filtered_ratio"
# Of the whole run, which its last line has, and as it was last said before.
STATISTICS = [f"{of}_stats/{name}" for of in ("run", "training") for name in (KEPT_TURNS, KEPT_SAMPLES)]


@dataclass(slots=True, eq=False)
class TrainingRows:
    """What metrics.jsonl says of training."""

    losses: dict[int, float] = field(default_factory=dict)  # step → batch_loss
    val_losses: dict[int, float] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)  # tokens per second of each step
    last: dict[str, float] = field(default_factory=dict)  # statistics, as last said

    def add(self, row: dict[str, Any]) -> None:
        """One more line; what is no number is passed over."""
        step = row.get(STEP_KEY)
        if not isinstance(step, int):
            return
        for key, place in (("batch_loss", self.losses), ("val_loss", self.val_losses)):
            if is_finite_number(row.get(key)):
                place[step] = float(row[key])
        if is_finite_number(row.get("tokens_per_second")):
            self.speeds.append(float(row["tokens_per_second"]))
        self.last |= {key: float(row[key]) for key in STATISTICS if is_finite_number(row.get(key))}

    def kept(self, dropped: str) -> float | None:
        """The share that the filter kept: of the whole run, or as it was last said; None if it was not."""
        share = self.last.get(f"run_stats/{dropped}", self.last.get(f"training_stats/{dropped}"))
        return None if share is None else 1 - share


@dataclass(frozen=True, slots=True, eq=False)
class ReadRun:
    """A run that began."""

    job: JobOfSweep
    config: dict[str, Any]  # what its config.yaml holds
    settings: dict[str, Value]  # flat: all that decides its result, but the seed
    seed: int
    last_step: int  # that it is to train to
    rows: TrainingRows
    results: dict[int, Merged]  # of each step that was evaluated
    starts: list[dict[str, Any]]  # of its provenance.json

    @property
    def name(self) -> str:
        """What it was called with, or its folder."""
        return self.job.entry.name

    @property
    def paths(self) -> RunPaths:
        """Its files."""
        return RunPaths(self.job.entry.folder)

    @property
    def reached(self) -> int:
        """The step that it is at; 0: that cannot be told."""
        return 0 if self.job.run is None else self.job.run.reached

    @property
    def is_done(self) -> bool:
        """Whether it trained to its end."""
        return self.job.run is not None and self.job.run.is_whole


@dataclass(frozen=True, slots=True)
class Found:
    """All runs of a sweep."""

    title: str
    runs: list[ReadRun]  # in the order in which they were started
    of_first_job: list[ReadRun]  # those that differ from the first job in their seed alone; itself, if it has begun
    first_job: str  # its name
    holes: list[Hole]  # those of which nothing is known
    problem: str | None  # with the manifest


def find_runs(config: ReportConfig) -> tuple[str, list[SweepEntry], str | None]:
    """What is to be reported on: a title, the jobs and runs, and what is wrong with the manifest, if something is.

    Raises:
        ConfigError: There is no such sweep or run.
    """
    if config.sweep is not None:
        sweep = find_sweep(config.sweep)
        entries, problem = read_entries(sweep)
        return sweep.name, entries, problem
    folders = [find_run(name, "runs").root for name in config.runs or ()]
    places = [folder.resolve() for folder in folders]
    twice = [str(folder) for number, folder in enumerate(folders) if places[number] in places[:number]]
    require(not twice, "runs", ",".join(twice), "named once")
    names = _short_names(folders)
    entries = [SweepEntry(names[folder], folder, read_job(JobPlace.of_folder(folder))) for folder in folders]
    return f"{len(entries)} runs", entries, None


def read_runs(config: ReportConfig, watch: Watch = iter) -> Found:
    """Read all runs.

    Args:
        config: Which.
        watch: Gets the list of them and gives it on, to show how far this is.

    Raises:
        ConfigError: There is no such sweep or run, or no run has begun.
    """
    title, entries, problem = find_runs(config)
    read = [read_run(job) for job in watch(read_jobs(entries))]
    runs = [each for each in read if isinstance(each, ReadRun)]
    holes = [each for each in read if isinstance(each, Hole)]
    if not runs:
        key = f"sweep={config.sweep}" if config.sweep is not None else "runs"
        why = f"; {holes[0].run}: {holes[0].why}" if holes else ""
        raise ConfigError(f"{key}: no run has begun that can be read{why}")
    first = entries[0].name
    of_first = [run for run in runs if _without_seed(run.name) == _without_seed(first)]
    return Found(title, runs, of_first, first, holes, problem)


def _without_seed(name: str) -> list[str]:
    """The overrides in a job's name, but for its seed."""
    return [override for override in re.split("[ ,]", name) if not override.startswith("seed=")]


def read_run(job: JobOfSweep) -> ReadRun | Hole:
    """One run, or why there is nothing to say of it."""
    paths = RunPaths(job.entry.folder)
    if not paths.config.is_file():
        return Hole(job.entry.name, "training", f"never begun: {job.reason or job.state.value}", command_of(job, []))
    try:
        return _read(job, paths)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error) if isinstance(error, ConfigError) else one_line(error)
        return Hole(job.entry.name, "all of it", f"cannot be read: {why}", "")


def _read(job: JobOfSweep, paths: RunPaths) -> ReadRun:
    config = read_config(paths)
    keys = {key.removesuffix(f".{KIND}"): value for key, value in result_keys(config).items()}  # packing=bfd
    settings = {key: _as_value(value) for key, value in keys.items() if key != "seed"}
    rows = TrainingRows()
    for row in read_rows_so_far(paths.metrics):
        rows.add(row)
    return ReadRun(
        job,
        config,
        settings,
        seed=int(config["seed"]),
        last_step=int(config["trainer"]["max_training_steps"]),
        rows=rows,
        results=results_now(paths),
        starts=_read_starts(paths),
    )


def _read_starts(paths: RunPaths) -> list[dict[str, Any]]:
    """None, if the file is not there or says nothing."""
    try:
        starts = json.loads(paths.provenance.read_text(encoding="utf-8"))["starts"]
        return [start for start in starts if isinstance(start, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


# ---- how far a run is ----------------------------------------------------------------------------------


def describe_state(run: ReadRun) -> str:
    """How far it is, in words."""
    progress = run.job.run
    if progress is None:
        return "of another version: how far it is cannot be told"
    if progress.is_whole:
        return "done"
    place = f"at step {progress.reached:,} of {progress.last_step:,}"
    match run.job.state:
        case JobState.running:
            return f"trains, {place}"
        case JobState.waiting:
            return f"waits, {place}"
        case JobState.failed:
            return f"failed {place}"
        case JobState.done:
            return f"out of data {place}"
        case _:
            return f"stopped {place}"


def training_hole(run: ReadRun) -> Hole | None:
    """What is missing of its training, if something is."""
    if run.is_done:
        return None
    job = run.job
    if job.reason is None:  # it waits, or runs
        return Hole(run.name, "the end of its training", describe_state(run), "")
    said = last_line(Path(job.entry.job.log)) if job.entry.job and job.state is not JobState.failed else ""
    why = f"{describe_state(run)}: {job.reason}" + (f"; its log ends with: {said}" if said else "")
    return Hole(run.name, "the end of its training", why, command_of(job, run.starts))


def command_of(job: JobOfSweep, starts: Sequence[dict[str, Any]]) -> str:
    """What starts a run again, or goes on with it; "" if that is not known, or it waits or runs anyway."""
    if job.reason is None:
        return ""
    return start_command(starts) if job.entry.job is None else shlex.join(job.entry.job.command)


def start_command(starts: Sequence[dict[str, Any]]) -> str:
    """The command of the last of some starts in provenance.json; "" if it is not known."""
    command = starts[-1].get("command") if starts else None
    if not isinstance(command, list) or not command:
        return ""
    return shlex.join(["python", "-m", f"vlmkit.{Path(str(command[0])).stem}", *map(str, command[1:])])


def _as_value(value: Any) -> Value:
    """What can be shown and compared: lists become JSON."""
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)


def _short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """The ends of paths that tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = {folder: str(Path(*folder.parts[-length:])) for folder in folders}
        if len(set(names.values())) == len(folders):
            return names
    return {folder: str(folder) for folder in folders}
