"""What is missing, why, and the command that fills it."""

import shlex
from collections.abc import Callable, Iterator, Sequence

from vlmkit.evaluation.cells import cell_name
from vlmkit.evaluation.merged import Source
from vlmkit.evaluation.standing import RunStanding, Standing, State
from vlmkit.reporting.sweeps.content import Hole
from vlmkit.reporting.sweeps.runs import ReadRun, training_hole
from vlmkit.reporting.sweeps.scores import Scored, Steps, results_of


def find_holes(runs: Sequence[ReadRun], steps: Steps, measures: Sequence[Scored]) -> Iterator[Hole]:
    """What is missing of training, of results that others have, and what a result is less than it looks like.

    Args:
        runs: All.
        steps: Where each is looked at.
        measures: What is put side by side.
    """
    wanted = list(dict.fromkeys((part.task, part.limit) for one in measures for part, _ in one.parts))
    for run in runs:
        if hole := training_hole(run):
            yield hole
        step = steps.of[run]
        has_come_there = run.is_done or step in run.results or step in run.rows.losses
        if wanted and has_come_there:
            yield from _missing(run, step, wanted)
    yield from _per_task(runs, steps, _limited)
    yield from _per_task(runs, steps, _errors)


def _missing(run: ReadRun, step: int, wanted: Sequence[tuple[str, int | None]]) -> Iterator[Hole]:
    """Tasks that others have a result of, in full or of as many samples; and what is due or was ordered besides."""
    merged = run.results.get(step)
    have = {(result.task, result.limit) for result in results_of(merged)}
    tasks = {task for task, _ in have}
    missing = {cell_name(task, limit): (task, limit) for task, limit in wanted if task not in tasks}
    missing |= {task: (task, None) for task in (merged.missing if merged else {}) if task not in tasks}
    if not missing:
        return
    told = {standing.task: standing for standing in _standings(run, step)}
    for name, (task, limit) in missing.items():
        standing = told.get(name)
        why, way_out = "not evaluated", _evaluate(run, step, task, limit)
        if standing is not None and standing.state is not State.done:
            reason = standing.reason or standing.told
            why = f"{standing.state.value}: {reason}" if reason else standing.state.value
            way_out = standing.command or ("" if standing.state is not State.not_planned else way_out)
        elif merged and task in merged.missing:
            why = merged.missing[task]
        if not run.paths.checkpoint(step).is_dir():
            why, way_out = f"{why}; its checkpoint is gone", ""
        yield Hole(run.name, f"{name} at step {step:,}", why, way_out)


def _standings(run: ReadRun, step: int) -> list[Standing]:
    try:
        return [standing for standing in RunStanding(run.paths, run.config).standings() if standing.step == step]
    except (OSError, ValueError, KeyError, TypeError):  # of a run that another version made
        return []


def _evaluate(run: ReadRun, step: int, task: str, limit: int | None) -> str:
    more = "" if limit is None else f" eval_suite.limit={limit}"
    return f"python -m vlmkit.eval run={shlex.quote(str(run.paths.root))} steps={step} 'tasks=[{task}]'{more}"


# ---- results that are less than they look like ---------------------------------------------------------

Look = Callable[[str, Source], tuple[str, str] | None]  # what is less, and why


def _per_task(runs: Sequence[ReadRun], steps: Steps, look: Look) -> Iterator[Hole]:
    """One hole for all runs of which the same can be said."""
    found: dict[tuple[str, str], list[tuple[ReadRun, int, str]]] = {}
    for run in runs:
        step = steps.of[run]
        merged = run.results.get(step)
        for task, source in merged.sources.items() if merged else ():
            if said := look(task, source):
                found.setdefault(said, []).append((run, step, task))
    for (what, why), having in found.items():
        run, step, task = having[0]
        name = run.name if len(having) == 1 else f"{len(having)} runs, such as {run.name}"
        yield Hole(name, what, why, _evaluate(run, step, task, None) + " eval_suite.limit=null")


def _limited(task: str, source: Source) -> tuple[str, str] | None:
    if source.limit is None:
        return None
    return f"{task}, beyond its first {source.limit:,} samples", f"evaluated with eval_suite.limit={source.limit}"


def _errors(task: str, source: Source) -> tuple[str, str] | None:
    if not source.errors:
        return None
    return f"{task}, {source.errors:,} of its samples", "they could not be answered: the score is of the others"
