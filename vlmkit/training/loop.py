"""The training loop: steps, and what is called after each.

A step is ``gradient_accumulation_steps`` micro-batches on every process. Its loss is the sum over all labelled
tokens of the global batch divided by their number, whichever process and micro-batch they are in.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch

from vlmkit.config import OptimizerConfig
from vlmkit.data.loader import StepBatches
from vlmkit.data.plan import Position
from vlmkit.distributed import Ranks
from vlmkit.interrupt import StopSignal
from vlmkit.model.loss import shift_labels
from vlmkit.model.packed import PackedVLM
from vlmkit.training.optim import lr_scale, set_learning_rates
from vlmkit.types import IGNORED_LABEL, Batch


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    step: int
    position: Position  # in the plan, after the step


@dataclass(frozen=True, slots=True)
class StepStats:
    """What happened in one step, over all processes; seconds are this process's."""

    step: int
    position: Position  # in the plan, after the step
    loss: float  # mean over the labelled tokens
    grad_norm: float  # before clipping
    learning_rates: dict[str, float]  # by part
    tokens: int  # without padding
    padded_tokens: int  # with padding
    samples: int
    images: int
    tiles: int
    data_seconds: float  # waiting for the loader
    compute_seconds: float


class Callback(Protocol):
    """Something that happens after every step."""

    def after_step(self, stats: StepStats) -> None:
        """Called once for each step, in the order of the callbacks' list."""


class Trainer:
    """The model, its optimizer and the arithmetic of one step."""

    def __init__(
        self,
        model: PackedVLM,
        optimizer: torch.optim.Optimizer,
        config: OptimizerConfig,
        max_steps: int,
        ranks: Ranks,
    ) -> None:
        self.model = model
        self.max_steps = max_steps
        self._wrapped, self.optimizer = ranks.accelerator.prepare(model, optimizer)
        self._config = config
        self._ranks = ranks

    def train_step(self, step: int, batches: StepBatches, data_seconds: float) -> StepStats:
        """One optimizer step on one step's data."""
        started = time.perf_counter()
        micro_batches = batches.micro_batches
        labelled, tokens, padded, samples, images, tiles = self._ranks.sum(*_counts(micro_batches))
        loss = torch.zeros((), device=self._ranks.device)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with nullcontext() if last else self._ranks.accelerator.no_sync(self._wrapped):
                part = self._wrapped(batch.to(self._ranks.device)) / max(labelled, 1)
                # DDP averages gradients over processes; the loss is a sum over them.
                self._ranks.accelerator.backward(part * self._ranks.world_size)
                loss += part.detach()
        grad_norm = self._ranks.accelerator.clip_grad_norm_(self._wrapped.parameters(), self._config.max_grad_norm)
        learning_rates = set_learning_rates(self.optimizer, lr_scale(step, self.max_steps, self._config))
        self.optimizer.step()
        self.optimizer.zero_grad()
        total_loss = self._ranks.sum(loss.item())[0]
        return StepStats(
            step=step,
            position=batches.position,
            loss=total_loss,
            grad_norm=float(grad_norm),
            learning_rates=learning_rates,
            tokens=int(tokens),
            padded_tokens=int(padded),
            samples=int(samples),
            images=int(images),
            tiles=int(tiles),
            data_seconds=data_seconds,
            compute_seconds=time.perf_counter() - started,
        )


def run_steps(
    trainer: Trainer,
    batches: Iterator[StepBatches],
    start: Progress,
    callbacks: Sequence[Callback],
    stop: StopSignal,
    ranks: Ranks,
) -> Progress:
    """Train on from ``start`` to the last step, or to the end of the step in which a signal arrives.

    Returns:
        How far it came.
    """
    done = start
    trainer.model.train()
    for step in range(start.step + 1, trainer.max_steps + 1):
        if stop.reached_any(ranks):
            break
        started = time.perf_counter()
        data = next(batches)
        stats = trainer.train_step(step, data, data_seconds=time.perf_counter() - started)
        for callback in callbacks:
            callback.after_step(stats)
        done = Progress(step, stats.position)
    return done


@torch.no_grad()
def compute_val_loss(model: PackedVLM, batches: Sequence[Batch], ranks: Ranks) -> float:
    """Mean loss over the labelled tokens of held-out micro-batches, over all processes; NaN if there are none."""
    model.eval()
    loss = sum(model(batch.to(ranks.device)).item() for batch in batches)
    model.train()
    total, labelled = ranks.sum(loss, sum(_num_labelled(batch) for batch in batches))
    return total / labelled if labelled else float("nan")


def _num_labelled(batch: Batch) -> int:
    return int((shift_labels(batch.labels) != IGNORED_LABEL).sum())


def _counts(batches: Sequence[Batch]) -> tuple[float, ...]:
    """Labelled tokens, tokens, tokens with padding, samples, pictures, tiles."""
    return (
        sum(_num_labelled(batch) for batch in batches),
        sum(int((batch.segment_ids >= 0).sum()) for batch in batches),
        sum(batch.input_ids.numel() for batch in batches),
        sum(batch.num_samples for batch in batches),
        sum(batch.num_images for batch in batches),
        sum(len(batch.tiles) for batch in batches),
    )
