"""What ``a=`` and ``b=`` of a comparison name: two folders of evaluation cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmkit.errors import ConfigError
from vlmkit.evaluation.cells import Cell
from vlmkit.evaluation.merge import counted_cells
from vlmkit.paths import RunPaths

Step = int | None  # None outside a run


@dataclass(frozen=True, slots=True)
class Side:
    """A checkpoint with results."""

    folder: Path  # of its cells
    step: Step
    cells: dict[str, Cell]  # task → the finished cell that counts


def find_sides(a: str, b: str) -> tuple[Side, Side]:
    """The two checkpoints that the names mean.

    A run means its newest step that the other has results for too, or its newest one with results if there is none.

    Args:
        a: A run, a checkpoint of a run, or a folder of cells.
        b: Another one.

    Raises:
        ConfigError: One has no results, both are the same, or no task was answered by both.
    """
    steps_a, steps_b = _find_steps("a", a), _find_steps("b", b)
    both = steps_a.keys() & steps_b.keys() - {None}
    side_a, side_b = (_newest({step: steps[step] for step in both} or steps) for steps in (steps_a, steps_b))
    if side_a.folder.resolve() == side_b.folder.resolve():
        raise ConfigError(f"b={b}: is the same as a: name two checkpoints, as in RUN/checkpoints/step_N")
    if not side_a.cells.keys() & side_b.cells.keys():
        raise ConfigError(
            f"b={b}: has finished no task that a has: a has {', '.join(side_a.cells)}; b has {', '.join(side_b.cells)}"
        )
    return side_a, side_b


def _find_steps(key: str, name: str) -> dict[Step, Side]:
    """Step → checkpoint with results: of a run maybe several, else one.

    Raises:
        ConfigError: There is none.
    """
    place = Path(name).expanduser().absolute()
    paths = RunPaths(place)
    step = _step(place)
    if step is not None and place.parent.name == paths.checkpoints.name:
        folders: Mapping[Step, Path] = {step: RunPaths(place.parents[1]).cells(step)}
        way_out = f"python -m vlmkit.eval ckpt={name}"
    elif paths.evals.is_dir() or paths.checkpoints.is_dir():
        folders = {step: paths.cells(step) for step in paths.evaluated_steps}
        way_out = f"python -m vlmkit.eval run={name}"
    else:
        folders = {step: place}
        way_out = "name a run, RUN/checkpoints/step_N, or a folder of evaluation cells as RUN/evals/step_N"
    sides = {step: Side(folder, step, counted_cells(folder)) for step, folder in folders.items()}
    found = {step: side for step, side in sides.items() if side.cells}
    if not found:
        raise ConfigError(f"{key}={name}: has no finished evaluation: {way_out}")
    return found


def _newest(steps: dict[Step, Side]) -> Side:
    return steps[max(steps, key=lambda step: -1 if step is None else step)]


def _step(folder: Path) -> Step:
    number = folder.name.removeprefix("step_")
    return int(number) if number != folder.name and number.isdecimal() else None
