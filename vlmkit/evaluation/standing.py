"""How the evaluations of a run stand: what is there, what is missing, why, what helps.

It is read from the run's files; SLURM is asked about jobs that these name.
"""

import math
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from vlmkit.config import EvalSuiteConfig, as_override
from vlmkit.evaluation.cells import (
    CELL_FILE,
    Cell,
    CellState,
    cell_name,
    current_fingerprint,
    read_cell,
    read_cells,
)
from vlmkit.evaluation.delivery import merge_command, metric_key
from vlmkit.evaluation.merged import STEP_FILE, Merged, merged_path, read_merged
from vlmkit.evaluation.schedule import Schedule
from vlmkit.job_standings import JobStanding, stand_of
from vlmkit.jobs import Job, JobPlace, JobState, Launcher, read_cell_jobs, read_job, read_merge_jobs
from vlmkit.paths import RunPaths, is_locked
from vlmkit.tracking.console import format_seconds
from vlmkit.tracking.jsonl import read_last_step, read_results


class State(Enum):
    """How one task of one checkpoint stands."""

    done = "done"
    running = "running"
    planned = "planned"
    interrupted = "interrupted"
    failed = "failed"
    not_planned = "not planned"
    gone = "checkpoint gone"


@dataclass(frozen=True, slots=True)
class Standing:
    """One task of one checkpoint."""

    step: int
    task: str  # with .limitN behind it, if it is of the first samples only
    state: State
    told: str  # the score, how far it is, or why it has none
    logged: bool = False  # in metrics.jsonl, from where wandb gets the same
    reason: str | None = None  # why there is no result yet where one looks for it
    command: str | None = None  # what helps


class RunStanding:
    """A run, its training and its evaluations, as they are on disk now."""

    def __init__(
        self, paths: RunPaths, config: dict[str, Any], jobs: Mapping[JobPlace, JobStanding] | None = None
    ) -> None:
        """Read.

        Args:
            paths: The run.
            config: What its config.yaml says.
            jobs: How its jobs stand, if that was asked already; those of the steps that are looked at do.
        """
        self.paths = paths
        self.schedule = Schedule.from_plain(config)
        self.stats_interval: int = config["trainer"]["stats_log_interval"]
        self.is_training = is_locked(paths.lock)
        self.reached = max([read_last_step(paths.metrics), *paths.all_checkpoints])
        self._logged = read_results(paths.metrics)
        self._jobs = stand_of(read_jobs_of_run(paths)) if jobs is None else jobs
        self.job = self._jobs.get(JobPlace.of_folder(paths.root))  # that trains
        merges = [job for place, job in self._jobs.items() if place.record.parent == paths.evals]
        self.merges = sorted(merges, key=lambda merge: merge.job.submitted)

    @property
    def next_look(self) -> int:
        """The step at which the loop logs what has come in by then."""
        return min((self.reached // each + 1) * each for each in (self.stats_interval, self.schedule.interval))

    def standings(self) -> list[Standing]:
        """All that was evaluated, ordered, or is due, by step."""
        steps = {*self.paths.evaluated_steps, *self.schedule.due_steps(self.reached)}
        return [standing for step in sorted(steps) for standing in self.standings_at(step)]

    def standings_at(self, step: int) -> Iterator[Standing]:
        """The same of one step: no cell of another one is read."""
        cells = read_cells(self.paths.cells(step))
        merged = read_merged(merged_path(self.paths.cells(step)))
        for cell in cells:
            yield self._of_cell(step, cell, merged)
        planned = {cell.folder.name for cell in cells}
        for task in self.schedule.tasks_at(step):
            name = cell_name(task, self.schedule.suite.limit)
            if name not in planned:
                yield self._unplanned(step, name, task)

    def foreign_names(self) -> list[Path]:
        """What lies among the results and is none."""
        found = [path for path in self.paths.evals.glob("*") if not _is_result_name(path)]
        for step in self.paths.evaluated_steps:
            found += [path for path in self.paths.cells(step).glob("*") if path.is_dir() and not _is_cell(path)]
        return sorted(path for path in found if not path.name.startswith("."))

    def _of_cell(self, step: int, cell: Cell, merged: Merged | None) -> Standing:
        name = cell.folder.name
        if cell.state is CellState.done:
            return self._of_done(step, cell, merged)
        if cell.is_held:
            age = format_seconds(max(time.time() - _last_change(cell), 0))
            return Standing(step, name, State.running, f"{_answered(cell)}, the last {age} ago")
        job = self._jobs.get(JobPlace.of_cell(cell.folder))
        has_failed = cell.state is CellState.failed
        if job and job.is_under_way and not (has_failed and job.is_ending):  # or it is the one that failed
            return Standing(step, name, *_before(cell), reason=describe_job(job))
        again = _again(cell, job)
        if has_failed:
            return Standing(step, name, State.failed, cell.reason or "", reason=cell.reason, command=again)
        if not self.paths.checkpoint(step).is_dir():
            return Standing(step, name, State.gone, _answered(cell), reason="its checkpoint was removed")
        return self._of_open(step, cell, job)

    def _of_open(self, step: int, cell: Cell, job: JobStanding | None) -> Standing:
        """One that was ordered, has no outcome yet, and neither a process nor a job works on it."""
        has_begun = cell.state is CellState.begun
        state, told = _before(cell)
        again = _again(cell, job)
        if job and job.state is not JobState.done:
            return Standing(step, cell.folder.name, state, told, reason=describe_job(job), command=again)
        if not has_begun and self.is_training and self.schedule.tasks_at(step):
            return Standing(step, cell.folder.name, state, told, reason="waits for the run to begin it")
        more = "; the next start of the run would, if it is due" if has_begun else ""
        reason = f"no process works on it{more}"
        return Standing(step, cell.folder.name, state, told, reason=reason, command=again)

    def _of_done(self, step: int, cell: Cell, merged: Merged | None) -> Standing:
        name, told = cell.folder.name, _score(cell)
        source = merged.sources.get(cell.order.task) if merged else None
        if current_fingerprint(cell.folder.parent) != cell.order.fingerprint:
            return Standing(
                step, name, State.done, told, reason="is of another checkpoint than the one of this step now"
            )
        if source and cell.order.limit is not None and cell.order.limit < (source.limit or math.inf):
            return Standing(step, name, State.done, told, reason="a result of more samples counts")
        if merged is None or source is None or source.key != cell.order.key:
            return self._not_delivered(step, name, told, "not merged yet")
        values = {f"{cell.order.task}_{metric}": value.value for metric, value in cell.metrics.items()}
        if any(merged.results.get(key, math.nan) != values[key] for key in source.results):
            return self._not_delivered(step, name, told, "it has changed and is not merged anew yet")
        logged = self._logged.get(step, {})
        if any(logged.get(metric_key(key, source.limit)) != values[key] for key in source.results):
            return self._not_delivered(step, name, told, "not logged yet")
        return Standing(step, name, State.done, told, logged=True)

    def _not_delivered(self, step: int, name: str, told: str, what: str) -> Standing:
        if self.is_training:
            why = f"{what}: the run does that at step {self.next_look}; it is at {self.reached}"
            return Standing(step, name, State.done, told, reason=why)
        if under_way := [merge for merge in self.merges if merge.is_under_way]:
            return Standing(step, name, State.done, told, reason=f"{what}: {describe_job(under_way[0])}")
        return Standing(step, name, State.done, told, reason=what, command=merge_command(self.paths))

    def _unplanned(self, step: int, name: str, task: str) -> Standing:
        if not self.paths.checkpoint(step).is_dir():
            return Standing(step, name, State.gone, "", reason="its checkpoint was removed, or never saved")
        if self.is_training:
            return Standing(step, name, State.not_planned, "", reason="due: the run plans it after a step")
        command = evaluate_command(self.paths, step, task, self.schedule.suite)
        return Standing(step, name, State.not_planned, "", reason="due: the run ended before", command=command)


def read_jobs_of_run(paths: RunPaths, step: int | None = None) -> dict[JobPlace, Job]:
    """What was handed over to train, to answer the cells of one step or of all, and to merge what these find."""
    own = JobPlace.of_folder(paths.root)
    training = {own: job} if (job := read_job(own)) else {}
    return training | read_cell_jobs(paths.evals, step) | read_merge_jobs(paths.evals)


def evaluate_command(paths: RunPaths, step: int, task: str, suite: EvalSuiteConfig) -> str:
    """What plans and answers a task of a checkpoint as a suite does, whatever the tasks of that are."""
    usual = EvalSuiteConfig(tasks=suite.tasks)
    names = [field.name for field in fields(suite) if getattr(suite, field.name) != getattr(usual, field.name)]
    settings = [f"eval_suite.{name}={shlex.quote(str(getattr(suite, name)))}" for name in names]
    asked = [f"run={shlex.quote(str(paths.root))}", f"steps={step}", f"'tasks=[{task}]'"]
    return " ".join(["python -m vlmkit.eval", *asked, *settings])


def describe_job(standing: JobStanding) -> str:
    """Where a job waits, runs or has ended, how long, and why."""
    job, age = standing.job, format_seconds(max(time.time() - standing.since, 0))
    name, why = f"job {job.job_id}", f" ({standing.reason})" if standing.reason else ""
    log = f"; its log: {job.log}" if Path(job.log).exists() else ""
    match standing.state:
        case JobState.waiting:
            queue = "queue" if job.launcher is Launcher.slurm else "pool"
            return f"{name} waits in the {queue} since {age}{why}"
        case JobState.running:
            return f"{name} runs since {age}{why}"
        case JobState.unknown:
            return f"what became of {name} is not known: {standing.reason}{log}"
        case JobState.done:
            return f"{name} is done{why}"
        case state:
            return f"{name} {'failed' if state is JobState.failed else 'was ended'}{why}{log}"


def _is_result_name(path: Path) -> bool:
    """Whether it is step_N, step_N.json or, as the reference writes them, step_N_TASK.json."""
    if path.is_file():
        return STEP_FILE.fullmatch(path.name) is not None
    return path.name.startswith("step_") and path.name[5:].isdecimal()


def _is_cell(folder: Path) -> bool:
    """Whether a cell lies there, under its own name: a copy of one is none."""
    cell = read_cell(folder)
    return cell is not None and cell.order.folder_name == folder.name


def _score(cell: Cell) -> str:
    """The main metric, the task's first."""
    if not cell.metrics:
        return "no metric"
    name, metric = next(iter(cell.metrics.items()))
    error = "" if metric.stderr is None else f" ± {metric.stderr:.4f}"
    return f"{name} {metric.value:.4f}{error}"


def _answered(cell: Cell) -> str:
    requests = "an unknown number" if cell.requests is None else f"{cell.requests:,}"
    return f"{cell.answered:,} of {requests} answered"


def _last_change(cell: Cell) -> float:
    """When a file of the cell was last written."""
    files = (cell.folder / CELL_FILE, *cell.folder.glob("samples*.jsonl"))
    return max(path.stat().st_mtime for path in files if path.exists())


def _before(cell: Cell) -> tuple[State, str]:
    """How one without a result stands that is to be answered yet, and what is told of it."""
    match cell.state:
        case CellState.begun:
            return State.interrupted, _answered(cell)
        case CellState.failed:
            return State.planned, f"failed before: {cell.reason}"
        case _:
            return State.planned, ""


def _again(cell: Cell, job: JobStanding | None) -> str:
    """The command that answers it: where its job was to, if it had one; on which cluster the reader knows."""
    where = " evals=slurm cluster=…" if job and job.job.launcher is Launcher.slurm else ""
    return f"python -m vlmkit.eval {shlex.quote(f'cells=[{as_override(str(cell.folder))}]')}{where}"
