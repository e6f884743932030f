"""Evaluation cells become an array of SLURM jobs, with a job behind it that merges what they found.

``vlmkit.evaluation.submission`` starts this as a process of its own, and says what goes in and what comes out:

    python -m vlmkit_launchers.submit_cells < request.json
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vlmkit.config import JobConfig, as_override, read_group
from vlmkit.errors import UserError
from vlmkit.evaluation.cells import CellState, read_cell
from vlmkit.evaluation.delivery import merge_command
from vlmkit.evaluation.submission import HandedOver
from vlmkit.job_standings import JobStanding, stand
from vlmkit.jobs import SUBMIT_LOCK, Job, JobPlace, JobState, Launcher
from vlmkit.paths import RunPaths, held_lock
from vlmkit.redact import redact
from vlmkit.slurm_states import NO_ANSWER
from vlmkit_launchers.slurm import Submitted, submit
from vlmkit_launchers.task import Task

TOO_MANY = re.compile("limit|array specification", re.IGNORECASE)  # in what sbatch says then
MERGE_GB = 4.0  # of memory, for json files
JOBS = ".jobs"  # in the folder evals/: logs, and what jobs are started from


def submit_cells(cells: Sequence[Path], run: Path | None, job: JobConfig, parallelism: int) -> HandedOver:
    """Hand over the cells that are not done and that nobody answers or is to answer; several may call this at once.

    Args:
        cells: Folders of planned cells, all of the same folder evals/.
        run: The run whose results are merged afterwards; None: the cells are of no run.
        job: What each job asks for, with nothing left open.
        parallelism: How many run at the same time.

    Raises:
        UserError: SLURM did not take them, or does not answer: what it has already is not known then.
    """
    evals = cells[0].parent.parent
    with held_lock(evals / SUBMIT_LOCK, wait=True):
        done, under_way, new = _sorted_out(cells)
        array, left, refusal = _submit_what_is_taken(new, run, job, parallelism) if new else (None, new, "")
        merge, warning = _try_to_submit_merge(run, job, array) if array and run else (None, "")
    told = "; ".join(filter(None, [refusal, warning]))
    return HandedOver(array, merge, _names(done), _names(under_way), _names(left), told)


def _names(cells: Sequence[Path]) -> list[str]:
    return [str(cell) for cell in cells]


def _sorted_out(cells: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Those that are done, those that are answered now or will be, and the others. SLURM is asked once."""
    done, under_way, new = [], [], []
    found = {folder: read_cell(folder) for folder in cells}
    standings = stand(map(JobPlace.of_cell, cells))
    if any(standing.reason == NO_ANSWER for standing in standings.values()):
        raise UserError(f"{NO_ANSWER}, and may have jobs for these cells")
    for folder, cell in found.items():
        if cell and cell.state is CellState.done:
            done.append(folder)
        elif (cell and cell.is_held) or _has_work(standings.get(JobPlace.of_cell(folder))):
            under_way.append(folder)
        else:
            new.append(folder)
    return done, under_way, new


def _has_work(standing: JobStanding | None) -> bool:
    """Whether a job still has something to do: SLURM takes a while to clear away one that has said its last word."""
    if standing is None or not standing.is_under_way:
        return False
    return standing.report is None or standing.report.state not in (JobState.done, JobState.failed)


def _submit_what_is_taken(
    cells: Sequence[Path], run: Path | None, job: JobConfig, parallelism: int
) -> tuple[str, Sequence[Path], str]:
    """Submit an array for all cells, or for the first of them if all are more than SLURM takes at once.

    Returns:
        Its id, the cells that are left, and why they are.

    Raises:
        UserError: It takes none.
    """
    refusal, count = "", len(cells)
    while True:
        try:
            return _submit_array(cells[:count], run, job, parallelism), cells[count:], refusal
        except UserError as error:
            if count == 1 or not TOO_MANY.search(str(error)):
                raise
            refusal, count = str(error), count // 2


def _submit_array(cells: Sequence[Path], run: Path | None, job: JobConfig, parallelism: int) -> str:
    """Submit a job for each cell and write down which; the id of all together."""
    tasks = [_task(["vlmkit.eval", f"cells=[{as_override(str(cell))}]"], JobPlace.of_cell(cell), job) for cell in cells]
    folder = cells[0].parent.parent / JOBS
    submitted = submit(tasks, job, folder, f"eval-{_name(cells, run)}", parallelism)
    for cell, task, each in zip(cells, tasks, submitted, strict=True):
        _write_job(task, each, cell)
    return submitted[0].job_id.partition("_")[0]


def _try_to_submit_merge(run: Path, job: JobConfig, array: str) -> tuple[str | None, str]:
    """Submit the job that merges when all of an array have ended, however; its id, or why there is none."""
    small = replace(
        job,
        nodes=1,
        tasks_per_node=1,
        gpus_per_node=0,
        cpus_per_task=1,
        mem_gb=min(job.mem_gb or MERGE_GB, MERGE_GB),
        constraint=None,
        additional_parameters={},
    )
    evals = run / "evals"
    task = _task(["vlmkit.merge", f"run={as_override(str(run))}"], JobPlace.of_merge(evals, array), job)
    try:
        [merge] = submit([task], small, evals / JOBS, f"merge-{run.name}", dependency=f"afterany:{array}")
    except UserError as error:
        by_hand = merge_command(RunPaths(run))
        return None, f"{error}; when job {array} has ended, hand on its results: {by_hand}"
    _write_job(task, merge, evals)
    return merge.job_id, ""


def _task(command: Sequence[str], place: JobPlace, job: JobConfig) -> Task:
    return Task([sys.executable, "-m", *command], place, job.environment, job.max_requeues or 0)


def _write_job(task: Task, submitted: Submitted, folder: Path) -> None:
    log = str(submitted.log)
    Job(Launcher.slurm, submitted.job_id, redact(task.command), str(folder), log, time.time()).write(task.place)


def _name(cells: Sequence[Path], run: Path | None) -> str:
    """What all cells have in common: the run, the checkpoint, the task."""
    parts = [] if run is None else [run.name]
    for names in ({cell.parent.name for cell in cells}, {cell.name for cell in cells}):
        parts += names if len(names) == 1 else []
    return "-".join(parts or ["cells"])


def main() -> None:
    """The command."""
    request: dict[str, Any] = json.load(sys.stdin)
    run = request["run"]
    try:
        result = submit_cells(
            [*map(Path, request["cells"])],
            None if run is None else Path(run),
            read_group(JobConfig, request["job"]),
            request["parallelism"],
        )
    except (UserError, OSError) as error:
        sys.exit(f"error: {redact(str(error))}")
    print(json.dumps(asdict(result)))  # noqa: T201


if __name__ == "__main__":
    main()
