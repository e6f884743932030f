"""Evaluate checkpoints on tasks of lmms-eval; what is done already is not done again.

    python -m vlmkit.eval suite=demo ckpt=RUN                       the newest checkpoint on easy-VQA's test, offline
    python -m vlmkit.eval suite=quick ckpt=RUN/checkpoints/step_N   or a hub id org/name[@revision]
    python -m vlmkit.eval suite=full run=RUN steps=latest           or steps=all, or steps=500,1000
    python -m vlmkit.eval tasks=[ai2d] ckpt=RUN                     any task of lmms-eval
    torchrun --nproc-per-node=4 -m vlmkit.eval suite=full run=RUN   each process answers its share
    python -m vlmkit.eval suite=full run=RUN evals=local evals.workers=4   four processes, each a cell at a time
    python -m vlmkit.eval suite=full run=RUN evals=slurm cluster=…  a SLURM job for each cell; returns at once

A task of a checkpoint is a cell: a folder with what was asked, each answer as soon as it is there, and the scores. One
that was interrupted goes on where it was; ``force=true`` begins anew.

Read next: ``evaluation/cells.py`` (what a cell is), ``evaluation/runner.py`` (how one is answered and scored).
"""

import os
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing

from vlmkit import entry
from vlmkit.config import EvalConfig, EvalsWhere, TrainerConfig
from vlmkit.errors import ConfigError, UserError
from vlmkit.evaluation.cells import Cell, CellState, Subject, read_cell
from vlmkit.evaluation.delivery import deliver_late
from vlmkit.evaluation.merge import merge_subject
from vlmkit.evaluation.subjects import done_cells, find_subjects, plan_cells
from vlmkit.evaluation.submission import Submission, by_run, describe
from vlmkit.job_standings import stand
from vlmkit.jobs import JobPlace
from vlmkit.launched import started_processes
from vlmkit.paths import RunPaths
from vlmkit.preflight import check_evaluation
from vlmkit.tracking.console import Screen

STOPPED = "stopped; the same command goes on from here, unless it has force=true"
LISTS = ("tasks", "steps", "cells")  # a=1,2 would be a sweep


def evaluate(config: EvalConfig) -> list[Cell]:
    """Plan, answer, score; with these processes or, with ``evals=local``, with others beside them.

    Ends the process with 128 + the signal's number if a signal asked it to stop (to any of its processes).

    Returns:
        All cells that were asked for, as they are now.
    """
    subjects = find_subjects(config)
    # Several processes look together: one by one they could see different things.
    if started_processes() == 1 and (done := done_cells(config, subjects)):
        screen = Screen()
        screen.say("all is done: force=true would do it again")
        _show(done, screen)
        hand_on(config, done, screen)
        return done
    if config.evals.where is EvalsWhere.local:
        return _evaluate_beside(config, subjects)
    # Imported here: a mistake in the command is answered before these seconds are spent.
    from vlmkit.distributed import Ranks
    from vlmkit.evaluation.runner import CellRunner
    from vlmkit.interrupt import StopSignal
    from vlmkit.tracking.quiet import quiet_libraries

    quiet_libraries()
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignal("batch"))
        ranks = stack.enter_context(Ranks(TrainerConfig(), config.eval_suite.seed))
        screen = Screen(ranks.is_main)
        cells = ranks.run_on_main(lambda: plan_cells(config, subjects))
        CellRunner(ranks, screen, stop).run(_open_cells(cells, screen))
        cells = ranks.run_on_main(lambda: [read_cell(cell.folder) or cell for cell in cells])  # what others did, too
        _show(cells, screen)
        ranks.run_on_main(lambda: hand_on(config, cells, screen))
        if stop.reached_any(ranks):
            screen.say(STOPPED)
            sys.exit(128 + (stop.received or signal.SIGTERM))
    return cells


def _evaluate_beside(config: EvalConfig, subjects: list[Subject]) -> list[Cell]:
    from vlmkit.evaluation.workers import answer_beside  # seconds
    from vlmkit.interrupt import StopSignal

    screen = Screen()
    with StopSignal("moment") as stop:
        cells = plan_cells(config, subjects)
        answer_beside(_open_cells(cells, screen), config.evals, screen, stop)
        cells = [read_cell(cell.folder) or cell for cell in cells]
        _show(cells, screen)
        hand_on(config, cells, screen)
        if stop.received:
            screen.say(STOPPED)
            sys.exit(128 + stop.received)
    return cells


def hand_over(config: EvalConfig) -> None:
    """Plan, and have SLURM answer what is not done; say what has become a job, without waiting for it.

    Raises:
        UserError: SLURM did not take it, or not all of it.
    """
    screen = Screen()
    cells = plan_cells(config, find_subjects(config))
    open_cells = _open_cells(cells, screen)
    if not open_cells:
        _show(cells, screen)
        hand_on(config, cells, screen)
        return
    left = 0
    for of_run in by_run(open_cells):
        with closing(Submission(of_run, config.evals, config.cluster)) as submission:
            result = submission.wait()
        left += len(result.left)
        for line in describe(of_run, result):
            screen.say(line)
    for evals in dict.fromkeys(cell.folder.parent.parent for cell in open_cells if cell.order.step is not None):
        screen.say(f"how they stand: python -m vlmkit.status run={shlex.quote(str(evals.parent))}")
    if left:
        raise UserError(f"{left:,} were not taken by SLURM: the same command hands them over, when others have ended")


def _open_cells(cells: Sequence[Cell], screen: Screen) -> list[Cell]:
    """Those that are not done; it is told how many there are."""
    found = [cell for cell in cells if cell.state is not CellState.done]
    screen.say(f"{len(cells)} to evaluate, {len(cells) - len(found)} of them done before")
    return found


def hand_on(config: EvalConfig, cells: Iterable[Cell], screen: Screen) -> None:
    """Merge the results of each checkpoint; those of a run go to its metrics.jsonl and to wandb.

    Not of cells that were named: who planned them hands them on, once.
    """
    try:
        for folder in dict.fromkeys(cell.folder.parent for cell in cells):
            merge_subject(folder)
        for evals in dict.fromkeys(cell.folder.parent.parent for cell in cells) if config.cells is None else ():
            deliver_late(RunPaths(evals.parent), screen.say)
    except OSError as error:
        screen.say(f"warning: results are not handed on: {error}; python -m vlmkit.merge does it")


COLUMNS = ("checkpoint", "task", "metric", "value", "± s.e.", "samples", "seconds")


def _show(cells: Sequence[Cell], screen: Screen) -> None:
    """The scores, and why there is none."""
    screen.table(COLUMNS, _rows(cells))
    for cell in cells:
        if cell.state is CellState.failed:
            screen.say(f"{cell.folder.parent.name} {cell.folder.name}: {cell.reason}")


def _rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """A line for each metric, or for what became of a cell without any."""
    rows: list[tuple[str, ...]] = []
    for cell in cells:
        place = cell.folder.parent.name, cell.folder.name
        if cell.state is not CellState.done:
            rows.append((*place, cell.state.value, "", "", "", ""))
            continue
        for name, metric in cell.metrics.items():
            stderr = "" if metric.stderr is None else f"{metric.stderr:.4f}"
            of_first = "" if cell.order.limit is None else " (the first)"
            errors = f", {cell.errors} errors" if cell.errors else ""
            seconds = f"{cell.provenance.get('seconds', 0):,.0f}"
            rows.append((*place, name, f"{metric.value:.4f}", stderr, f"{metric.n:,}{of_first}{errors}", seconds))
    return rows


def main() -> None:
    """The command."""
    sys.argv = [sys.argv[0], *map(rewritten, sys.argv[1:])]
    entry.quote_paths("ckpt", "run", "out", "eval_suite.local_data")
    entry.run("eval", _start)


def rewritten(argument: str) -> str:
    """An argument as Hydra must read it: ``suite`` is ``eval_suite``, and a list needs no brackets."""
    name, equals, value = argument.partition("=")
    if name == "suite" or name.startswith("suite."):
        name = f"eval_{name}"
    if equals and name in LISTS and not value.startswith("[") and (name != "steps" or "," in value):
        value = f"[{value}]"
    return f"{name}{equals}{value}"


def _start(config: EvalConfig, invocation: entry.Invocation) -> None:
    suite = [override for override in invocation.overrides if override.startswith("eval_suite")]
    if config.cells is not None and suite:
        raise ConfigError(f"{suite[0]}: cannot be given with cells, which say themselves what is asked")
    check_evaluation(config)
    if config.evals.where is EvalsWhere.slurm:
        hand_over(config)
        return
    cells = evaluate(config)
    if any(cell.state is CellState.failed for cell in cells):
        sys.exit(1)
    if left := [cell for cell in cells if cell.state is not CellState.done]:
        sys.exit(tell_left(left))


def tell_left(cells: Sequence[Cell]) -> int:
    """Say why cells have no result that did not fail; the code with which the command ends.

    Returns:
        75, to be called again, if other processes or jobs answer all of them; 1 if one was given up: its process was
        killed, for one.
    """
    jobs = stand(JobPlace.of_cell(cell.folder) for cell in cells)
    has_job = {place for place, job in jobs.items() if job.is_under_way}
    given_up = [cell for cell in cells if not cell.is_held and JobPlace.of_cell(cell.folder) not in has_job]
    if given_up:
        told = f"has no result: {', '.join(map(_describe_open, given_up))}; the same command goes on"
    else:
        names = ", ".join(f"{cell.folder.parent.name} {cell.folder.name}" for cell in cells)
        told = f"left to other processes: {names}; call again to see what came of it"
    print(told, file=sys.stderr)  # noqa: T201
    return 1 if given_up else os.EX_TEMPFAIL


def _describe_open(cell: Cell) -> str:
    state = "interrupted" if cell.state is CellState.begun else "not begun"
    return f"{cell.folder.parent.name} {cell.folder.name}: {state}"


if __name__ == "__main__":
    main()
