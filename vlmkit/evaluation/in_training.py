"""Evaluation while a run trains: after a checkpoint cells are planned and answered, and what is known is logged.

Training knows nothing of it but that something is called after each step.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from vlmkit.config import EvalsWhere, TrainConfig
from vlmkit.distributed import Ranks
from vlmkit.errors import UserError
from vlmkit.evaluation.cells import (
    Cell,
    Subject,
    cell_name,
    checkpoint_fingerprint,
    order_cell,
    plan_cell,
    read_cell,
)
from vlmkit.evaluation.delivery import News, Say, deliver_late, describe, merge_command
from vlmkit.evaluation.schedule import Schedule
from vlmkit.evaluation.workers import CellWorkers, Waiting
from vlmkit.interrupt import StopSignal
from vlmkit.paths import RunPaths
from vlmkit.tracking.console import Screen
from vlmkit.tracking.sinks import Trackers


def deliver_last(config: TrainConfig, paths: RunPaths, say: Say) -> None:
    """Look once more when the run has let go of its directory: who came before that left what is new to the run."""
    if config.evals.where is EvalsWhere.none:
        return
    try:
        deliver_late(paths, say)
    except (OSError, UserError) as error:
        say(f"warning: results are not handed on: {error}; {merge_command(paths)} does it")


class _Step(Protocol):
    """What is known of a step here."""

    @property
    def step(self) -> int:
        """Its number."""


class EvaluateCheckpoints:
    """Has the checkpoints that the schedule names evaluated, also those of earlier starts that are not done.

    While entered it may have processes at work; leaving ends them.
    """

    def __init__(
        self,
        config: TrainConfig,
        paths: RunPaths,
        workers: CellWorkers,
        tracker: Trackers,
        screen: Screen,
        stop: StopSignal,
        ranks: Ranks,
    ) -> None:
        self._schedule = Schedule.of(config)
        self._hands_over = config.evals.where is EvalsWhere.slurm
        self._stats_interval = config.trainer.stats_log_interval
        self._paths = paths
        self._workers = workers
        self._tracker = tracker
        self._screen = screen
        self._stop = stop
        self._ranks = ranks
        self._news = News(paths)
        self._due = ranks.run_on_main(self._left_by_earlier_starts)  # steps; the same on every process
        self._started: set[Path] = set()  # cells, by this start of the run; known to the main process
        self._warned: set[str] = set()
        self._elsewhere: list[Cell] = []  # due, but another process answers them: one that an earlier start left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def after_step(self, stats: _Step) -> None:
        """Begin what is due as soon as its checkpoint is whole; log what has come in."""
        if self._schedule.tasks_at(stats.step):
            self._due.append(stats.step)
        self._workers.poll()
        started = self._start_due()
        if started or self._schedule.is_saved(stats.step) or stats.step % self._stats_interval == 0:
            self._log_news()

    def finish(self) -> None:
        """Begin what is left, wait until all is done, and log it; a signal ends the waiting.

        For SLURM's jobs it does not wait: what they find is logged after the run, by the job that merges it.
        """
        waiting = Waiting(self._screen, "SLURM to take evaluations" if self._hands_over else "evaluations")
        self._workers.retry()
        while not self._stop.reached_any(self._ranks):
            self._start_due()
            under_way = self._ranks.run_on_main(lambda: [*self._workers.poll(), *self._elsewhere])
            self._log_news()
            if not under_way:
                break
            waiting.pause(under_way)
        self._log_news()

    def _left_by_earlier_starts(self) -> list[int]:
        return [step for step in sorted(self._paths.all_checkpoints) if self._schedule.tasks_left(self._paths, step)]

    def _start_due(self) -> bool:
        """Plan and start what is due; whether something began."""
        if not self._due:
            return False
        self._due, planned = self._ranks.run_on_main(self._plan_due)
        for cells in planned:
            self._workers.start(cells)
        return bool(planned)

    def _plan_due(self) -> tuple[list[int], list[list[Cell]]]:
        """The steps that stay due, and the cells of the others.

        Those stay whose checkpoint is still being written, or of which another process answers a cell: if it should
        leave it undone, that is this run's. Cells for SLURM all go to the submitter, which knows what is under way.
        """
        stay, planned, self._elsewhere = [], [], []
        for step in self._due:
            is_whole = step in self._paths.all_checkpoints
            tasks = self._tasks_to_begin(step) if is_whole else {}
            held = [] if self._hands_over else [cell for cell in tasks.values() if cell and cell.is_held]
            self._elsewhere += held
            if held or not is_whole:
                stay.append(step)
            if cells := self._plan(step, [task for task, cell in tasks.items() if cell not in held]):
                planned.append(cells)
        return stay, planned

    def _tasks_to_begin(self, step: int) -> dict[str, Cell | None]:
        """The step's tasks without a result that this start has not begun yet, with the cell that is there."""
        folder, limit = self._paths.cells(step), self._schedule.suite.limit
        left = self._schedule.tasks_left(self._paths, step)
        cells = {task: folder / cell_name(task, limit) for task in left}
        return {task: read_cell(cell) for task, cell in cells.items() if cell not in self._started}

    def _plan(self, step: int, tasks: Sequence[str]) -> list[Cell]:
        subject = Subject.of_run(self._paths, step)
        cells = []
        for task in tasks:
            try:
                order = order_cell(subject, task, self._schedule.suite, checkpoint_fingerprint(subject))
                cells.append(plan_cell(subject.folder, order))
            except (OSError, UserError) as error:  # the usual cause is a full disk
                self._warn_once(f"step {step} is not evaluated on {task} now: {error}")
        self._started.update(cell.folder for cell in cells)
        return cells

    def _log_news(self) -> None:
        """On the main process, which alone writes."""
        if not self._ranks.is_main:
            return
        try:
            for step, results in self._news.take():
                self._tracker.log_evaluation(step, results)
                self._screen.say(describe(step, results))
        except Exception as error:  # others write in evals/ too, whatever they like: that must not end training
            self._warn_once(f"results of evaluations are not logged now: {type(error).__name__}: {error}")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._screen.say(f"warning: {text}")
