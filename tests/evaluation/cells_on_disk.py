"""Evaluation cells as a runner leaves them on disk, without a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmkit.evaluation.cells import CHECKPOINT_FILE, Aggregation, Cell, CellState, Metric, Order, plan_cell
from vlmkit.evaluation.samples import Line, rewrite
from vlmkit.evaluation.statistics import aggregate, standard_error

FINGERPRINT = "0123456789abcdef"


def make_order(task: str, **changes: Any) -> Order:
    """An order of all samples of a task."""
    usual = {
        "checkpoint": "checkpoints/step_500",
        "step": 500,
        "fingerprint": FINGERPRINT,
        "lmms_eval": "0.7.3",
        "limit": None,
        "max_new_tokens": 16,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "local_data": None,
        "batch_size": 8,
        "max_errors": 0,
    }
    return Order(task=task, **(usual | changes))


def planned_cell(folder: Path, task: str, **changes: Any) -> Cell:
    """A cell that nobody has begun."""
    return plan_cell(folder, make_order(task, **changes))


def unfinished_cell(folder: Path, task: str, state: CellState, **changes: Any) -> Cell:
    """A cell that was planned, begun, or has failed."""
    reason = "ValueError: no such thing" if state is CellState.failed else None
    return planned_cell(folder, task, **changes).changed(state=state, reason=reason)


def done_cell(
    folder: Path,
    task: str,
    scores: Sequence[float],
    metric: str = "exact_match",
    aggregation: Aggregation = Aggregation.mean,
    strata: Sequence[str] | None = None,
    clusters: Sequence[str] | None = None,
    lines: Sequence[Line] = (),
    **changes: Any,
) -> Cell:
    """A cell with a score for each document.

    Args:
        folder: Of the checkpoint's cells.
        task: Of lmms-eval, or a made-up one.
        scores: One for each document, in order.
        metric: The task's only one.
        aggregation: How the metric comes from the scores.
        strata: Of the documents; all are in one if there are none.
        clusters: Of the documents; each is alone if there are none.
        lines: What the first lines of samples.jsonl say otherwise.
        **changes: To the order.
    """
    strata = strata or [""] * len(scores)
    clusters = clusters or [str(number) for number in range(len(scores))]
    written: list[Line] = [
        {
            "index": number,
            "doc_id": number,
            "prompt": f"<image>question {number}?",
            "pictures": [f"{number:016x}"],
            "answer": "right" if score else "wrong",
            "target": "right",
            "scores": {metric: score},
            "strata": {metric: strata[number]},
            "cluster": clusters[number],
        }
        for number, score in enumerate(scores)
    ]
    for line, other in zip(written, lines, strict=False):
        line |= other
    cell = planned_cell(folder, task, **changes)
    rewrite(cell.folder, written)
    number = Metric(
        value=aggregate(scores, strata, aggregation),
        n=len(scores),
        aggregation=aggregation,
        stderr=standard_error(scores, strata, clusters, aggregation),
    )
    return cell.changed(
        state=CellState.done, requests=len(scores), metrics={metric: number}, provenance={"finished": "2026-11-24"}
    )


def say_checkpoint(folder: Path, fingerprint: str) -> None:
    """Which checkpoint the cells of a folder are to be of, as planning writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKPOINT_FILE).write_text(json.dumps({"fingerprint": fingerprint, "files": {}}))
