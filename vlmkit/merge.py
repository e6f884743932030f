"""Make RUN/evals/step_N.json of the evaluation cells that are finished; run it as often as you like.

    python -m vlmkit.merge run=RUN
    python -m vlmkit.merge run=RUN results=DIR    with nanoVLM's step_N.json and step_N_TASK.json that lie there

Read next: ``evaluation/merge.py``.
"""

from pathlib import Path

from vlmkit import entry
from vlmkit.config import MergeConfig
from vlmkit.errors import UserError
from vlmkit.evaluation.delivery import deliver_late
from vlmkit.evaluation.merge import merge_run
from vlmkit.evaluation.merged import Merged
from vlmkit.paths import RunPaths
from vlmkit.preflight import check_merge
from vlmkit.tracking.console import Screen


def merge(paths: RunPaths, imported: Path | None, screen: Screen) -> None:
    """Merge the results of each step of a run, tell which are complete or what is missing, and log what is new.

    Args:
        paths: The run.
        imported: A folder with files of the reference.
        screen: Gets a line for each step.

    Raises:
        UserError: Nothing was evaluated there.
    """
    steps = merge_run(paths, imported)
    if not steps:
        raise UserError(
            f"run={paths.root}: nothing was evaluated there yet: python -m vlmkit.eval run=… suite=…, "
            "or results=… for results of the reference"
        )
    for merged in steps:
        screen.say(describe(merged))
    if paths.config.exists():  # else no run of vlmkit: there is nobody to tell
        deliver_late(paths, screen.say)


def describe(merged: Merged) -> str:
    """A line: what there is of a step, what is missing and why, what is of the first samples only."""
    told = [f"{len(merged.sources)} {'task' if len(merged.sources) == 1 else 'tasks'}"]
    if merged.missing:
        told.append("missing: " + ", ".join(f"{task} ({why})" for task, why in merged.missing.items()))
    if merged.limit:
        told.append("of the first samples only: " + ", ".join(f"{task} ({n:,})" for task, n in merged.limit.items()))
    if gone := [task for task, source in merged.sources.items() if source.cell_is_gone]:
        told.append(f"from cells that have gone: {', '.join(gone)}")
    if merged.imported:
        told.append(f"imported results: {len(merged.imported)}")
    return f"step {merged.step}: {'complete' if merged.complete else 'incomplete'}: {'; '.join(told)}"


def main() -> None:
    """The command."""
    entry.quote_paths("run", "results")
    entry.run("merge", _start)


def _start(config: MergeConfig, _invocation: entry.Invocation) -> None:
    check_merge(config)
    imported = None if config.results is None else Path(config.results).expanduser()
    merge(RunPaths(Path(config.run).expanduser().absolute()), imported, Screen())


if __name__ == "__main__":
    main()
