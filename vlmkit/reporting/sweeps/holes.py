"""What is missing, why, and the command that fills it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vlmkit.config import EvalSuiteConfig, read_group
from vlmkit.errors import ConfigError
from vlmkit.evaluation.cells import cell_name
from vlmkit.evaluation.merged import Source
from vlmkit.evaluation.standing import RunStanding, Standing, State, evaluate_command, read_jobs_of_run
from vlmkit.job_standings import stand_of
from vlmkit.reporting.sweeps.content import Hole
from vlmkit.reporting.sweeps.runs import ReadRun, training_hole
from vlmkit.reporting.sweeps.scores import Scored, Steps, results_of

Asked = tuple[str, int | None]  # a task, and of how many samples


def find_holes(runs: Sequence[ReadRun], steps: Steps, measures: Sequence[Scored]) -> Iterator[Hole]:
    """What is missing of training, of results that others have, and what a result is less than it looks like.

    Args:
        runs: All.
        steps: Where each is looked at.
        measures: What is put side by side.
    """
    wanted = list(dict.fromkeys((part.task, part.limit) for one in measures for part, _ in one.parts))
    missing = {run: found for run in runs if (found := _find_missing(run, steps.of[run], wanted))}
    standings = _read_standings({run: steps.of[run] for run in missing})
    for run in runs:
        if hole := training_hole(run):
            yield hole
        yield from _describe_missing(run, steps.of[run], missing.get(run, {}), standings.get(run, {}))
    yield from _per_task(runs, steps, _limited)
    yield from _per_task(runs, steps, _errors)


def _find_missing(run: ReadRun, step: int, wanted: Sequence[Asked]) -> dict[str, Asked]:
    """Cell → task: what others have a result of, in full or of as many samples; and what was ordered besides."""
    has_come_there = run.is_done or step in run.results or step in run.rows.losses
    if not wanted or not has_come_there:
        return {}
    merged = run.results.get(step)
    tasks = {result.task for result in results_of(merged)}
    missing = {cell_name(task, limit): (task, limit) for task, limit in wanted if task not in tasks}
    told = {task for task, _ in missing.values()}
    limit = run.config.get("eval_suite", {}).get("limit")
    ordered = [task for task in (merged.missing if merged else {}) if task not in tasks | told]
    return missing | {cell_name(task, limit): (task, limit) for task in ordered}


def _read_standings(step_of: Mapping[ReadRun, int]) -> dict[ReadRun, dict[str, Standing]]:
    """Run → cell → how it stands, of one step each. SLURM is asked once for all."""
    jobs = {run: read_jobs_of_run(run.paths, step) for run, step in step_of.items()}
    now = stand_of({place: job for of_run in jobs.values() for place, job in of_run.items()})
    found = {}
    for run, step in step_of.items():
        with suppress(OSError, ValueError, KeyError, TypeError):  # of a run that another version made
            standing = RunStanding(run.paths, run.config, {place: now[place] for place in jobs[run]})
            found[run] = {each.task: each for each in standing.standings_at(step)}
    return found


def _describe_missing(
    run: ReadRun, step: int, missing: Mapping[str, Asked], standings: Mapping[str, Standing]
) -> Iterator[Hole]:
    merged = run.results.get(step)
    for name, (task, limit) in missing.items():
        standing = standings.get(name)
        if standing is not None and standing.state is not State.done:
            reason = standing.reason or standing.told
            why = f"{standing.state.value}: {reason}" if reason else standing.state.value
            way_out = standing.command or ""
        else:
            why = merged.missing.get(task, "not evaluated") if merged else "not evaluated"
            way_out = _evaluate(run, step, task, limit=limit)
        if not run.paths.checkpoint(step).is_dir():
            why, way_out = f"{why}; its checkpoint is gone", ""
        yield Hole(run.name, f"{name} at step {step:,}", why, way_out)


def _evaluate(run: ReadRun, step: int, task: str, **changes: Any) -> str:
    """The command that answers a task as the run's own suite does, but for some settings; "" if there is none."""
    if not run.paths.checkpoint(step).is_dir():
        return ""
    try:
        suite = replace(read_group(EvalSuiteConfig, run.config.get("eval_suite", {})), **changes)
    except ConfigError:  # of a run that another version made
        return ""
    return evaluate_command(run.paths, step, task, suite)


# ---- results that are less than they look like ---------------------------------------------------------

Settings = tuple[tuple[str, int | None], ...]  # of eval_suite, with which it would be more
Look = Callable[[str, Source], tuple[str, str, Settings] | None]  # what is less, why, the way out


def _per_task(runs: Sequence[ReadRun], steps: Steps, look: Look) -> Iterator[Hole]:
    """One hole for all runs of which the same can be said."""
    found: dict[tuple[str, str, Settings], list[tuple[ReadRun, int, str]]] = {}
    for run in runs:
        step = steps.of[run]
        merged = run.results.get(step)
        for task, source in merged.sources.items() if merged else ():
            if said := look(task, source):
                found.setdefault(said, []).append((run, step, task))
    for (what, why, settings), having in found.items():
        commands = ((run, _evaluate(run, step, task, **dict(settings))) for run, step, task in having)
        run, way_out = next((each for each in commands if each[1]), (having[0][0], ""))
        others = "" if len(having) == 1 else f"{len(having)} runs, {'the command is for' if way_out else 'such as'} "
        yield Hole(f"{others}{run.name}", what, why, way_out)


def _limited(task: str, source: Source) -> tuple[str, str, Settings] | None:
    if source.limit is None:
        return None
    what, why = f"{task}, beyond its first {source.limit:,} samples", f"evaluated with eval_suite.limit={source.limit}"
    return what, why, (("limit", None),)


def _errors(task: str, source: Source) -> tuple[str, str, Settings] | None:
    if not source.errors:
        return None
    what, why = f"{task}, {source.errors:,} of its samples", "they could not be answered: the score is of the others"
    return what, why, (("limit", source.limit), ("max_errors", 0))  # where more may fail, all would be said to be done
