"""Where metrics go: metrics.jsonl always, wandb if asked for. Both get the same keys, one row for each step.

Results of evaluated checkpoints are rows of their own, over ``<lmms-eval-step>``: they come late, and may change.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, Self

from vlmkit.config import LoggerConfig, WandbMode
from vlmkit.paths import RunPaths
from vlmkit.tracking.jsonl import JsonlTracker
from vlmkit.tracking.wandb_sink import WandbTracker


class Tracker(Protocol):
    """Takes the metrics of a step."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write the row of a step; if the step has one already, this is what it lacks."""

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        """Write results of the checkpoint of a step: new ones, or changed ones."""

    def flush(self) -> None:
        """See to it that what was written is on disk, as far as that is in the tracker's hands."""

    def close(self) -> None:
        """Write out what is left."""

    @property
    def is_complete(self) -> bool:
        """Whether it has, as far as it knows, all that it was given, now and by earlier starts."""


class Expendable:
    """A tracker that a run can do without: where it fails that is said, once, and the run goes on without it."""

    def __init__(self, start: Callable[[], Tracker], abandon: Callable[[], None], say: Callable[[str], None]) -> None:
        """Start the tracker.

        Args:
            start: Makes it.
            abandon: Leaves nothing of a failed one behind that could fail again.
            say: Gets the line.
        """
        self._abandon = abandon
        self._say = say
        self._tracker: Tracker | None = None
        with self._tolerant():
            self._tracker = start()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write the row, if the tracker still works."""
        with self._tolerant():
            if self._tracker:
                self._tracker.write(step, metrics)

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        """Write the results, if the tracker still works."""
        with self._tolerant():
            if self._tracker:
                self._tracker.write_evaluation(step, results)

    def flush(self) -> None:
        """Flush, if the tracker still works."""
        with self._tolerant():
            if self._tracker:
                self._tracker.flush()

    def close(self) -> None:
        """Close, if the tracker still works."""
        with self._tolerant():
            if self._tracker:
                self._tracker.close()

    @property
    def is_complete(self) -> bool:
        """Whether it never failed, and lacks nothing itself."""
        return self._tracker is not None and self._tracker.is_complete

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # wandb raises of everything: its own, connection errors, OSError, timeouts
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._say(f"warning: wandb: {reason}; metrics go on in metrics.jsonl, the next start hands them in")
            self._tracker = None
            self._abandon()


class Trackers:
    """Several trackers as one. What is logged for a step is gathered, and written as one row when the step is over."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers
        self._step = 0
        self._row: dict[str, float] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add metrics to the row of a step; the rows of earlier steps are written."""
        if step != self._step:
            self._write()
            self._step = step
        self._row |= metrics

    def log_evaluation(self, step: int, results: dict[str, float]) -> None:
        """Write results of the checkpoint of a step at once, beside the rows of steps."""
        for tracker in self._trackers:
            tracker.write_evaluation(step, results)

    def flush(self) -> None:
        """Write the row that is being gathered, and wait until it is on disk: to be called before a checkpoint."""
        self._write()
        for tracker in self._trackers:
            tracker.flush()

    @property
    def is_complete(self) -> bool:
        """Whether every tracker has all that was logged; known for certain when they are closed."""
        return all(tracker.is_complete for tracker in self._trackers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is left and close every tracker."""
        self._write()
        for tracker in self._trackers:
            tracker.close()

    def _write(self) -> None:
        row, self._row = self._row, {}
        for tracker in self._trackers if row else ():
            tracker.write(self._step, row)


def build_tracker(
    config: LoggerConfig,
    paths: RunPaths,
    run_config: dict[str, Any],
    resumed_step: float,
    is_main: bool,
    say: Callable[[str], None],
) -> Trackers:
    """The trackers of this process: only the main process has any.

    Args:
        config: Which.
        paths: Where.
        run_config: What wandb is told of the run's config: ``plain_config``, which has no secrets.
        resumed_step: The step that the run goes on from; 0 at the start, infinity if it does not go on.
        is_main: Whether this is the main process.
        say: Gets a line if wandb fails.
    """
    if not is_main:
        return Trackers([])
    trackers: list[Tracker] = [JsonlTracker(paths.metrics, resumed_step)]
    if config.wandb is not WandbMode.disabled:
        start = partial(WandbTracker, config, paths, run_config, say)
        trackers.append(Expendable(start, WandbTracker.abandon, say))
    return Trackers(trackers)
