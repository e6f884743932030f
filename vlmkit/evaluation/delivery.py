"""From evaluation cells to metrics.jsonl and wandb: what is new or has changed, while a run trains or after it ended.

A result is a row of its own, ``{"<lmms-eval-step>": N, "lmms_eval/TASK_METRIC": value, "lmms_eval/TASK_METRIC_stderr":
…}``. What was delivered already is what metrics.jsonl says. Results of the first samples only never share a curve with
others: they stand under ``lmms_eval_limitN/``.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from vlmkit.config import LoggerConfig, read_group
from vlmkit.evaluation.cells import CELL_FILE
from vlmkit.evaluation.merge import Merged, merge_subject
from vlmkit.paths import RunPaths, held_lock
from vlmkit.run_directory import read_config
from vlmkit.tracking.jsonl import read_results
from vlmkit.tracking.sinks import build_tracker

Say = Callable[[str], None]
Results = dict[str, float]  # by wandb's key
Stamps = dict[Path, tuple[int, int]]  # size and time of change in ns

MOST_SHOWN = 4  # results in a line


class News:
    """What the cells of a run say that metrics.jsonl does not say yet."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._delivered = read_results(paths.metrics)
        self._seen: dict[int, Stamps] = {}

    def take(self) -> Iterator[tuple[int, Results]]:
        """Merge the cells of each step where a file has changed since the last look; give step and news.

        Raises:
            OSError: A file cannot be read or written.
        """
        for step in self._paths.evaluated_steps:
            folder = self._paths.cells(step)
            stamps = _stamps(folder)
            if stamps == self._seen.get(step):
                continue
            merged = merge_subject(folder)
            self._seen[step] = stamps  # from before: what changed meanwhile is looked at again
            known = self._delivered.setdefault(step, {})
            new = {key: value for key, value in metrics_of(merged).items() if known.get(key) != value}
            if new:
                known.update(new)
                yield step, new


def metrics_of(merged: Merged | None) -> Results:
    """The keys under which a merged result is logged."""
    if merged is None:
        return {}
    metrics: Results = {}
    for key, value in merged.results.items():
        name = metric_key(key, merged.limit or {})
        stderr = merged.stderr.get(key)
        if math.isfinite(value):
            metrics[name] = value
        if stderr is not None:
            metrics[f"{name}_stderr"] = stderr
    return metrics


def metric_key(key: str, limits: Mapping[str, int]) -> str:
    """The key in wandb of a merged result, TASK_METRIC.

    Args:
        key: Of the result.
        limits: Of the tasks whose result is of their first samples only.
    """
    limit = next((limits[task] for task in sorted(limits, key=len, reverse=True) if key.startswith(f"{task}_")), None)
    return f"lmms_eval/{key}" if limit is None else f"lmms_eval_limit{limit}/{key}"


def describe(step: int, results: Results) -> str:
    """A line about new results."""
    values = [key for key in results if not key.endswith("_stderr")] or list(results)
    shown = [_with_error(key, results) for key in values[:MOST_SHOWN]]
    more = f" and {len(values) - MOST_SHOWN} more" if len(values) > MOST_SHOWN else ""
    return f"evaluated step {step}: {', '.join(shown)}{more}"


def _with_error(key: str, results: Results) -> str:
    stderr = results.get(f"{key}_stderr")
    return f"{key} {results[key]:.4f}" + ("" if stderr is None else f" ± {stderr:.4f}")


def deliver_late(paths: RunPaths, say: Say) -> None:
    """Log what became known after a run had ended: in its metrics.jsonl, and in the wandb run that it had.

    A run that trains now does that itself.

    Args:
        paths: The run.
        say: Gets a line for each step with something new, or why nothing is done.

    Raises:
        UserError: The run's config cannot be read.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held_lock(paths.lock, wait=False))
        except BlockingIOError:
            say("the run trains now: it logs its results itself")
            return
        news = list(News(paths).take())
        if not news:
            return
        config = read_config(paths)
        logger = read_group(LoggerConfig, config["logger"])
        tracker = stack.enter_context(build_tracker(logger, paths, config, math.inf, True, say))
        for step, results in news:
            tracker.log_evaluation(step, results)
            say(describe(step, results))


def _stamps(folder: Path) -> Stamps:
    """Of the cells, and of their merged result: what another process merged is looked at too."""
    stamps: Stamps = {}
    for path in (*folder.glob(f"*/{CELL_FILE}"), folder.with_name(f"{folder.name}.json")):
        try:
            stat = path.stat()
        except OSError:
            continue
        stamps[path] = (stat.st_size, stat.st_mtime_ns)
    return stamps
