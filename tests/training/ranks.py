"""What several processes do together: ``torchrun`` runs this, ``test_ranks.py`` reads what the first process prints.

All in one go, as a start takes seconds: steps in which some processes have no pictures, a checkpoint, going on from it,
data that end on one process before they end on the others, validation on a number of packs that does not divide evenly.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.training.steps import batch_of, build_trainer, encoder_of, small_config, step_of
from vlmkit.config import Precision, TrainConfig
from vlmkit.data.loader import Shard
from vlmkit.data.plan import Position
from vlmkit.distributed import Ranks
from vlmkit.interrupt import StopSignal
from vlmkit.paths import RunPaths
from vlmkit.training.checkpoint import Checkpoints, choose_start
from vlmkit.training.loop import Progress, StepStats, compute_val_loss, run_steps

# Four micro-batches of packs for each step, by numbers of samples; 0, 3 and 6 have no pictures.
STEPS = (
    ([[1, 2], [0]], [[4]], [[0, 6]], [[8], [3]]),
    ([[0, 3]], [[1, 5, 4]], [[6]], [[2]]),
    ([[7]], [[8, 0]], [[1], [3, 6]], [[5]]),
)
HELD_OUT = ((1, 2), (0,), (4,), (3,), (5, 7))


class Record:
    """Keeps what must be the same on any number of processes."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def after_step(self, stats: StepStats) -> None:
        """Keep it."""
        self.steps.append({"loss": stats.loss, "data_hash": stats.data_hash, **stats.grad_norms})


def train(config: TrainConfig, paths: RunPaths, steps: Sequence[Any], record: Record) -> tuple[Progress, float]:
    """Go on from the newest checkpoint to the end of these steps, save, validate."""
    ranks = Ranks(config.trainer, config.seed)
    encoder, world = encoder_of(config), ranks.world_size
    begin_from = ranks.run_on_main(lambda: choose_start(paths, "auto", "auto", 100))
    dtype = torch.float32 if config.trainer.precision is Precision.bf16 else torch.float64
    trainer, ranks = build_trainer(config, dtype, begin_from)
    checkpoints = Checkpoints(paths, config.trainer, trainer, encoder.tokenizer, encoder.layout, ranks, {})
    start = checkpoints.restore(begin_from, Position())
    own = [step_of(encoder, *shares[ranks.rank :: world], step=number) for number, shares in enumerate(steps, 1)]
    with StopSignal() as stop:
        end = run_steps(trainer, iter(own[start.step :]), start, [record], stop, ranks)
    held_out = Shard(ranks.rank, world, 1, 1).equal_share(HELD_OUT)
    val_loss = compute_val_loss(trainer.model, [batch_of(encoder, [pack]) for pack in held_out], ranks)
    checkpoints.save(end)  # after a validation, as in a run: it must not leave gathered weights behind
    return end, val_loss


def results(folder: Path, *overrides: str) -> dict[str, Any]:
    """Two steps and a checkpoint, then a third step; every process but the first has a fourth. And all in one go."""
    config, paths, record, whole = small_config(*overrides), RunPaths(folder), Record(), Record()
    train(config, paths, STEPS[:2], record)
    rank = Ranks(config.trainer, config.seed).rank
    end, val_loss = train(config, paths, STEPS + STEPS[:1] * (rank > 0), record)
    train(config, RunPaths(folder / "whole"), STEPS, whole)
    exact = record.steps == whole.steps
    return {"steps": record.steps, "end": end.step, "val_loss": val_loss, "exact": exact}


def longest_wait() -> float:
    """How long a process waits for the others before it gives up, in seconds."""
    group = torch.distributed.group.WORLD
    assert group is not None
    seconds: float = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    return seconds


if __name__ == "__main__":
    found = results(Path(sys.argv[1]), *sys.argv[2:])
    if torch.distributed.get_rank() == 0:
        found["longest_wait"] = longest_wait()
        sys.stdout.write(f"RESULT {json.dumps(found)}\n")
    torch.distributed.destroy_process_group()
