"""What of a run is done, running, failed or missing, and why a result is not in wandb yet; how the jobs of a sweep are.

    python -m vlmkit.status run=RUN
    python -m vlmkit.status sweep=DIR

It only reads, and works while runs train. Read next: ``evaluation/standing.py``, ``sweep_directory.py``.
"""

import shlex
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmkit import entry
from vlmkit.config import StatusConfig
from vlmkit.evaluation.delivery import merge_command
from vlmkit.evaluation.standing import RunStanding, Standing, State, describe_job
from vlmkit.job_standings import stand
from vlmkit.jobs import JobPlace, JobState
from vlmkit.paths import RunPaths
from vlmkit.run_directory import read_config
from vlmkit.sweep_directory import JobOfSweep, find_run, find_sweep, read_entries, read_jobs
from vlmkit.tracking.console import Screen, format_seconds


def show_status(paths: RunPaths, screen: Screen) -> None:
    """Print training, a table of evaluations, and for each that is missing the reason and the command that helps."""
    if not paths.config.is_file():
        own = JobPlace.of_folder(paths.root)
        told = ", ".join(map(describe_job, stand([own]).values()))
        screen.banner("vlmkit.status", {"run": str(paths.root), "job": told or "not readable", "training": "not begun"})
        return
    config = read_config(paths)
    run = RunStanding(paths, config)
    standings = run.standings()
    screen.banner(
        "vlmkit.status",
        {
            "run": str(paths.root),
            **({"job": describe_job(run.job)} if run.job else {}),
            "training": describe_training(run),
            "evaluations": describe_evaluations(run, standings),
            **({"merge": merge} if (merge := describe_merge(run, standings)) else {}),
            "wandb": describe_wandb(paths, config),
        },
    )
    if standings:
        rows = [(str(s.step), s.task, s.state.value, "yes" if s.logged else "no", s.told) for s in standings]
        screen.table(("step", "task", "state", "logged", "result"), rows)
        screen.say("")
    for line in describe_missing(standings):
        screen.say(line)
    for path in run.foreign_names():
        screen.say(
            f"{path}: is no result: those are step_N.json, step_N_TASK.json and the cell.json of TASK in step_N/TASK"
        )


def describe_training(run: RunStanding) -> str:
    """How far it is, whether it runs, and when its last line came."""
    steps = f"step {run.reached:,} of {run.schedule.last_step:,}"
    runs = "runs now" if run.is_training else "does not run"
    has_job = run.job is not None and run.job.is_under_way
    if not run.is_training and run.reached < run.schedule.last_step and not has_job:
        runs += "; the same command goes on"
    if not run.paths.metrics.exists():
        return f"{steps}, {runs}; nothing is logged yet"
    seconds = max(time.time() - run.paths.metrics.stat().st_mtime, 0)
    return f"{steps}, {runs}; last line {format_seconds(seconds)} ago"


def describe_evaluations(run: RunStanding, standings: list[Standing]) -> str:
    """Where they are done, and how many there are of each state."""
    counts: dict[str, int] = {}
    for standing in standings:
        counts[standing.state.value] = counts.get(standing.state.value, 0) + 1
    told = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none is due, none was made"
    return f"evals={run.schedule.evals.where.value}: {told}"


def describe_merge(run: RunStanding, standings: list[Standing]) -> str:
    """The jobs that merge results and wait or run; else how the last one ended, if that left some; else nothing."""
    told = [merge for merge in run.merges if merge.is_under_way]
    if not told and any(standing.state is State.done and not standing.logged for standing in standings):
        told = [merge for merge in run.merges[-1:] if merge.state is not JobState.done]
    return ", ".join(map(describe_job, told))


def describe_wandb(paths: RunPaths, config: dict[str, Any]) -> str:
    """Whether wandb gets what is logged, and how it comes to the server."""
    mode = config.get("logger", {}).get("wandb", "disabled")
    if mode == "disabled":
        return "off (logger.wandb=disabled); what is logged is in metrics.jsonl"
    if paths.wandb_pending.exists():
        return f"logger.wandb={mode}; results are logged that it may lack: {merge_command(paths)}"
    if not paths.wandb_run_id.exists():
        return f"logger.wandb={mode}, not begun yet"
    run_id = paths.wandb_run_id.read_text().strip()
    offline = sorted((paths.root / "wandb").glob(f"offline-run-*-{run_id}*"))
    if not offline:
        return f"run {run_id}; what is logged is sent there"
    kept = f"{len(offline)} start(s) of run {run_id} are kept offline"
    return f"{kept}: wandb sync {paths.root}/wandb/offline-run-*-{run_id}*"


def describe_missing(standings: list[Standing]) -> list[str]:
    """A line for each result that is not where one looks for it."""
    lines = []
    for standing in standings:
        if standing.reason is not None:
            lines.append(f"step {standing.step} {standing.task}: {standing.state.value}: {standing.reason}")
            if standing.command is not None:
                lines.append(f"    {standing.command}")
    return lines


# ---- a sweep -------------------------------------------------------------------------------------------

COLUMNS = ("job", "state", "training", "since", "evaluations", "called with")


def show_sweep(sweep: Path, screen: Screen) -> None:
    """Print a table of the jobs, why those that did not end well did not, and the commands that help."""
    entries, problem = read_entries(sweep)
    jobs = read_jobs(entries)
    screen.banner("vlmkit.status", {"sweep": str(sweep), "jobs": describe_jobs(jobs)})
    if problem:
        screen.say(f"warning: {problem}: jobs are told as far as their own folders do\n")
    rows = [
        (str(number), job.state.value, job.training, job.since, job.evaluations, job.entry.name)
        for number, job in enumerate(jobs)
    ]
    screen.table(COLUMNS, rows)
    screen.say("")
    for number, job in enumerate(jobs):
        if job.reason is not None:
            screen.say(f"job {number}: {job.state.value}: {job.reason}")
    for line in describe_help(sweep, jobs):
        screen.say(line)


def describe_jobs(jobs: Sequence[JobOfSweep]) -> str:
    """How many there are of each state."""
    counts = Counter(job.state for job in jobs)
    return f"{len(jobs):,}: " + ", ".join(f"{counts[state]:,} {state.value}" for state in JobState if counts[state])


def describe_help(sweep: Path, jobs: Sequence[JobOfSweep]) -> list[str]:
    """What to call next."""
    lines = []
    if any(job.reason is not None for job in jobs):
        lines.append("the command that started the sweep starts again what is not done, and nothing else")
    if any(job.state in (JobState.waiting, JobState.running) for job in jobs):
        lines.append(f"to end what waits and runs: python -m vlmkit.cancel sweep={shlex.quote(str(sweep))}")
    if holes := [job for job in jobs if job.has_holes]:
        folder = shlex.quote(str(holes[0].entry.folder))
        lines.append(f"why evaluations have no result: python -m vlmkit.status run={folder}")
    return lines


def main() -> None:
    """The command."""
    entry.quote_paths("run", "sweep")
    entry.run("status", _start)


def _start(config: StatusConfig, _invocation: entry.Invocation) -> None:
    if config.sweep is not None:
        show_sweep(find_sweep(config.sweep), Screen())
    else:
        show_status(find_run(str(config.run)), Screen())


if __name__ == "__main__":
    main()
