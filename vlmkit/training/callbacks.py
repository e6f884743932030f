"""What happens after a step: metrics, validation, checkpoints, the bar. Each is small and knows only its own thing."""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from vlmkit.distributed import Ranks
from vlmkit.model.packed import PackedVLM
from vlmkit.tracking.console import Screen, StepBar
from vlmkit.tracking.sinks import Trackers
from vlmkit.training.loop import Progress, StepStats, compute_val_loss
from vlmkit.types import Batch


class LogMetrics:
    """One line for each step, training statistics at intervals, and one line for each epoch."""

    def __init__(self, tracker: Trackers, stats_interval: int, filtered_ratio: float) -> None:
        self._tracker = tracker
        self._stats_interval = stats_interval
        self._filtered_ratio = filtered_ratio
        self._window: list[StepStats] = []
        self._epoch: list[StepStats] = []

    def after_step(self, stats: StepStats) -> None:
        """Log what is due."""
        metrics = {
            "batch_loss": stats.loss,
            "grad_norm": stats.grad_norm,
            "tokens_per_second": _rate([stats]),
            **{f"lr_{part}": lr for part, lr in stats.learning_rates.items()},
        }
        self._window.append(stats)
        if stats.step % self._stats_interval == 0:
            metrics |= training_stats(self._window, self._filtered_ratio)
            self._window = []
        if self._epoch and stats.position.epoch > self._epoch[-1].position.epoch:
            metrics |= {
                "epoch": float(self._epoch[-1].position.epoch),
                "epoch_loss": sum(s.loss for s in self._epoch) / len(self._epoch),
                "epoch_duration": sum(s.data_seconds + s.compute_seconds for s in self._epoch),
                "epoch_tokens_per_second": _rate(self._epoch),
            }
            self._epoch = []
        self._epoch.append(stats)
        self._tracker.log(stats.step, metrics)


def training_stats(window: Sequence[StepStats], filtered_ratio: float) -> dict[str, float]:
    """The reference's training_stats/* over some steps."""
    samples = max(sum(s.samples for s in window), 1)
    data = [s.data_seconds for s in window]
    compute = [s.compute_seconds for s in window]
    stats = {
        "images_per_sample": sum(s.images for s in window) / samples,
        "tokens_per_sample": sum(s.tokens for s in window) / samples,
        "tiles_per_step": sum(s.tiles for s in window) / len(window),
        "padding_ratio": 1 - sum(s.tokens for s in window) / sum(s.padded_tokens for s in window),
        "filtered_ratio": filtered_ratio,
        "data_seconds_mean": sum(data) / len(data),
        "data_seconds_max": max(data),
        "compute_seconds_mean": sum(compute) / len(compute),
        "compute_seconds_max": max(compute),
        "data_wait_share": sum(data) / (sum(data) + sum(compute)),
    }
    return {f"training_stats/{name}": value for name, value in stats.items()}


class ShowProgress:
    """Moves the bar."""

    def __init__(self, bar: StepBar, total_steps: int) -> None:
        self._bar = bar
        self._total_steps = total_steps
        self._recent: deque[StepStats] = deque(maxlen=20)
        self._ended: deque[float] = deque([time.perf_counter()], maxlen=101)

    def after_step(self, stats: StepStats) -> None:
        """Show this step; time left counts what lies between steps (validation, checkpoints) too."""
        self._recent.append(stats)
        self._ended.append(time.perf_counter())
        seconds_per_step = (self._ended[-1] - self._ended[0]) / (len(self._ended) - 1)
        seconds_left = seconds_per_step * (self._total_steps - stats.step)
        loss = sum(s.loss for s in self._recent) / len(self._recent)
        self._bar.show(stats.step, loss, _rate(self._recent), seconds_left)


class Validate:
    """Validation loss at intervals and at the last step."""

    def __init__(
        self,
        model: PackedVLM,
        batches: Sequence[Batch],
        interval: int,
        last_step: int,
        tracker: Trackers,
        screen: Screen,
        ranks: Ranks,
    ) -> None:
        self._model = model
        self._batches = batches
        self._interval = interval
        self._last_step = last_step
        self._tracker = tracker
        self._screen = screen
        self._ranks = ranks

    def after_step(self, stats: StepStats) -> None:
        """Compute and log, if it is due."""
        if stats.step % self._interval and stats.step != self._last_step:
            return
        loss = compute_val_loss(self._model, self._batches, self._ranks)
        if not math.isnan(loss):
            self._tracker.log(stats.step, {"val_loss": loss})
            self._screen.say(f"step {stats.step}: validation loss {loss:.4f}")


class SaveCheckpoints:
    """A checkpoint at intervals and at the last step."""

    def __init__(self, save: Callable[[Progress], None], interval: int, last_step: int) -> None:
        self._save = save
        self._interval = interval
        self._last_step = last_step

    def after_step(self, stats: StepStats) -> None:
        """Save, if it is due."""
        if stats.step % self._interval == 0 or stats.step == self._last_step:
            self._save(Progress(stats.step, stats.position))


def _rate(steps: Collection[StepStats]) -> float:
    seconds = sum(s.data_seconds + s.compute_seconds for s in steps)
    return sum(s.tokens for s in steps) / seconds
