"""Sums over the steps of a run. They are plain numbers and are saved with every checkpoint, so a stop loses none."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from vlmkit.data.ratings import FilterCounts


@dataclass(frozen=True, slots=True)
class LossLevel:
    """Where the loss is: the exponential mean of the good steps' losses."""

    DECAY: ClassVar[float] = 0.98  # about the last 50 steps count
    ENOUGH: ClassVar[int] = 20  # steps from which on the mean means something

    weighted: float = 0.0
    steps: int = 0

    def after(self, loss: float) -> "LossLevel":
        """With one more loss."""
        return LossLevel(self.DECAY * self.weighted + (1 - self.DECAY) * loss, self.steps + 1)

    @property
    def mean(self) -> float:
        """The mean; infinite as long as there are too few losses for one."""
        return self.weighted / (1 - self.DECAY**self.steps) if self.steps >= self.ENOUGH else math.inf


@dataclass(frozen=True, slots=True)
class Sums:
    """What some steps had, over all processes."""

    steps: int = 0
    bad_steps: int = 0  # of these, those whose loss or gradient could not be
    loss: float = 0.0  # sum of the good steps' mean losses
    tokens: int = 0  # without padding
    padded_tokens: int = 0  # with padding
    packs: int = 0
    samples: int = 0
    images: int = 0
    tiles: int = 0
    labelled: int = 0  # tokens that were learnt from
    pairs: int = 0  # of a query and a key that it sees
    tile_imbalance: float = 0.0  # sum over the steps
    lateness: int = 0  # the most
    arrived: int = 0  # samples read, whether they are in a pack already or wait for one, and the unreadable ones
    bad: int = 0  # of these, the unreadable ones
    data_seconds: float = 0.0  # waiting for the loader: of the process that waited longest in each step
    data_seconds_mean: float = 0.0  # of the processes' mean
    compute_seconds: float = 0.0
    compute_seconds_mean: float = 0.0

    @property
    def mean_loss(self) -> float:
        """Of the good steps; NaN if there are none."""
        good = self.steps - self.bad_steps
        return self.loss / good if good else math.nan

    @property
    def seconds(self) -> float:
        """How long the steps took."""
        return self.data_seconds + self.compute_seconds

    def plus(self, other: "Sums") -> "Sums":
        """These steps and some more."""
        names = (name for name in self.__dataclass_fields__ if name != "lateness")
        summed = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Sums(**summed, lateness=max(self.lateness, other.lateness))


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums since the last statistics, of the epoch that is going on, of the whole run; the filter; the loss's level."""

    window: Sums = field(default_factory=Sums)
    epoch: Sums = field(default_factory=Sums)
    run: Sums = field(default_factory=Sums)
    counts: FilterCounts = field(default_factory=FilterCounts)  # what the filter did to a stream
    level: LossLevel = field(default_factory=LossLevel)
    epochs: int = 0  # done by all processes
    bad_in_a_row: int = 0  # steps

    def after(self, step: Sums, counts: FilterCounts, epochs: int) -> "Totals":
        """With one more step."""
        merged = FilterCounts()
        merged.merge(self.counts)
        merged.merge(counts)
        return Totals(
            window=self.window.plus(step),
            epoch=self.epoch.plus(step),
            run=self.run.plus(step),
            counts=merged,
            level=self.level if step.bad_steps else self.level.after(step.loss),
            epochs=epochs,
            bad_in_a_row=self.bad_in_a_row + 1 if step.bad_steps else 0,
        )

    def in_next_epoch(self) -> "Totals":
        """With an epoch that has no step yet."""
        return replace(self, epoch=Sums())

    def in_next_window(self) -> "Totals":
        """With no step since the last statistics."""
        return replace(self, window=Sums())

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Totals":
        """The totals whose ``asdict`` was written.

        Raises:
            KeyError, TypeError: They were not.
        """
        return Totals(
            Sums(**value["window"]),
            Sums(**value["epoch"]),
            Sums(**value["run"]),
            FilterCounts(**value["counts"]),
            LossLevel(**value["level"]),
            int(value["epochs"]),
            int(value["bad_in_a_row"]),
        )


def summarise(sums: Sums, seq_length: int) -> dict[str, float]:
    """The reference's statistics over some steps, and how well packs are filled and shared out."""
    samples, steps = max(sums.samples, 1), max(sums.steps, 1)
    packs, padded, seconds = max(sums.packs, 1), max(sums.padded_tokens, 1), sums.seconds or 1.0
    return {
        "images_per_sample": sums.images / samples,
        "tokens_per_sample": sums.tokens / samples,
        "tiles_per_pack": sums.tiles / packs,
        "tile_imbalance": sums.tile_imbalance / steps,
        "padding_ratio": 1 - sums.tokens / padded,
        "utilisation": sums.tokens / (packs * seq_length),
        "lateness_max": sums.lateness,
        "bad_samples": sums.bad,
        "bad_steps": sums.bad_steps,
        "data_wait_share": sums.data_seconds / seconds,
    }
