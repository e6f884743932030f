"""From the cells of a checkpoint to its result on all tasks, beside their folder: evals/step_N.json.

Each merge makes the file anew from the cells, so it can be run at any time, by several at once, while cells are
answered. Of a task the largest finished cell counts. Nothing is deleted, and what the file said before is not lost:

- results of a cell that is no longer there stay, marked ``cell_is_gone``;
- files of the reference, step_N.json and step_N_TASK.json, are imported; what a cell found goes before them;
- results of another checkpoint that had this step's name, and imported ones that a cell found too, are kept as
  ``superseded``: the results of a file are of one checkpoint.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vlmkit.evaluation.cells import CELL_FILE, Cell, CellState, Metric, current_fingerprint, read_cells
from vlmkit.evaluation.merged import (
    IMPORTED,
    STEP_FILE,
    Merged,
    Numbers,
    Source,
    finite_numbers,
    merged_path,
    read_merged,
)
from vlmkit.jobs import JobPlace, JobState, read_job, read_report
from vlmkit.paths import RunPaths, held_lock

Imports = dict[str, tuple[float, str]]  # key of a result → its value, and the file it was in


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of an order."""

    task: str
    source: Source
    metrics: dict[str, Metric]  # by the keys of their results; empty: none
    why_missing: str = ""

    @property
    def limit(self) -> int | None:
        return self.source.limit

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint


def merge_run(paths: RunPaths, imported: Path | None = None) -> list[Merged]:
    """Merge the results of each step of a run.

    Args:
        paths: The run.
        imported: A folder with files of the reference.
    """
    merged = [merge_subject(paths.cells(step), imported) for step in _known_steps(paths, imported)]
    return [each for each in merged if each is not None]


def results_now(paths: RunPaths) -> dict[int, Merged]:
    """Step → what is known of its checkpoint now; nothing is written."""
    found = {step: merged_now(paths.cells(step)) for step in _known_steps(paths)}
    return {step: merged for step, merged in found.items() if merged is not None}


def _known_steps(paths: RunPaths, imported: Path | None = None) -> list[int]:
    """The steps that have cells, or files of results."""
    folders = [folder for folder in (paths.evals, imported) if folder is not None]
    steps = {step for folder in folders for path in folder.glob("step_*.json") if (step := _step_of(path)) is not None}
    return sorted({*paths.evaluated_steps, *steps})


def merge_subject(folder: Path, imported: Path | None = None) -> Merged | None:
    """Merge what is known of a checkpoint into the file beside the folder of its cells.

    Args:
        folder: Of the cells; it need not be there.
        imported: A folder with files of the reference, besides those that lie beside ``folder``.

    Returns:
        None if nothing is known; then nothing is written.
    """
    if not folder.parent.is_dir() and imported is None:
        return None
    path = merged_path(folder)
    # Held while reading too, or an older view could overwrite a newer one.
    with held_lock(folder.with_name(f".{path.name}.lock"), wait=True):
        merged = merged_now(folder, imported)
        if merged is not None:
            merged.write()
    return merged


def merged_now(folder: Path, imported: Path | None = None) -> Merged | None:
    """The same without writing: what the file beside a folder of cells would say now."""
    path = merged_path(folder)
    nothing = Merged(path, _step_of(path))
    merged = _merge(folder, read_merged(path) or nothing, imported)
    return None if merged == nothing else merged


def counted_cells(folder: Path) -> dict[str, Cell]:
    """Task → the cell whose results count: finished, of the folder's checkpoint, on the most samples."""
    fingerprint = current_fingerprint(folder)
    done = [cell for cell in read_cells(folder) if cell.order.fingerprint == fingerprint and _metrics(cell)]
    return {cell.order.task: cell for cell in sorted(done, key=lambda cell: _reach(cell.order.limit))}


def _merge(folder: Path, earlier: Merged, imported: Path | None) -> Merged:
    cells = read_cells(folder)
    current = current_fingerprint(folder) or next((source.fingerprint for source in earlier.sources.values()), None)
    outcomes = [*map(_outcome_of_cell, cells), *_outcomes_of_file(earlier)]
    own = [outcome for outcome in outcomes if outcome.fingerprint == current]
    chosen, missing = _choose(own)
    for cell in cells:
        if cell.order.task not in {outcome.task for outcome in own}:
            missing[cell.order.task] = "its cell is of another checkpoint"
    metrics = {key: metric for outcome in chosen.values() for key, metric in outcome.metrics.items()}
    imports = _imports(folder, earlier, imported)
    without_cell = {key: imports[key] for key in sorted(imports.keys() - metrics.keys())}
    return Merged(
        path=earlier.path,
        step=_step_of(earlier.path),
        results={key: metric.value for key, metric in metrics.items()}
        | {key: value for key, (value, _) in without_cell.items()},
        stderr={key: metric.stderr for key, metric in metrics.items() if metric.stderr is not None},
        n={key: metric.n for key, metric in metrics.items()},
        missing=dict(sorted((missing | _unreadable(folder, cells)).items())),
        sources={task: outcome.source for task, outcome in chosen.items()},
        imported={key: file for key, (_, file) in without_cell.items()},
        superseded=_superseded(
            earlier,
            [outcome for outcome in outcomes if outcome.fingerprint != current],
            {key: imports[key][0] for key in sorted(imports.keys() & metrics.keys())},
        ),
    )


def _choose(outcomes: Iterable[_Outcome]) -> tuple[dict[str, _Outcome], dict[str, str]]:
    """Task → the outcome whose results count; and task → why its largest order has none.

    Of outcomes of the same order the first counts.
    """
    by_task: dict[str, dict[int | None, _Outcome]] = defaultdict(dict)
    for outcome in outcomes:
        by_task[outcome.task].setdefault(outcome.limit, outcome)
    chosen, missing = {}, {}
    for task, of_limit in sorted(by_task.items()):
        largest_first = sorted(of_limit.values(), key=lambda outcome: _reach(outcome.limit), reverse=True)
        if not largest_first[0].metrics:
            missing[task] = largest_first[0].why_missing
        if with_metrics := [outcome for outcome in largest_first if outcome.metrics]:
            chosen[task] = with_metrics[0]
    return chosen, missing


def _outcome_of_cell(cell: Cell) -> _Outcome:
    order, metrics = cell.order, _metrics(cell)
    source = Source(
        results=list(metrics),
        limit=order.limit,
        key=order.key,
        checkpoint=order.checkpoint,
        fingerprint=order.fingerprint,
        errors=cell.errors,
        made_with=cell.provenance,
    )
    return _Outcome(order.task, source, metrics, "" if metrics else _why_missing(cell))


def _outcomes_of_file(earlier: Merged) -> list[_Outcome]:
    """What an earlier merge took from cells; behind those that are there it says what those that have gone found."""
    found = []
    for task, source in earlier.sources.items():
        metrics = {
            key: Metric(earlier.results[key], earlier.n.get(key, 0), stderr=earlier.stderr.get(key))
            for key in source.results
            if key in earlier.results
        }
        if metrics:
            found.append(_Outcome(task, replace(source, results=list(metrics), cell_is_gone=True), metrics))
    return found


def _metrics(cell: Cell) -> dict[str, Metric]:
    """The metrics of a finished cell by the keys of their results; those that are no number are none."""
    if cell.state is not CellState.done:
        return {}
    numbers = finite_numbers({name: metric.value for name, metric in cell.metrics.items()})
    return {f"{cell.order.task}_{name}": cell.metrics[name] for name in numbers}


def _why_missing(cell: Cell) -> str:
    match cell.state:
        case CellState.planned | CellState.begun:
            return "; ".join(filter(None, [cell.state.value, _failure_of_job(cell)]))
        case CellState.failed:
            return f"failed: {cell.reason}"
        case CellState.done:
            return "gives no number"


def _failure_of_job(cell: Cell) -> str:
    """What the job that was to answer a cell said when it failed; one that SLURM ended could say nothing."""
    place = JobPlace.of_cell(cell.folder)
    job, report = read_job(place), read_report(place)
    if job is None or report is None or report.job_id != job.job_id or report.state is not JobState.failed:
        return ""
    return f"job {job.job_id} failed: {report.reason}; see {job.log}"


def _imports(folder: Path, earlier: Merged, imported: Path | None) -> Imports:
    """Results of the reference: of files beside the folder, of earlier merges, of the folder that was named."""
    beside = _read_reference(folder.parent, earlier.path)
    files = {file for _, file in beside.values()}
    before = {key: (earlier.results[key], file) for key, file in earlier.imported.items() if file not in files}
    named = {} if imported is None else _read_reference(imported, earlier.path)
    return beside | before | named


def _read_reference(folder: Path, own: Path) -> Imports:
    """What a folder's files say of the step that a file of ours is about; that itself is none of them."""
    found: Imports = {}
    is_here = folder.resolve() == own.parent.resolve()
    for path in sorted(folder.glob("step_*.json")):
        if _step_of(path) != _step_of(own) or (is_here and path.name == own.name):
            continue
        merged = read_merged(path)
        if merged and merged.step == _step_of(own):
            name = path.name if is_here else str(path.absolute())
            # lmms-eval's standard errors and numbers of samples stand among the reference's results.
            results = {key: value for key, value in merged.results.items() if not re.search("_stderr|_samples$", key)}
            found |= {key: (value, name) for key, value in results.items()}
    return found


def _superseded(earlier: Merged, others: Iterable[_Outcome], imports: Numbers) -> dict[str, Numbers]:
    """What was superseded before, what is of other checkpoints, and imports that cells go before."""
    found = {name: dict(results) for name, results in earlier.superseded.items()}
    for outcome in others:
        if outcome.metrics:
            values = {key: metric.value for key, metric in outcome.metrics.items()}
            found.setdefault(outcome.fingerprint, {}).update(values)
    if imports:
        found.setdefault(IMPORTED, {}).update(imports)
    return found


def _unreadable(folder: Path, readable: Iterable[Cell]) -> dict[str, str]:
    """Folders with a cell.json that says nothing to this version."""
    names = {path.parent.name for path in folder.glob(f"*/{CELL_FILE}") if not path.parent.name.startswith(".")}
    return dict.fromkeys(names - {cell.folder.name for cell in readable}, f"its {CELL_FILE} cannot be read")


def _step_of(path: Path) -> int | None:
    """The step in the name of a file of results."""
    match = STEP_FILE.fullmatch(path.name)
    return int(match[1]) if match else None


def _reach(limit: int | None) -> float:
    """In samples."""
    return math.inf if limit is None else limit
