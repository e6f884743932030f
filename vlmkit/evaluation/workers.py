"""Who answers planned cells: processes on this machine, SLURM jobs, or a run's own processes (``runner.py``)."""

import math
import os
import random
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Protocol

import numpy as np
import torch

from vlmkit.config import ClusterConfig, EvalsConfig, EvalsWhere, TrainConfig, as_override
from vlmkit.distributed import Ranks
from vlmkit.errors import UserError, one_line
from vlmkit.evaluation.cells import Cell, CellState, read_cell
from vlmkit.evaluation.submission import (
    SECONDS_AT_THE_END,
    SECONDS_TO_SUBMIT,
    NoAnswerError,
    Submission,
    checkpoints_of,
    describe,
)
from vlmkit.interrupt import StopSignal
from vlmkit.launched import gpu_in_turn, own_environment
from vlmkit.logs import how_it_failed
from vlmkit.paths import whole_file
from vlmkit.redact import redact
from vlmkit.tracking.console import Screen

Say = Callable[[str], None]

EVAL_COMMAND = (sys.executable, "-m", "vlmkit.eval")
SECONDS_BETWEEN_LOOKS = 0.2  # at what is waited for
SECONDS_BETWEEN_LINES = 60.0
SECONDS_TO_LEAVE = 10.0  # for a process that was asked to end: after its batch, or else at once


class CellWorkers(Protocol):
    """Has planned cells answered. Each process of the run has one and calls it as the others do."""

    def start(self, cells: Sequence[Cell]) -> None:
        """Have cells of one checkpoint answered: before this returns, or by and by."""

    def poll(self) -> list[Cell]:
        """Look after what was started; return the cells that the run must wait for at its end."""

    def retry(self) -> None:
        """Try again, at the end of the run, what could not be started."""

    def close(self) -> None:
        """End what still works for this run alone; those cells go on with the run's next start."""


class NoWorkers:
    """Of a process that leaves it to the main one."""

    def start(self, cells: Sequence[Cell]) -> None:
        """Nothing."""

    def poll(self) -> list[Cell]:
        """Nothing to wait for."""
        return []

    def retry(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class InlineWorkers:
    """The run's own processes, all together: training waits, and is afterwards as if nothing had been."""

    def __init__(self, screen: Screen, stop: StopSignal, ranks: Ranks) -> None:
        self._screen = screen.beside_a_bar()
        self._stop = stop
        self._ranks = ranks

    def start(self, cells: Sequence[Cell]) -> None:
        """Answer the cells with the checkpoint as it lies there; a signal ends that after a batch.

        What goes wrong is a line, and training goes on: the run's next start tries again.

        Raises:
            Exception: One of several processes failed, and the others cannot go on without it.
        """
        from vlmkit.evaluation.runner import CellRunner  # lmms-eval takes seconds

        try:
            with undisturbed(self._ranks.device):
                CellRunner(self._ranks, self._screen, self._stop).run(cells)
        except Exception as error:  # a second model that finds no room beside the first, for one
            if self._ranks.world_size > 1:
                raise
            reason = one_line(error)
            self._screen.say(f"warning: {cells[0].folder.parent.name} is not evaluated now: {reason}")

    def poll(self) -> list[Cell]:
        """Nothing goes on."""
        return []

    def retry(self) -> None:
        """Nothing: the run's next start does."""

    def close(self) -> None:
        """Nothing."""


@dataclass(slots=True)
class _Child:
    cells: Sequence[Cell]
    slot: int
    process: subprocess.Popen[bytes]
    log: Path


class LocalWorkers:
    """Processes ``python -m vlmkit.eval cells=[…]`` on this machine, a few at once, each with cells of one checkpoint.

    A signal to the run's process group does not reach them: the run ends them itself. After a kill -9 of the run they
    work on, and the next start leaves them the cells that they hold.
    """

    def __init__(self, config: EvalsConfig, say: Say, command: Sequence[str] = EVAL_COMMAND) -> None:
        self._command = command
        self._workers = config.workers
        self._gpus = config.gpus
        self._say = say
        self._waiting: deque[Sequence[Cell]] = deque()
        self._children: list[_Child] = []

    def start(self, cells: Sequence[Cell]) -> None:
        """Share the cells among as many processes as there may be; each loads the checkpoint once."""
        shares = [cells[number :: self._workers] for number in range(self._workers)]
        self._waiting += filter(None, shares)
        self._fill_up()

    def poll(self) -> list[Cell]:
        """See who has ended, tell what went wrong, start who waits."""
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            hide_secrets(child.log)
            for line in describe_end(child.cells, child.process.returncode, child.log):
                self._say(f"warning: {line}")
        self._fill_up()
        shares = [*(child.cells for child in self._children), *self._waiting]
        return [cell for share in shares for cell in share]

    def retry(self) -> None:
        """Nothing: the run's next start does."""

    def close(self) -> None:
        """Ask all to end, and wait until they have; what they have answered is on disk."""
        self._waiting.clear()
        for child in self._children:
            child.process.terminate()
        deadline = monotonic() + SECONDS_TO_LEAVE
        for child in self._children:
            try:
                child.process.wait(max(deadline - monotonic(), 0))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            hide_secrets(child.log)
        self._children.clear()

    def _fill_up(self) -> None:
        while self._waiting and len(self._children) < self._workers:
            slot = min(set(range(self._workers)) - {child.slot for child in self._children})
            cells = self._waiting.popleft()
            try:
                self._children.append(self._start_child(cells, slot))
            except OSError as error:
                self._say(f"warning: cannot start an evaluation of {cells[0].folder.parent.name}: {error}")

    def _start_child(self, cells: Sequence[Cell], slot: int) -> _Child:
        log = free_log(cells[0].folder.parent)
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self._command, named_cells(cells)],
                env=own_environment(os.environ) | gpu_in_turn(self._gpus, slot),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return _Child(cells, slot, process, log)


class SlurmWorkers:
    """SLURM jobs, one for each cell. They are handed over beside the run, which waits neither for SLURM nor for them.

    What is not taken is handed over again with the next cells, and at the end of the run, if SLURM answers at all.
    """

    def __init__(
        self, submit: Callable[[Sequence[Cell], float], Submission], say: Say, settings: str = "evals=slurm"
    ) -> None:
        """Nothing is handed over yet.

        Args:
            submit: Begins to hand cells over; it has so many seconds.
            say: Gets a line for each time.
            settings: What a command needs that hands over the same by hand.
        """
        self._submit = submit
        self._say = say
        self._settings = settings
        self._is_at_end = False  # the run waits for nothing else
        self._is_silent = False  # SLURM, when it was asked last
        self._open: list[Cell] = []  # not taken yet
        self._wanted = False  # whether they are handed over as soon as no other submission is under way
        self._submission: Submission | None = None

    def start(self, cells: Sequence[Cell]) -> None:
        """Hand over the cells, and those that were not taken before."""
        self._open += cells
        self._wanted = True
        self._begin()

    def retry(self) -> None:
        """With the next look hand over what was not taken, unless SLURM does not answer: a run must end."""
        self._wanted = self._is_at_end = True

    def poll(self) -> list[Cell]:
        """See what became of a submission; what is not handed over yet is waited for as long as one is under way."""
        if self._submission is not None:
            self._look(self._submission)
        self._begin()
        return self._open if self._submission is not None else []

    def close(self) -> None:
        """Let a submission end if it does so soon; say what is not handed over, and how it can be."""
        deadline = monotonic() + SECONDS_TO_LEAVE
        while self._submission is not None and monotonic() < deadline:
            sleep(SECONDS_BETWEEN_LOOKS)
            self._look(self._submission)
        if self._submission is not None:
            self._submission.close()
            self._submission = None
        if self._open:
            names = ", ".join(f"{cell.folder.parent.name} {cell.folder.name}" for cell in self._open)
            again = f"python -m vlmkit.eval {shlex.quote(named_cells(self._open))} {self._settings}"
            self._say(f"warning: not handed over to SLURM: {names}; the run's next start does it, or: {again}")

    def _begin(self) -> None:
        if self._submission is not None or not (self._wanted and self._open) or (self._is_at_end and self._is_silent):
            return
        self._wanted = False
        try:
            limit_s = SECONDS_AT_THE_END if self._is_at_end else SECONDS_TO_SUBMIT
            self._submission = self._submit(tuple(self._open), limit_s)
        except OSError as error:
            self._warn(self._open, error)

    def _look(self, submission: Submission) -> None:
        try:
            result = submission.poll()
            if result is None:
                return
            self._is_silent = False
            taken = [cell for cell in submission.cells if str(cell.folder) not in result.left]
            self._open = [cell for cell in self._open if cell not in taken]
            for line in describe(submission.cells, result):
                self._say(line)
        except UserError as error:
            self._is_silent = isinstance(error, NoAnswerError)
            self._warn(submission.cells, error)
        self._submission = None

    def _warn(self, cells: Sequence[Cell], error: Exception) -> None:
        self._say(f"warning: evaluations of {checkpoints_of(cells)} are not handed over to SLURM now: {error}")


def build_workers(config: TrainConfig, screen: Screen, stop: StopSignal, ranks: Ranks) -> CellWorkers:
    """Those that ``evals`` asks for, of this process of the run."""
    evals = config.evals
    match evals.where:
        case EvalsWhere.inline:
            return InlineWorkers(screen, stop, ranks)
        case EvalsWhere.local if ranks.is_main:
            return LocalWorkers(evals, screen.say)
        case EvalsWhere.slurm if ranks.is_main:
            settings = "evals=slurm" if config.cluster == ClusterConfig() else "evals=slurm cluster=…"
            return SlurmWorkers(
                lambda cells, limit_s: Submission(cells, evals, config.cluster, limit_s), screen.say, settings
            )
        case _:
            return NoWorkers()


def answer_beside(cells: Sequence[Cell], config: EvalsConfig, screen: Screen, stop: StopSignal) -> None:
    """Have cells of any checkpoints answered by processes on this machine, and wait until all are; a signal ends it."""
    waiting = Waiting(screen)
    with closing(LocalWorkers(config, screen.say)) as workers:
        for folder in dict.fromkeys(cell.folder.parent for cell in cells):
            workers.start([cell for cell in cells if cell.folder.parent == folder])
        while (under_way := workers.poll()) and not stop.received:
            waiting.pause(under_way)


class Waiting:
    """For cells that others answer: a line now and then says how far they are."""

    def __init__(self, screen: Screen, what: str = "evaluations") -> None:
        self._screen = screen
        self._what = what
        self._told = -math.inf

    def pause(self, cells: Sequence[Cell]) -> None:
        """A moment, between two looks."""
        if monotonic() - self._told >= SECONDS_BETWEEN_LINES:
            self._screen.say(f"waiting for {self._what}: {describe_waiting(cells)}")
            self._told = monotonic()
        sleep(SECONDS_BETWEEN_LOOKS)


def describe_waiting(cells: Sequence[Cell]) -> str:
    """How far each is."""
    return ", ".join(_describe_progress(read_cell(cell.folder) or cell) for cell in cells)


def _describe_progress(cell: Cell) -> str:
    where = f"{cell.folder.parent.name} {cell.folder.name}"
    return where if cell.requests is None else f"{where} ({cell.answered:,} of {cell.requests:,} answered)"


def named_cells(cells: Sequence[Cell]) -> str:
    """The argument of ``vlmkit.eval`` that names planned cells."""
    return f"cells=[{','.join(as_override(str(cell.folder)) for cell in cells)}]"


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What is drawn afterwards, with Python's, numpy's and torch's generators, is as if the block had not been."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def free_log(folder: Path) -> Path:
    """A name for the log of one more process, beside the cells of a checkpoint."""
    taken = [int(path.stem[5:]) for path in folder.glob("eval_*.log") if path.stem[5:].isdecimal()]
    return folder / f"eval_{max(taken, default=0) + 1}.log"


def hide_secrets(log: Path) -> None:
    """What libraries print is not the evaluation's to choose; what it prints itself has none."""
    with suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
        if redact(text) != text:
            with whole_file(log) as temporary:
                temporary.write_text(redact(text), encoding="utf-8")


def describe_end(cells: Sequence[Cell], returncode: int, log: Path) -> list[str]:
    """A line for each cell that a process leaves without a result, which it was to give it."""
    lines = []
    for cell in cells:
        now = read_cell(cell.folder) or cell
        where = f"{cell.folder.parent.name}: {cell.folder.name}"
        if now.state is CellState.failed:
            lines.append(f"{where}: {now.reason}; see {log}")
        elif now.state is not CellState.done and not now.is_held:
            lines.append(f"{where}: {how_it_failed(returncode, log)}; see {log}")
    return lines
