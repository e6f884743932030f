"""What a run's card tells of where its numbers come from: command, revision, versions, hardware, speed."""

import statistics
from collections.abc import Sequence
from typing import Any

from vlmkit.reporting.sweeps.runs import ReadRun, start_command

Facts = tuple[tuple[str, str], ...]


def facts_of(run: ReadRun) -> Facts:
    """All that is known of a run, in the order to show."""
    first, last = (run.starts[0], run.starts[-1]) if run.starts else ({}, {})
    told = {
        "command": start_command(run.starts[:1]),
        "steps": f"{max(run.rows.losses, default=0):,} of {run.last_step:,}",
        "started": str(first.get("time", "")),
        "starts": f"{len(run.starts)}" if len(run.starts) > 1 else "",
        "tokens per second": f"{statistics.median(run.rows.speeds):,.0f} (median)" if run.rows.speeds else "",
        "git": _git(first.get("git")),
        "versions": _pairs(first.get("packages")),
        "python": str(first.get("python", "")),
        "hardware": _hardware(first.get("hardware")),
        "device": str(last.get("device", "")),
        "processes": str(last.get("world_size", "")),
        "pretrained": _pairs(first.get("pretrained_commits")),
        "bad samples": _bad_samples(run),
        "checkpoint": str(run.paths.newest_checkpoint or ""),
        "wandb": _wandb(run),
    }
    return tuple((name, text) for name, text in told.items() if text)


def split_shared(facts: Sequence[Facts]) -> tuple[Facts, list[Facts]]:
    """What all runs have in common, if there are several, and what is left of each."""
    if len(facts) < 2:
        return (), list(facts)
    shared = set(facts[0]).intersection(*facts[1:])
    return (
        tuple(fact for fact in facts[0] if fact in shared),
        [tuple(fact for fact in own if fact not in shared) for own in facts],
    )


def _git(git: Any) -> str:
    if not isinstance(git, dict):
        return ""
    return f"{git.get('revision')}{', with changes that are in no commit' if git.get('changed') else ''}"


def _hardware(hardware: Any) -> str:
    if not isinstance(hardware, dict):
        return ""
    gpus = [str(name) for name in hardware.get("gpus") or ()]
    told = [f"{hardware.get('cpu_cores')} cores ({hardware.get('machine')})"]
    return ", ".join(told + [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)])


def _pairs(values: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, dict) else ""


def _bad_samples(run: ReadRun) -> str:
    try:
        with run.paths.bad_samples.open(encoding="utf-8") as file:
            return f"{sum(1 for _ in file):,}"
    except OSError:
        return ""


def _wandb(run: ReadRun) -> str:
    try:
        return run.paths.wandb_run_id.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
