"""Evaluation cells: one checkpoint, one task, one folder, one process. What was ordered, and what became of it.

    RUN/evals/step_N/TASK/cell.json       the order and the outcome; written whole
    RUN/evals/step_N/TASK/samples.jsonl   one line for each request
    RUN/evals/step_N/.TASK.lock           held while a process works on the cell
    RUN/evals/step_N/.plan.lock           held for the moment in which a cell is planned, or its lock is taken

A result of the first samples only (``limit``) lies in ``TASK.limitN``, so that a try never replaces the real thing. A
cell whose order changed (another checkpoint under the same name, other settings) is kept beside it, hidden.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from vlmkit.config import EvalSuiteConfig
from vlmkit.errors import UserError
from vlmkit.evaluation.samples import read_samples
from vlmkit.evaluation.typed import typed
from vlmkit.paths import RunPaths, first_free, held_lock, is_locked, whole_file
from vlmkit.pretrained.files import file_stamps, find_folder, fingerprint

CELL_FILE = "cell.json"
CHECKPOINT_FILE = ".checkpoint.json"  # in the folder of the cells: which checkpoint they are to be of
FORMAT = 1  # goes up when an older cell.json means something else


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint to evaluate, and the folder for its cells; its merged result lies beside that: step_N.json."""

    checkpoint: str  # a folder or a hub id
    step: int | None  # None outside a run
    folder: Path

    @classmethod
    def of_run(cls, paths: RunPaths, step: int) -> Self:
        """A run's own checkpoint."""
        return cls(str(paths.checkpoint(step)), step, paths.cells(step))


@dataclass(frozen=True, slots=True)
class Order:
    """What a cell is to answer, and how."""

    task: str
    checkpoint: str  # a folder or a hub id: where it was when this was ordered
    step: int | None
    fingerprint: str  # of what the checkpoint holds
    lmms_eval: str  # its version: prompts and scores are its own
    limit: int | None
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    local_data: str | None
    batch_size: int
    max_errors: int

    @property
    def key(self) -> str:
        """16 hex digits, the same for orders that have the same result."""
        changes_nothing = ("checkpoint", "step", "batch_size", "max_errors")
        identity = {name: value for name, value in asdict(self).items() if name not in changes_nothing}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder_name(self) -> str:
        """Of its cell."""
        return cell_name(self.task, self.limit)


class CellState(Enum):
    """How far a cell is. That a process works on it now is not in the file: see ``Cell.is_held``."""

    planned = "planned"
    begun = "begun"
    done = "done"
    failed = "failed"


class Aggregation(Enum):
    """How the scores of samples become the score of a task; a stratum is a part of the task, a subject for instance."""

    mean = "mean"
    mean_of_strata = "mean_of_strata"  # each stratum's mean counts the same
    sum_of_strata = "sum_of_strata"  # the strata's means, added
    sum_per_1000 = "sum_per_1000"  # the scores' sum divided by 1000, however many samples there are


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that a task gives."""

    value: float  # as lmms-eval's own code aggregates it
    n: int  # samples
    aggregation: Aggregation | None = None  # None: the value is no known function of the samples' scores
    stderr: float | None = None  # None: not known
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell as its cell.json has it."""

    folder: Path
    order: Order
    state: CellState = CellState.planned
    reason: str | None = None  # why it failed, in one line
    requests: int | None = None  # how many there are; known once begun
    errors: int = 0  # samples that could not be answered
    metrics: dict[str, Metric] = field(default_factory=dict)  # metric, with _FILTER behind it for a filter but "none"
    provenance: dict[str, Any] = field(default_factory=dict)

    def is_result_of(self, order: Order) -> bool:
        """Whether nothing is left to do for an order; it may allow fewer errors than there were allowed here."""
        return self.state is CellState.done and self.order.key == order.key and self.errors <= order.max_errors

    @property
    def is_held(self) -> bool:
        """Whether another process works on it now."""
        return is_locked(self.lock)

    @property
    def answered(self) -> int:
        """How many requests have an answer, not an error."""
        return sum("error" not in line for line in read_samples(self.folder).values())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the cell; the lock goes with the process, however it ends.

        What was known of the cell before may have changed: read it again.

        Raises:
            BlockingIOError: Another process holds it.
        """
        with ExitStack() as stack:
            with _planning(self.folder.parent):
                stack.enter_context(held_lock(self.lock, wait=False))
            yield

    @property
    def lock(self) -> Path:
        """Beside the folder, which may be put aside."""
        return self.folder.with_name(f".{self.folder.name}.lock")

    def changed(self, **changes: Any) -> "Cell":
        """Write cell.json with these changes, and give the cell that it is then."""
        cell = replace(self, **changes)
        with whole_file(self.folder / CELL_FILE) as temporary:
            temporary.write_text(json.dumps(_to_json(cell), indent=2, ensure_ascii=False) + "\n")
        return cell


def cell_name(task: str, limit: int | None) -> str:
    """Of the folder of a cell, inside that of its checkpoint."""
    return task if limit is None else f"{task}.limit{limit}"


def order_cell(subject: Subject, task: str, suite: EvalSuiteConfig, checkpoint_fingerprint: str) -> Order:
    """What the suite asks of a checkpoint on one of its tasks."""
    return Order(
        task=task,
        checkpoint=subject.checkpoint,
        step=subject.step,
        fingerprint=checkpoint_fingerprint,
        lmms_eval=_lmms_eval_version(),
        limit=suite.limit,
        max_new_tokens=suite.max_new_tokens,
        temperature=suite.temperature,
        top_p=suite.top_p,
        seed=suite.seed,
        local_data=suite.local_data and str(Path(suite.local_data).expanduser().absolute()),
        batch_size=suite.batch_size,
        max_errors=suite.max_errors,
    )


def plan_cell(folder: Path, order: Order, force: bool = False) -> Cell:
    """The cell of an order: the one that is there if it is of the same order, else a new one, planned.

    Args:
        folder: For the cells of the checkpoint.
        order: What is to be answered.
        force: Plan it anew even so.

    Raises:
        UserError: A process works there on another order.
    """
    new = Cell(folder / order.folder_name, order)
    with _planning(folder):
        there = read_cell(new.folder)
        if there and not force and there.is_result_of(order):
            return there
        if there and not force and there.order.key == order.key:  # it goes on
            state = CellState.begun if there.state is CellState.done else there.state
            going_on = replace(there, order=order, state=state)
            # Who is only told the folder must find what is wanted now there; who holds it, knows.
            return going_on if going_on == there or there.is_held else going_on.changed()
        if new.is_held:
            raise UserError(f"{new.folder}: a process answers it now in another way: wait for it, or end it")
        if new.folder.is_dir() and any(new.folder.iterdir()):
            _put_aside(new.folder, there.order.key[:8] if there else "unreadable")
        new.folder.mkdir(exist_ok=True)
        return new.changed()


@contextmanager
def _planning(folder: Path) -> Iterator[None]:
    """Wait until no other process plans one of a checkpoint's cells, or begins to hold one."""
    with held_lock(folder / ".plan.lock", wait=True):
        yield


def read_cell(folder: Path) -> Cell | None:
    """The cell in a folder; None if there is none, or what is there cannot be read as one."""
    try:
        said = json.loads((folder / CELL_FILE).read_text())
        if said["format"] != FORMAT:
            return None
        metrics = {name: _read_metric(metric) for name, metric in said["metrics"].items()}
        order, state = typed(Order, **said["order"]), CellState(said["state"])
        rest = {name: said[name] for name in ("reason", "requests", "errors", "provenance")}
        return typed(Cell, folder=folder, order=order, state=state, metrics=metrics, **rest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_metric(said: dict[str, Any]) -> Metric:
    return typed(Metric, **said | {"aggregation": said["aggregation"] and Aggregation(said["aggregation"])})


def read_cells(folder: Path) -> list[Cell]:
    """All cells of a checkpoint, by name; what is no cell, or a copy of one, is passed over."""
    names = sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))
    cells = [cell for path in names if (cell := read_cell(path))]
    return [cell for cell in cells if cell.folder.name == cell.order.folder_name]


def checkpoint_fingerprint(subject: Subject) -> str:
    """The fingerprint of a checkpoint's content, read again only where a file has changed since.

    Raises:
        ConfigError: There is no such checkpoint.
    """
    folder = find_folder(subject.checkpoint, "ckpt", with_weights=True)
    stamps = file_stamps(folder)
    known, known_stamps = _known_checkpoint(subject.folder)
    if known is not None and known_stamps == stamps:
        return known
    found = fingerprint(folder)
    with whole_file(subject.folder / CHECKPOINT_FILE) as temporary:
        temporary.write_text(json.dumps({"fingerprint": found, "files": stamps}))
    return found


def current_fingerprint(folder: Path) -> str | None:
    """Which checkpoint a folder of cells is about: the one they were last planned for, else that of the newest cell."""
    known, _ = _known_checkpoint(folder)
    if known is not None:
        return known
    cells = read_cells(folder)
    return max(cells, key=_last_change).order.fingerprint if cells else None


def _known_checkpoint(folder: Path) -> tuple[str | None, Any]:
    """Its fingerprint when cells were last planned here, and the stamps of its files then."""
    try:
        said = json.loads((folder / CHECKPOINT_FILE).read_text())
        return str(said["fingerprint"]), said["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _last_change(cell: Cell) -> int:
    """When its file was last written, in ns; 0 if it has gone meanwhile."""
    try:
        return (cell.folder / CELL_FILE).stat().st_mtime_ns
    except OSError:
        return 0


def _put_aside(folder: Path, what: str) -> None:
    """Rename the folder of a cell to a hidden name that is free."""
    folder.rename(first_free(lambda number: folder.with_name(f".{folder.name}.{what}.{number}")))


def _to_json(cell: Cell) -> dict[str, Any]:
    said = asdict(cell) | {"format": FORMAT, "key": cell.order.key, "state": cell.state.value}
    del said["folder"]
    for metric in said["metrics"].values():
        metric["aggregation"] = metric["aggregation"] and metric["aggregation"].value
    return said


def _lmms_eval_version() -> str:
    try:
        return version("lmms-eval")
    except PackageNotFoundError:
        return "none"
