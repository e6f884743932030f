"""The training loop: steps, and what is called after each.

A step is ``gradient_accumulation_steps`` micro-batches on every process. Its loss is the sum over all labelled
tokens of the global batch divided by their number, whichever process and micro-batch they are in.
"""

import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch

from vlmkit.config import RATING_AXES, OnBadStep, TrainConfig
from vlmkit.data.loader import LanePositions, StepBatches
from vlmkit.data.plan import Position
from vlmkit.data.ratings import FilterCounts
from vlmkit.distributed import Ranks
from vlmkit.errors import BadSampleError
from vlmkit.interrupt import StopSignal
from vlmkit.model.layers import wrap_layers
from vlmkit.model.loss import shift_labels
from vlmkit.model.packed import PackedVLM
from vlmkit.training.optim import (
    build_optimizer,
    clip_gradients,
    freeze_parts,
    gradient_norms,
    lr_scale,
    set_learning_rates,
)
from vlmkit.training.totals import LossLevel, Sums, Totals
from vlmkit.types import IGNORED_LABEL, Batch, add_digests

DataPosition = Position | LanePositions


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    step: int
    position: DataPosition  # in the data, after the step
    totals: Totals = field(default_factory=Totals)
    val_loss: float | None = None  # at this step, if it was computed


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long each process took for something."""

    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class StepStats:
    """What happened in one step, over all processes."""

    step: int
    position: DataPosition  # in the data, after the step
    loss: float  # mean over the labelled tokens
    grad_norm: float  # before clipping
    grad_norms: dict[str, float]  # by part
    fault: str | None  # why the loss or the gradient cannot be
    learning_rates: dict[str, float]  # by part
    sums: Sums  # of this step
    epochs: int  # done by all processes
    data_hash: int  # of the step's samples and ids, however they are split
    counts: FilterCounts  # what the filter met in a stream
    peak_memory_gb: float  # of the process that has used most at any time since it started
    names: tuple[str, ...]  # of this process's samples
    bad: tuple[BadSampleError, ...]  # samples that this process could not read
    left_out: Mapping[str, int]  # samples of a stream that this process did not take, by reason
    totals: Totals = field(default_factory=Totals)  # with this step
    ended_epoch: Sums | None = None  # of the epoch that ended with this step
    ended_window: Sums | None = None  # of the steps since the last statistics, if they are due


class Callback(Protocol):
    """Something that happens after every step."""

    def after_step(self, stats: StepStats) -> None:
        """Called once for each step, in the order of the callbacks' list."""


class Trainer:
    """The model, its optimizer and the arithmetic of one step."""

    def __init__(self, model: PackedVLM, config: TrainConfig, ranks: Ranks) -> None:
        """Get a model with its final weights ready to be trained."""
        freeze_parts(model.hf, config.optimizer)
        wrap_layers(model, compiled=config.trainer.compile, recomputed=config.trainer.activation_checkpointing)
        self.model = model
        self.max_steps = config.trainer.max_training_steps
        self.stats_interval = config.trainer.stats_log_interval
        self._wrapped = ranks.spread(model, model.blocks)
        self.optimizer = build_optimizer(model.hf, config.optimizer)
        self._config = config
        self._ranks = ranks

    def train_step(self, step: int, batches: StepBatches, data_seconds: float, level: LossLevel) -> StepStats:
        """One optimizer step on one step's data.

        Args:
            step: Its number, from 1.
            batches: This process's share of the data.
            data_seconds: How long this process waited for it.
            level: Where the loss was before.
        """
        started = time.perf_counter()
        micro_batches = batches.micro_batches
        of_ranks = [_Counts(*values) for values in self._ranks.collect(*_count(batches))]
        own_loss = self._accumulate(micro_batches, sum(counts.labelled for counts in of_ranks))
        [loss] = self._ranks.sum(own_loss)
        norms = gradient_norms(self.optimizer)
        fault = find_fault(loss, norms, level, self._config.trainer.spike_margin)
        learning_rates = set_learning_rates(self.optimizer, lr_scale(step, self.max_steps, self._config.optimizer))
        grad_norm = clip_gradients(self.optimizer, norms, self._config.optimizer.max_grad_norm)
        goes_on = self._config.trainer.on_bad_step is OnBadStep["continue"] and math.isfinite(loss + grad_norm)
        if fault is None or goes_on:
            self.optimizer.step()
        self.optimizer.zero_grad()
        own = data_seconds, time.perf_counter() - started, peak_memory_gb(self._ranks.device)
        *seconds, memory = zip(*self._ranks.collect(*own), strict=True)
        waited, computed = (Seconds(sum(each) / len(each), max(each)) for each in seconds)
        return StepStats(
            step=step,
            position=batches.position,
            loss=loss,
            grad_norm=grad_norm,
            grad_norms=norms,
            fault=fault,
            learning_rates=learning_rates,
            sums=_sums_of_step(of_ranks, loss, fault is not None and not goes_on, waited, computed),
            epochs=int(min(counts.epochs for counts in of_ranks)),
            data_hash=add_digests(int(counts.digest) for counts in of_ranks),
            counts=_filter_counts(of_ranks),
            peak_memory_gb=max(memory),
            names=tuple(name for batch in micro_batches for pack in batch.names for name in pack),
            bad=(*batches.report.bad, *(error for batch in micro_batches for error in batch.bad)),
            left_out=batches.report.left_out,
        )

    def _accumulate(self, micro_batches: Sequence[Batch], labelled: float) -> float:
        """Gradients of this process's micro-batches, averaged over the processes with the last; its share of the loss.

        Args:
            micro_batches: Of one step.
            labelled: Tokens to learn from in the global batch.
        """
        parts = []
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with nullcontext() if last else self._ranks.without_gradient_sync(self._wrapped):
                with self._ranks.autocast():
                    part = self._wrapped(batch.to(self._ranks.device)) / max(labelled, 1)
                # Gradients are averaged over processes; the loss is a sum over them.
                (part * self._ranks.world_size).backward()
                parts.append(part.detach())
        return torch.stack(parts).sum().item()


def peak_memory_gb(device: torch.device) -> float:
    """The most memory, in GB of 10**9 bytes, that this process has used so far: of its GPU, or else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def find_fault(loss: float, norms: Mapping[str, float], level: LossLevel, spike_margin: float | None) -> str | None:
    """Why a step's loss or gradient cannot be; None if it can.

    Args:
        loss: Of the step.
        norms: Of the gradient, by part.
        level: Where the loss was before.
        spike_margin: How far it may be above that, in nats; None: as far as it likes.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    for part, norm in norms.items():
        if not math.isfinite(norm):
            return f"the gradient of the {part} part is {norm}"
    if spike_margin is not None and loss > level.mean + spike_margin:
        return f"the loss is {loss:.3f}, more than {spike_margin} above its mean of {level.mean:.3f}"
    return None


def run_steps(
    trainer: Trainer,
    batches: Iterator[StepBatches],
    start: Progress,
    callbacks: Sequence[Callback],
    stop: StopSignal,
    ranks: Ranks,
) -> Progress:
    """Train on from ``start`` to the last step, or until any process gets a signal or has no more data.

    Returns:
        How far it came; the same on every process.
    """
    done = start
    trainer.model.train()
    for step in range(start.step + 1, trainer.max_steps + 1):
        started = time.perf_counter()
        data = next(batches, None)
        data_seconds = time.perf_counter() - started
        if any(ranks.sum(float(stop.received is not None), float(data is None))) or data is None:
            break
        stats = trainer.train_step(step, data, data_seconds, done.totals.level)
        del data  # or this step's batches would stay until the next one's are there
        stats = _added_up(stats, done, trainer.stats_interval)
        for callback in callbacks:
            callback.after_step(stats)
        done = Progress(step, stats.position, stats.totals)
    return done


def _added_up(stats: StepStats, before: Progress, stats_interval: int) -> StepStats:
    """A step's statistics with the totals up to it, and what ended with it."""
    totals = before.totals.after(stats.sums, stats.counts, stats.epochs)
    epoch = window = None
    if stats.epochs > before.totals.epochs:
        totals, epoch = totals.in_next_epoch(), totals.epoch
    if stats.step % stats_interval == 0:
        totals, window = totals.in_next_window(), totals.window
    return replace(stats, totals=totals, ended_epoch=epoch, ended_window=window)


@torch.no_grad()
def compute_val_loss(model: PackedVLM, batches: Iterable[Batch], ranks: Ranks) -> float:
    """Mean loss over the labelled tokens of held-out micro-batches, over all processes; NaN if there are none."""
    model.eval()
    loss, labelled = 0.0, 0
    for batch in batches:
        with ranks.autocast():
            loss += model(batch.to(ranks.device)).item()
        labelled += _num_labelled(batch)
    model.train()
    total_loss, total_labelled = ranks.sum(loss, labelled)
    return total_loss / total_labelled if total_labelled else float("nan")


def _num_labelled(batch: Batch) -> int:
    return int((shift_labels(batch.labels) != IGNORED_LABEL).sum())


class _Counts(NamedTuple):
    """What one process has in a step; numbers, so that they can travel as a tensor."""

    epochs: float
    labelled: float
    digest: float
    pairs: float
    tokens: float
    padded_tokens: float
    packs: float
    samples: float
    images: float
    tiles: float
    arrived: float
    bad: float
    lateness: float
    rated_turns: float
    kept_turns: float
    rated_samples: float
    kept_samples: float
    below_0: float  # turns below the minimum of each axis
    below_1: float
    below_2: float
    below_3: float


def _count(batches: StepBatches) -> _Counts:
    micro_batches, met = batches.micro_batches, batches.report
    samples = sum(batch.num_samples for batch in micro_batches)
    bad = sum(len(batch.bad) for batch in micro_batches)
    # What waits in a stream's pools has been read, too; a plan reads what it packs.
    streamed = isinstance(batches.position, LanePositions)
    read = met.samples_of_sources.total() if streamed else samples + bad
    return _Counts(
        epochs=batches.position.epoch,
        labelled=sum(_num_labelled(batch) for batch in micro_batches),
        digest=add_digests(batch.digest for batch in micro_batches),
        pairs=sum(batch.num_pairs for batch in micro_batches),
        tokens=sum(int((batch.segment_ids >= 0).sum()) for batch in micro_batches),
        padded_tokens=sum(batch.input_ids.numel() for batch in micro_batches),
        packs=sum(len(batch.input_ids) for batch in micro_batches),
        samples=samples,
        images=sum(batch.num_images for batch in micro_batches),
        tiles=sum(len(batch.tiles) for batch in micro_batches),
        arrived=read + len(met.bad),
        bad=bad + len(met.bad),
        lateness=max(batch.lateness for batch in micro_batches),
        rated_turns=met.counts.turns,
        kept_turns=met.counts.kept_turns,
        rated_samples=met.counts.samples,
        kept_samples=met.counts.kept_samples,
        **{f"below_{axis}": below for axis, below in enumerate(met.counts.below)},
    )


def _sums_of_step(of_ranks: Sequence[_Counts], loss: float, is_bad: bool, waited: Seconds, computed: Seconds) -> Sums:
    tiles = [counts.tiles for counts in of_ranks]
    added = ("labelled", "pairs", "tokens", "padded_tokens", "packs", "samples", "images", "tiles", "arrived", "bad")
    return Sums(
        steps=1,
        bad_steps=int(is_bad),
        loss=0.0 if is_bad else loss,
        **{name: _total(of_ranks, name) for name in added},
        tile_imbalance=max(tiles) * len(tiles) / max(sum(tiles), 1),
        lateness=int(max(counts.lateness for counts in of_ranks)),
        data_seconds=waited.max,
        data_seconds_mean=waited.mean,
        compute_seconds=computed.max,
        compute_seconds_mean=computed.mean,
    )


def _filter_counts(of_ranks: Sequence[_Counts]) -> FilterCounts:
    return FilterCounts(
        turns=_total(of_ranks, "rated_turns"),
        kept_turns=_total(of_ranks, "kept_turns"),
        below=[_total(of_ranks, f"below_{axis}") for axis in range(len(RATING_AXES))],
        samples=_total(of_ranks, "rated_samples"),
        kept_samples=_total(of_ranks, "kept_samples"),
    )


def _total(of_ranks: Sequence[_Counts], name: str) -> int:
    return int(sum(getattr(counts, name) for counts in of_ranks))
