"""What of a run is done, running, failed or missing, and why a result is not in wandb yet.

    python -m vlmkit.status run=RUN

It only reads, and works while the run trains. Read next: ``evaluation/standing.py``.
"""

import time
from pathlib import Path
from typing import Any

from vlmkit import entry
from vlmkit.config import StatusConfig
from vlmkit.errors import ConfigError
from vlmkit.evaluation.delivery import merge_command
from vlmkit.evaluation.standing import RunStanding, Standing
from vlmkit.paths import RunPaths
from vlmkit.run_directory import read_config
from vlmkit.tracking.console import Screen, format_seconds


def show_status(paths: RunPaths, screen: Screen) -> None:
    """Print training, a table of evaluations, and for each that is missing the reason and the command that helps."""
    config = read_config(paths)
    run = RunStanding(paths, config)
    standings = run.standings()
    screen.banner(
        "vlmkit.status",
        {
            "run": str(paths.root),
            "training": describe_training(run),
            "evaluations": describe_evaluations(run, standings),
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
    if not run.is_training and run.reached < run.schedule.last_step:
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


def main() -> None:
    """The command."""
    entry.quote_paths("run")
    entry.run("status", _start)


def _start(config: StatusConfig, _invocation: entry.Invocation) -> None:
    paths = RunPaths(Path(config.run).expanduser().absolute())
    if not paths.config.is_file():
        raise ConfigError(f"run={config.run}: must be a run directory, with a config.yaml")
    show_status(paths, Screen())


if __name__ == "__main__":
    main()
