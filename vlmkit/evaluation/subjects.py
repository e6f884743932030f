"""Which checkpoints and cells an evaluation is about."""

import hashlib
from pathlib import Path

from vlmkit.config import EvalConfig
from vlmkit.errors import ConfigError
from vlmkit.evaluation.cells import (
    Cell,
    Order,
    Subject,
    checkpoint_fingerprint,
    order_cell,
    plan_cell,
    read_cell,
)
from vlmkit.local_files import newest_of_run
from vlmkit.paths import RunPaths


def find_subjects(config: EvalConfig) -> list[Subject]:
    """The checkpoints that ``ckpt`` or ``run`` and ``steps`` name; none if cells are named.

    Raises:
        ConfigError: A step has no checkpoint; the message names those that have.
    """
    if config.ckpt is not None:
        return [_named_subject(newest_of_run(config.ckpt), config.out)]
    if config.run is None:
        return []
    paths = RunPaths(Path(config.run).expanduser().absolute())
    there = sorted(paths.all_checkpoints)
    if not there:
        raise ConfigError(f"run={config.run}: has no checkpoints/step_N")
    steps = {"all": there, "latest": there[-1:]}.get(str(config.steps))
    if steps is None:
        steps = config.steps if isinstance(config.steps, list) else [config.steps]
    missing = [step for step in steps if step not in there]
    if missing:
        raise ConfigError(
            f"steps={','.join(map(str, missing))}: no such checkpoint in run={config.run}; "
            f"there are {', '.join(map(str, there))}"
        )
    return [Subject.of_run(paths, step) for step in dict.fromkeys(steps)]


def done_cells(config: EvalConfig, subjects: list[Subject]) -> list[Cell] | None:
    """The cells of the checkpoints and tasks if all of them are done; else None. Nothing is planned."""
    orders = _orders(config, subjects)
    cells = [read_cell(subject.folder / order.folder_name) for subject, order in orders]
    done = [cell for cell, (_, order) in zip(cells, orders, strict=True) if cell and cell.is_result_of(order)]
    return done if len(done) == len(orders) and not config.force and config.cells is None else None


def plan_cells(config: EvalConfig, subjects: list[Subject]) -> list[Cell]:
    """The cells of the checkpoints and tasks, or the ones that are named; new ones are written down as planned.

    Raises:
        UserError: A process answers one of them in another way, or a named folder is no cell.
    """
    planned = [plan_cell(subject.folder, order, config.force) for subject, order in _orders(config, subjects)]
    return [*(_read(folder) for folder in config.cells or ()), *planned]


def _orders(config: EvalConfig, subjects: list[Subject]) -> list[tuple[Subject, Order]]:
    return [
        (subject, order_cell(subject, task, config.eval_suite, fingerprint))
        for subject in subjects
        for fingerprint in [checkpoint_fingerprint(subject)]
        for task in config.task_names
    ]


def _named_subject(checkpoint: str, out: str | None) -> Subject:
    """A checkpoint with its place: in its run, if it is one of a run and no other place is named."""
    path = Path(checkpoint).expanduser()
    place = path.absolute()
    number = place.name.removeprefix("step_")
    if not path.is_dir():
        return Subject(checkpoint, None, _folder(checkpoint, out))
    if out is None and place.parent.name == "checkpoints" and number != place.name and number.isdecimal():
        return Subject.of_run(RunPaths(place.parent.parent), int(number))
    other = hashlib.sha256(str(place).encode()).hexdigest()[:8]  # many a folder is called out/model
    return Subject(str(place), None, _folder(f"{'/'.join(place.parts[-2:])}-{other}", out))


def _folder(name: str, out: str | None) -> Path:
    if out is not None:
        return Path(out).expanduser().absolute()
    return Path("runs", "evals", name.strip("/").replace("/", "--")).absolute()


def _read(folder: str) -> Cell:
    cell = read_cell(Path(folder).expanduser().absolute())
    if cell is None:
        raise ConfigError(f"cells={folder}: must be a folder with a cell.json that vlmkit planned")
    return cell
