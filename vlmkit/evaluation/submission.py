"""Planned cells are handed over to SLURM by a process of its own: SLURM's controller may let it wait for minutes.

It gets a JSON object on standard input (``_request``) and answers with one as its last line, or with a line
``error: …`` and code 1. That is all that is known here of how jobs are made: ``launchers/`` has the default one.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic, sleep
from typing import Any, BinaryIO

from vlmkit.config import ClusterConfig, EvalsConfig
from vlmkit.errors import UserError
from vlmkit.evaluation.cells import Cell
from vlmkit.evaluation.typed import typed
from vlmkit.launched import submission_environment

SECONDS_TO_SUBMIT = 300.0  # a submitter that takes longer is ended
SECONDS_AT_THE_END = 60.0  # the same, when a run waits for nothing else
SECONDS_BETWEEN_LOOKS = 0.05


class NoAnswerError(UserError):
    """SLURM did not answer in time."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What became of cells that were to be handed over."""

    job: str | None  # the job, or array of jobs, that answers those that are in no other list; None: there are none
    merge: str | None  # the job that merges their results; None: they need none, or SLURM did not take it
    done: list[str]  # folders of cells that need no job
    under_way: list[str]  # of those that have one, or that a process answers now
    left: list[str]  # of those that SLURM did not take
    warning: str  # why it did not, or why there is no job that merges, if there should be one


class Submission:
    """A process that hands cells over, of one run or of none."""

    def __init__(
        self, cells: Sequence[Cell], evals: EvalsConfig, cluster: ClusterConfig, limit_s: float = SECONDS_TO_SUBMIT
    ) -> None:
        """Start it, with nothing of the run or the job that this process may be part of.

        Raises:
            OSError: There is no room for one more process or its files.
        """
        self.cells = cells
        self._limit_s = limit_s
        self._deadline = monotonic() + limit_s
        # Files, not pipes, which would have to be emptied, or whose other end may take a while to be.
        with ExitStack() as files, TemporaryFile() as request:
            self._answer = files.enter_context(TemporaryFile())
            self._errors = files.enter_context(TemporaryFile())
            request.write(json.dumps(_request(cells, evals, cluster)).encode())
            request.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-m", evals.submitter],
                env=submission_environment(os.environ),
                stdin=request,
                stdout=self._answer,
                stderr=self._errors,
                start_new_session=True,
            )
            self._files = files.pop_all()

    def poll(self) -> HandedOver | None:
        """What became of the cells; None while it is not known yet.

        Raises:
            NoAnswerError: SLURM did not answer in time, and is left.
            UserError: They were not handed over; the message is SLURM's.
        """
        code = self._process.poll()
        if code is None:
            if monotonic() < self._deadline:
                return None
            self.close()
            raise NoAnswerError(f"SLURM did not answer within {self._limit_s:g} s")
        answer, errors = _last_line(self._answer), _last_line(self._errors)
        self.close()
        if code != 0:
            raise UserError(errors.removeprefix("error: ") or f"the process that does it ended with {code}")
        try:
            return typed(HandedOver, **json.loads(answer))
        except (ValueError, TypeError) as error:
            raise UserError(f"the process that does it answered {answer!r}") from error

    def wait(self) -> HandedOver:
        """The same, but wait for it.

        Raises:
            UserError: They were not handed over; the message is SLURM's.
        """
        while (result := self.poll()) is None:
            sleep(SECONDS_BETWEEN_LOOKS)
        return result

    def close(self) -> None:
        """End it, with what it has started, if it still works; a job that nobody has noted down then does no harm."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._files.close()


def describe(cells: Sequence[Cell], result: HandedOver) -> list[str]:
    """A line, or two, for a person."""
    new = len(cells) - len(result.done) - len(result.under_way) - len(result.left)
    told = [] if result.job is None else [f"{new} handed over to SLURM as job {result.job}"]
    told += [] if result.merge is None else [f"merged by job {result.merge}"]
    told += [f"{len(result.under_way)} under way already"] if result.under_way else []
    told += [f"{len(result.done)} done already"] if result.done else []
    told += [f"{len(result.left)} not taken"] if result.left else []
    warnings = [f"warning: {result.warning}"] if result.warning else []
    return [f"evaluations of {checkpoints_of(cells)}: {', '.join(told)}", *warnings]


def checkpoints_of(cells: Iterable[Cell]) -> str:
    """Their names."""
    return ", ".join(dict.fromkeys(cell.folder.parent.name for cell in cells))


def by_run(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells of each run, or of each folder with checkpoints of none."""
    return [list(group) for _, group in groupby(sorted(cells, key=_evals_folder), key=_evals_folder)]


def _evals_folder(cell: Cell) -> Path:
    return cell.folder.parent.parent


def _request(cells: Sequence[Cell], evals: EvalsConfig, cluster: ClusterConfig) -> dict[str, Any]:
    """What the submitter must know; ``run`` is what is merged afterwards: cells outside a run merge themselves."""
    is_of_run = any(cell.order.step is not None for cell in cells)
    return {
        "run": str(_evals_folder(cells[0]).parent) if is_of_run else None,
        "cells": [str(cell.folder) for cell in cells],
        "job": asdict(evals.job_on(cluster)),
        "parallelism": evals.parallelism,
    }


def _last_line(file: BinaryIO) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
