"""From evaluation cells to metrics.jsonl and wandb: what is new or has changed, while a run trains or after it ended.

A result is a row of its own, ``{"<lmms-eval-step>": N, "lmms_eval/TASK_METRIC": value, "lmms_eval/TASK_METRIC_stderr":
…}``. What was delivered already is what metrics.jsonl says. Results of the first samples only never share a curve with
others: they stand under ``lmms_eval_limitN/``.
"""

import math
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from vlmkit.config import LoggerConfig, read_group
from vlmkit.evaluation.cells import CELL_FILE
from vlmkit.evaluation.merge import merge_subject
from vlmkit.evaluation.merged import STEP_FILE, Merged
from vlmkit.paths import RunPaths, held_lock, whole_file
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
        """Merge what is known of each step of which a file has changed since the last look; give step and news.

        They count as delivered when the next are asked for.

        Raises:
            OSError: A file cannot be read or written.
        """
        for step, stamps in sorted(_stamps(self._paths).items()):
            if stamps == self._seen.get(step):
                continue
            merged = merge_subject(self._paths.cells(step))
            known = self._delivered.setdefault(step, {})
            new = {key: value for key, value in metrics_of(merged).items() if known.get(key) != value}
            if new:
                yield step, new
            # Only now: what could not be logged stays news.
            known.update(new)
            self._seen[step] = stamps  # from before: what changed meanwhile is looked at again


def metrics_of(merged: Merged | None) -> Results:
    """A merged result under the keys that it is logged by."""
    if merged is None:
        return {}
    limits = {key: source.limit for source in merged.sources.values() for key in source.results}
    metrics: Results = {}
    for key, value in merged.results.items():
        name = metric_key(key, limits.get(key))
        metrics[name] = value
        if key in merged.stderr:
            metrics[f"{name}_stderr"] = merged.stderr[key]
    return metrics


def metric_key(key: str, limit: int | None) -> str:
    """What a merged result TASK_METRIC, of the first ``limit`` samples or of all, is called in wandb."""
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

    A run that trains now does that itself; what has no config.yaml is no run, and has nowhere to log to. What wandb did
    not take, because it failed or this process was killed, is handed in by the next call.

    Args:
        paths: The run.
        say: Gets a line for each step with something new, or why nothing is done.

    Raises:
        UserError: The run's config cannot be read.
    """
    if not paths.config.exists():
        return
    with ExitStack() as stack:
        stack.enter_context(held_lock(paths.delivery_lock, wait=True))  # several may have evaluated at once
        try:
            stack.enter_context(held_lock(paths.lock, wait=False))
        except BlockingIOError:
            say("the run trains now: it logs its results itself")
            return
        news = list(News(paths).take())
        if news or paths.wandb_pending.exists():
            _deliver(paths, news, say)


def _deliver(paths: RunPaths, news: Iterable[tuple[int, Results]], say: Say) -> None:
    """Log news of a run that is held; and wandb, when it starts, gets what it lacks of earlier ones."""
    config = read_config(paths)
    logger = read_group(LoggerConfig, config.get("logger", {}))
    with whole_file(paths.wandb_pending) as temporary:  # before metrics.jsonl says that they are no news any more
        temporary.touch()
    with build_tracker(logger, paths, config, math.inf, True, say) as tracker:
        for step, results in news:
            tracker.log_evaluation(step, results)
            say(describe(step, results))
    if tracker.is_complete:
        paths.wandb_pending.unlink()
    else:
        say(f"not all results are in wandb yet; this hands them in: {merge_command(paths)}")


def merge_command(paths: RunPaths) -> str:
    """What delivers results of a run that has ended."""
    return f"python -m vlmkit.merge run={shlex.quote(str(paths.root))}"


def _stamps(paths: RunPaths) -> dict[int, Stamps]:
    """Step → the stamps of all that a merge reads: cells, what was merged elsewhere, files of the reference."""
    found: dict[int, Stamps] = {
        step: _stamps_of(paths.cells(step).glob(f"*/{CELL_FILE}")) for step in paths.evaluated_steps
    }
    for path in paths.evals.glob("step_*.json"):
        if match := STEP_FILE.fullmatch(path.name):
            found.setdefault(int(match[1]), {}).update(_stamps_of([path]))
    return found


def _stamps_of(files: Iterable[Path]) -> Stamps:
    stamps: Stamps = {}
    for path in files:
        with suppress(OSError):  # gone meanwhile
            stat = path.stat()
            stamps[path] = (stat.st_size, stat.st_mtime_ns)
    return stamps
