"""RUN/metrics.jsonl, and any file with one JSON object a line that a resumed run cuts back."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vlmkit.paths import whole_file

STEP_KEY = "global_step"
FIRST_LOOK_BYTES = 1 << 16  # at the end of a file
EVAL_STEP_KEY = "<lmms-eval-step>"  # of the checkpoint, in rows of evaluation results: these have no global_step


class JsonlTracker:
    """RUN/metrics.jsonl: one object a line, one line a step, and lines of evaluation results, which come when they do.

    It is the truth: the lines after the step that a run resumes from are taken out, and the steps are then run again.
    """

    def __init__(self, path: Path, resumed_step: float) -> None:
        """Open it.

        Args:
            path: The file.
            resumed_step: Later steps are cut; infinity where no step is run again.
        """
        self._path = path
        self._last_step = -1
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            keep_lines_up_to(path, resumed_step, STEP_KEY)
            self._last_step = max((row.get(STEP_KEY, -1) for row in read_rows(path)), default=-1)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line; NaN and infinities become null, as JSON has none."""
        finite = {key: finite_or_none(value) for key, value in metrics.items()}
        if step <= self._last_step:
            self._add_to_line(step, finite)
        else:
            self._file.write(_line({STEP_KEY: step, **finite}))
            self._last_step = step

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        """Append a line with results of a checkpoint; what it had under the same keys before is superseded."""
        self._file.write(_line({EVAL_STEP_KEY: step, **{key: finite_or_none(value) for key, value in results.items()}}))

    def flush(self) -> None:
        """Wait until the lines are on disk: a checkpoint must not outlive the rows of its steps."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def is_complete(self) -> bool:
        """Always: what it cannot write, it raises."""
        return True

    def _add_to_line(self, step: int, metrics: dict[str, float | None]) -> None:
        """Write the file anew with more in the line of a step, whole or not at all."""
        with whole_file(self._path) as temporary, temporary.open("w", encoding="utf-8") as new:
            for row in read_rows(self._path):
                new.write(_line(row | metrics if row.get(STEP_KEY) == step else row))
        self._file.close()
        self._file = self._path.open("a", encoding="utf-8", buffering=1)


def finite_or_none(value: float) -> float | None:
    """A number that JSON has: None for NaN and infinities."""
    return value if math.isfinite(value) else None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def read_results(path: Path) -> dict[int, dict[str, float | None]]:
    """Step → key → what the last line says of it, for all evaluation results; the file may be being written."""
    found: dict[int, dict[str, float | None]] = {}
    for row in read_rows_so_far(path):
        if (step := row.pop(EVAL_STEP_KEY, None)) is not None:
            found.setdefault(step, {}).update(row)
    return found


def read_last_step(path: Path) -> int:
    """The last step that has a line; 0 if there is none. The file may be being written; mostly its end is enough."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        begins = [max(size - FIRST_LOOK_BYTES, 0), 0]
        return next((step for begin in begins if (step := _last_step_after(file, begin))), 0)


def _last_step_after(file: BinaryIO, begin: int) -> int:
    """The last step of the whole lines that begin after a place in a file; 0 if none of them has one."""
    file.seek(begin)
    if begin:
        file.readline()
    return max((row.get(STEP_KEY, 0) for _, row in _whole_lines(file)), default=0)


def read_rows_so_far(path: Path) -> Iterator[dict[str, Any]]:
    """The objects up to a line that is none, or is not whole; the file may be being written, or not be there."""
    if path.exists():
        with path.open("rb") as file:
            yield from (row for _, row in _whole_lines(file))


def keep_lines_up_to(path: Path, step: float, step_key: str) -> None:
    """Take later steps out of a file of JSON objects, and what a crash left of its end.

    A line that has no step stays. What is no object ends the file: lines up to a checkpoint were on disk before it.
    Only where there are later steps a new file takes its place: a process that appends to the old one, where a file
    system knows no locks, would write what nobody reads.
    """
    whole, goes_beyond = 0, False
    with path.open("rb") as file:
        for line, row in _whole_lines(file):
            whole += len(line)
            goes_beyond |= row.get(step_key, step) > step
        is_torn = file.tell() > whole
    if goes_beyond:
        with path.open("rb") as old, whole_file(path) as temporary, temporary.open("wb") as new:
            new.writelines(line for line, row in _whole_lines(old) if row.get(step_key, step) <= step)
    elif is_torn:
        os.truncate(path, whole)


def _whole_lines(file: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line and its object, up to the first that is none."""
    for line in file:
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not isinstance(row, dict) or not line.endswith(b"\n"):
            return
        yield line, row


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
