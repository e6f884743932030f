"""Which checkpoints of a run are evaluated on what while it trains, and what of that is still to be done."""

from dataclasses import dataclass
from typing import Any, Self

from vlmkit.config import EvalsConfig, EvalSuiteConfig, EvalsWhere, TrainConfig, read_group
from vlmkit.evaluation.cells import CellState, cell_name, read_cell, read_cells
from vlmkit.paths import RunPaths


@dataclass(frozen=True, slots=True)
class Schedule:
    """``evals.schedule`` of a run; what is due at a step depends on nothing else than the config."""

    evals: EvalsConfig
    suite: EvalSuiteConfig
    interval: int  # steps between two checkpoints
    last_step: int

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """Of a run that starts."""
        return cls(config.evals, config.eval_suite, config.trainer.eval_interval, config.trainer.max_training_steps)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """Of a run whose config.yaml says this; one of a version without evaluation has an empty one."""
        return cls(
            read_group(EvalsConfig, plain.get("evals", {})),
            read_group(EvalSuiteConfig, plain.get("eval_suite", {})),
            plain["trainer"]["eval_interval"],
            plain["trainer"]["max_training_steps"],
        )

    def tasks_at(self, step: int) -> list[str]:
        """What the checkpoint of a step is evaluated on: nothing, if it is not due.

        Due are every nth step of the phase, counted from step 0, and the last step of the run. What a signal made the
        run save in between is not: a run that was stopped has the same results as one that was not.
        """
        phase = self.evals.phase_at(step)
        if self.evals.where is EvalsWhere.none or phase is None:
            return []
        if step % (phase.every or self.interval) and step != self.last_step:
            return []
        return self.suite.tasks if phase.tasks is None else phase.tasks

    def is_saved(self, step: int) -> bool:
        """Whether the run makes a checkpoint there anyway."""
        return step % self.interval == 0 or step == self.last_step

    def due_steps(self, reached: int) -> list[int]:
        """The steps with something due, as far as a run has come."""
        steps = {*range(self.interval, reached + 1, self.interval), self.last_step}
        return [step for step in sorted(steps) if step <= reached and self.tasks_at(step)]

    def tasks_left(self, paths: RunPaths, step: int) -> list[str]:
        """Those of a step's tasks that have no result of any kind yet."""
        return [task for task in self.tasks_at(step) if not self._is_done(paths, step, task)]

    def steps_in_need(self, paths: RunPaths) -> set[int]:
        """The steps whose checkpoint must stay: something was ordered of it, or is due, and is not done."""
        return {step for step in paths.all_checkpoints if self.tasks_left(paths, step) or _has_open_cell(paths, step)}

    def _is_done(self, paths: RunPaths, step: int, task: str) -> bool:
        cell = read_cell(paths.cells(step) / cell_name(task, self.suite.limit))
        return cell is not None and cell.state is CellState.done


def _has_open_cell(paths: RunPaths, step: int) -> bool:
    return any(cell.state is not CellState.done for cell in read_cells(paths.cells(step)))
