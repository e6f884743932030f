"""Cells on disk, made without a model."""

import json
from pathlib import Path

from vlmkit.config import EvalSuiteConfig
from vlmkit.evaluation.cells import (
    Cell,
    CellState,
    Metric,
    Subject,
    checkpoint_fingerprint,
    order_cell,
    plan_cell,
)
from vlmkit.paths import RunPaths


def checkpoint(paths: RunPaths, step: int) -> None:
    """A folder that looks like a whole checkpoint."""
    folder = paths.checkpoint(step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"step": step}))
    (folder / "model.safetensors").write_bytes(b"weights")


def planned(paths: RunPaths, step: int, task: str, limit: int | None = None) -> Cell:
    """A cell that was ordered."""
    subject = Subject.of_run(paths, step)
    fingerprint = checkpoint_fingerprint(subject) if paths.checkpoint(step).is_dir() else "a fingerprint"
    return plan_cell(subject.folder, order_cell(subject, task, EvalSuiteConfig(limit=limit), fingerprint))


def begun(paths: RunPaths, step: int, task: str, requests: int = 4, answered: int = 2) -> Cell:
    """A cell of which some requests have an answer."""
    cell = planned(paths, step, task).changed(state=CellState.begun, requests=requests)
    lines = [json.dumps({"index": index, "answer": "yes"}) + "\n" for index in range(answered)]
    (cell.folder / "samples.jsonl").write_text("".join(lines))
    return cell


def done(
    paths: RunPaths, step: int, task: str, value: float, stderr: float | None = 0.01, limit: int | None = None
) -> Cell:
    """A cell with one metric."""
    metrics = {"acc": Metric(value, n=4, stderr=stderr)}
    return planned(paths, step, task, limit).changed(state=CellState.done, requests=4, metrics=metrics)


def failed(paths: RunPaths, step: int, task: str, reason: str) -> Cell:
    """A cell that has no score."""
    return planned(paths, step, task).changed(state=CellState.failed, reason=reason)


def folders(cells: list[Cell]) -> list[Path]:
    """Where they are."""
    return [cell.folder for cell in cells]
