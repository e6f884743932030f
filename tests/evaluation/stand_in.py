"""Stands in for ``python -m vlmkit.eval cells=[…]`` where it is not the answers that matter: takes no seconds to start.

What it makes of a cell its task says: ``crash``, ``killed``, ``fail``, ``wait`` (until it is ended), or anything
else: a score.
"""

import os
import signal
import sys
from pathlib import Path

from vlmkit.evaluation.cells import CellState, Metric, read_cell

COMMAND = (sys.executable, __file__)


def answer(folder: Path) -> None:
    cell = read_cell(folder)
    assert cell is not None
    with cell.held():
        cell = cell.changed(state=CellState.begun, requests=4)
        if cell.order.task == "crash":
            sys.exit("error: it broke; key hf_abcdefghijklmnopqrstuvwxyz")
        if cell.order.task == "killed":
            os.write(1, b"answering\n")
            os.kill(os.getpid(), signal.SIGKILL)
        if cell.order.task == "fail":
            cell.changed(state=CellState.failed, reason="no data")
        elif cell.order.task == "wait":
            signal.pause()
        else:
            seen = {name: os.environ.get(name) for name in ("RANK", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "KEPT")}
            metrics = {"acc": Metric(0.5, n=4, stderr=0.01)}
            cell.changed(state=CellState.done, metrics=metrics, provenance={"pid": os.getpid(), "environment": seen})


if __name__ == "__main__":
    named = sys.argv[1].removeprefix("cells=[").removesuffix("]")
    for text in named.split(","):
        answer(Path(text.strip("'")))
