"""What happens after a step: metrics, validation, checkpoints, the bar. Each is small and knows only its own thing."""

import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vlmkit.config import RATING_AXES, OnBadStep, TrainConfig
from vlmkit.data.ratings import FilterCounts
from vlmkit.distributed import Ranks
from vlmkit.errors import BadSampleError, DataError, UserError, describe_counts
from vlmkit.model.packed import PackedVLM
from vlmkit.redact import redact
from vlmkit.tracking.console import Screen, StepBar
from vlmkit.tracking.jsonl import finite_or_none, keep_lines_up_to
from vlmkit.tracking.sinks import Trackers
from vlmkit.training.loop import Progress, StepStats, compute_val_loss
from vlmkit.training.throughput import Throughput
from vlmkit.training.totals import Sums, summarise
from vlmkit.types import Batch


class LogMetrics:
    """One line for each step, training statistics at intervals, and one line for each epoch and for the run."""

    def __init__(
        self, tracker: Trackers, screen: Screen, config: TrainConfig, known: FilterCounts, throughput: Throughput
    ) -> None:
        self._throughput = throughput
        self._tracker = tracker
        self._screen = screen
        self._last_step = config.trainer.max_training_steps
        self._seq_length = config.packing.seq_length
        self._max_images = config.dataset.max_images_per_example
        self._known = known  # what the filter does to all of a dataset; nothing is known of a stream
        self._warned: set[str] = set()

    def after_step(self, stats: StepStats) -> None:
        """Log what is due."""
        metrics = {
            "batch_loss": stats.loss,
            "grad_norm": stats.grad_norm,
            **{f"grad_norm_{part}": norm for part, norm in stats.grad_norms.items()},
            "tokens_per_second": stats.sums.tokens / stats.sums.seconds,
            "data_hash": stats.data_hash,
            **{f"lr_{part}": lr for part, lr in stats.learning_rates.items()},
        }
        filtered = filter_stats(self._known if self._known.samples else stats.totals.counts)
        if (sums := stats.ended_window) is not None:
            window = window_stats(sums, self._seq_length) | self._throughput.of(sums) | filtered
            window["peak_memory_gb"] = stats.peak_memory_gb
            metrics |= {f"training_stats/{name}": value for name, value in window.items()}
            self._warn(window)
        if (epoch := stats.ended_epoch) is not None:
            metrics |= {
                "epoch": float(stats.epochs - 1),
                "epoch_loss": epoch.mean_loss,
                "epoch_duration": epoch.seconds,
                "epoch_tokens_per_second": epoch.tokens / epoch.seconds,
            }
        if stats.step == self._last_step:
            run = summarise(stats.totals.run, self._seq_length) | filtered
            metrics |= {f"run_stats/{name}": value for name, value in run.items()}
        self._tracker.log(stats.step, metrics)

    def _warn(self, window: dict[str, float]) -> None:
        """Say once what wastes the run."""
        for name, limit, advice in (
            ("images_per_sample", self._max_images, "samples have more pictures than dataset.max_images_per_example"),
            ("padding_ratio", 0.5, "more than half of what is computed is padding: try packing=knapsack"),
        ):
            if window[name] > limit and name not in self._warned:
                self._warned.add(name)
                self._screen.say(f"warning: {name} {window[name]:.2f}: {advice}")


def window_stats(sums: Sums, seq_length: int) -> dict[str, float]:
    """Statistics over some steps, and the seconds of a step: the processes' mean, and the slowest one's."""
    return summarise(sums, seq_length) | {
        "data_seconds_mean": sums.data_seconds_mean / sums.steps,
        "data_seconds_max": sums.data_seconds / sums.steps,
        "compute_seconds_mean": sums.compute_seconds_mean / sums.steps,
        "compute_seconds_max": sums.compute_seconds / sums.steps,
    }


def filter_stats(counts: FilterCounts) -> dict[str, float]:
    """What share of samples and turns was dropped, and of turns by each axis."""
    shares = zip(RATING_AXES, counts.below, strict=True)
    return {
        "filtered_ratio": 1 - counts.kept_samples / max(counts.samples, 1),
        "filtered_turns_ratio": 1 - counts.kept_turns / max(counts.turns, 1),
        **{f"below_{axis}_ratio": below / max(counts.turns, 1) for axis, below in shares},
    }


class WatchBadSteps:
    """Names the samples of each step whose loss or gradient cannot be in RUN/bad_steps.jsonl; may end the run."""

    MOST_IN_A_ROW = 20  # then something else than the samples is wrong

    def __init__(
        self,
        path: Path,
        action: OnBadStep,
        start: Progress,
        save: Callable[[Progress], None],
        screen: Screen,
        ranks: Ranks,
    ) -> None:
        """Begin the file, or take out what a stopped run met after the step that it goes on from.

        Args:
            path: The file.
            action: What is done about a bad step, besides.
            start: What the run goes on from.
            save: Saves what was reached before a bad step that ends the run.
            screen: Gets a line for each.
            ranks: The processes.
        """
        self._path = path
        self._action = action
        self._before = start
        self._save = save
        self._screen = screen
        self._ranks = ranks
        if ranks.is_main and path.exists():
            keep_lines_up_to(path, start.step, "step")

    def after_step(self, stats: StepStats) -> None:
        """Write it down.

        Raises:
            UserError: The step is bad, and the run is to stop, or there were too many in a row.
        """
        before, self._before = self._before, Progress(stats.step, stats.position, stats.totals)
        if stats.fault is None:
            return
        samples = self._ranks.gather(list(stats.names))
        norms = {part: finite_or_none(norm) for part, norm in stats.grad_norms.items()}
        line = {"step": stats.step, "fault": stats.fault, "grad_norms": norms, "samples": samples}
        if self._ranks.is_main:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(redact(json.dumps(line)) + "\n")
        what = f"step {stats.step}: {stats.fault}; its {len(samples)} samples are named in {self._path}"
        if self._action is OnBadStep.stop:
            self._save(before)
            raise UserError(f"{what}; trainer.on_bad_step=skip goes on without such steps")
        if stats.totals.bad_in_a_row == self.MOST_IN_A_ROW:
            raise UserError(f"{what}; that makes {self.MOST_IN_A_ROW} bad steps in a row: lower the learning rates?")
        self._screen.say(f"warning: {what}")


class WatchBadSamples:
    """Names samples that cannot be read in RUN/bad_samples.jsonl, and ends a run that has too many of them."""

    ENOUGH = 200  # samples from which on the share means something

    def __init__(
        self, path: Path, max_share: float, known: Sequence[BadSampleError], resumed_step: int, ranks: Ranks
    ) -> None:
        """Begin the file, or take out what a stopped run met after the step that it goes on from.

        Args:
            path: The file.
            max_share: Of the samples that have been read.
            known: What is known before the first step.
            resumed_step: 0 at the start.
            ranks: The processes; the main one begins the file.
        """
        self._path = path
        self._max_share = max_share
        self._reasons: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()  # by this process since it started, by reason
        ranks.run_on_main(lambda: self._begin(known, resumed_step))

    def _begin(self, known: Sequence[BadSampleError], resumed_step: int) -> None:
        if resumed_step == 0:
            self._path.unlink(missing_ok=True)
            self._name(0, known)
        elif self._path.exists():
            keep_lines_up_to(self._path, resumed_step, "step")

    def after_step(self, stats: StepStats) -> None:
        """Write down this process's; count those of all.

        Raises:
            DataError: The share of bad samples is above the configured one.
        """
        self._name(stats.step, stats.bad)
        self.left_out.update(stats.left_out)
        arrived, bad = stats.totals.run.arrived, stats.totals.run.bad
        if arrived >= self.ENOUGH and bad > self._max_share * arrived:
            raise DataError(
                f"{bad:,} of {arrived:,} samples cannot be read, more than dataset.max_bad_share="
                f"{self._max_share}: {self.describe()}; see {self._path}"
            )

    def _name(self, step: int, bad: Sequence[BadSampleError]) -> None:
        if bad:
            lines = [{"step": step, "sample": e.name, "reason": e.reason, "detail": e.detail} for e in bad]
            with self._path.open("a", encoding="utf-8") as file:  # one write, so processes do not mix their lines
                file.write(redact("".join(json.dumps(line) + "\n" for line in lines)))
            self._reasons.update(error.reason for error in bad)

    def describe(self) -> str:
        """The reasons, with how often this process met each since it started."""
        return describe_counts(self._reasons)


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
        tokens_per_second = sum(s.sums.tokens for s in self._recent) / sum(s.sums.seconds for s in self._recent)
        self._bar.show(stats.step, loss, tokens_per_second, seconds_left)


class Validate:
    """Validation loss at intervals and at the last step."""

    def __init__(
        self,
        model: PackedVLM,
        batches: Iterable[Batch],
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
        self._losses: dict[int, float] = {}

    def loss_at(self, step: int) -> float | None:
        """The validation loss at a step; None if it was not computed."""
        return self._losses.get(step)

    def after_step(self, stats: StepStats) -> None:
        """Compute and log, if it is due."""
        if stats.step % self._interval and stats.step != self._last_step:
            return
        loss = compute_val_loss(self._model, self._batches, self._ranks)
        if not math.isnan(loss):
            self._losses[stats.step] = loss
            self._tracker.log(stats.step, {"val_loss": loss})
            self._screen.say(f"step {stats.step}: validation loss {loss:.4f}")


class SaveCheckpoints:
    """A checkpoint at intervals and at the last step."""

    def __init__(
        self,
        save: Callable[[Progress], None],
        val_loss_at: Callable[[int], float | None],
        interval: int,
        last_step: int,
    ) -> None:
        self._save = save
        self._val_loss_at = val_loss_at
        self._interval = interval
        self._last_step = last_step

    def after_step(self, stats: StepStats) -> None:
        """Save, if it is due."""
        if stats.step % self._interval == 0 or stats.step == self._last_step:
            self._save(Progress(stats.step, stats.position, stats.totals, self._val_loss_at(stats.step)))
