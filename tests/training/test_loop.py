"""The arithmetic of a step, and what ends a run."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.steps import batch_of, build_trainer, encoder_of, small_config, step_of
from vlmkit.config import OnBadStep
from vlmkit.data.loader import StepBatches
from vlmkit.data.plan import Position
from vlmkit.errors import UserError
from vlmkit.interrupt import StopSignal
from vlmkit.processing.chat import ChatEncoder
from vlmkit.tracking.console import Screen
from vlmkit.training.callbacks import WatchBadSteps
from vlmkit.training.loop import Progress, Trainer, find_fault, run_steps
from vlmkit.training.totals import LossLevel, Totals

NORMS = {"vision": 1.0, "language": 2.0}


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return encoder_of(small_config())


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def level_of(*losses: float) -> LossLevel:
    level = LossLevel()
    for loss in losses:
        level = level.after(loss)
    return level


@settings(max_examples=10)
@given(st.permutations(range(8)), st.lists(st.integers(1, 7), max_size=4, unique=True), st.integers(1, 3))
def test_a_step_is_the_same_however_its_packs_are_split_into_micro_batches(
    encoder: ChatEncoder, order: list[int], cuts: list[int], batch_size: int
) -> None:
    """float64: the same loss, the same gradient norm, the same weights afterwards."""
    edges = [0, *sorted(cuts), 8]
    packs = [order[a:b] for a, b in pairwise(edges)]
    micro_batches = [packs[i : i + batch_size] for i in range(0, len(packs), batch_size)]
    results = []
    for split in ([[list(range(8))]], micro_batches):
        trainer, _ = build_trainer(small_config(), torch.float64)
        stats = trainer.train_step(1, step_of(encoder, *split), 0.0, LossLevel())
        results.append((stats.loss, stats.grad_norm, *weights(trainer)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_the_data_hash_tells_steps_apart_and_does_not_see_how_packs_are_split(encoder: ChatEncoder) -> None:
    trainer, _ = build_trainer(small_config())

    def data_hash(*micro_batches: list[list[int]]) -> int:
        return trainer.train_step(1, step_of(encoder, *micro_batches), 0.0, LossLevel()).data_hash

    assert data_hash([[1, 2], [3]]) == data_hash([[3]], [[1, 2]])
    assert len({data_hash([[1, 2], [3]]), data_hash([[2, 1], [3]]), data_hash([[1], [2, 3]]), data_hash([[1]])}) == 4


def test_the_norm_is_that_of_all_parts_and_the_gradient_is_clipped_to_it(encoder: ChatEncoder) -> None:
    trainer, _ = build_trainer(small_config("optimizer.max_grad_norm=1e-3"))
    before = weights(trainer)
    stats = trainer.train_step(1, step_of(encoder, [[1, 2]]), 0.0, LossLevel())
    assert set(stats.grad_norms) == {"projector", "vision", "language"}
    assert stats.grad_norm == pytest.approx(math.sqrt(sum(norm**2 for norm in stats.grad_norms.values())))
    moment = torch.cat([state["exp_avg"].flatten() for state in trainer.optimizer.state.values()]) / (1 - 0.9)
    assert moment.norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))


@pytest.mark.parametrize(("action", "changes"), [("stop", False), ("skip", False), ("continue", True)])
def test_a_bad_step_changes_the_weights_only_if_it_is_to(encoder: ChatEncoder, action: str, changes: bool) -> None:
    trainer, _ = build_trainer(small_config(f"trainer.on_bad_step={action}"))
    before = weights(trainer)
    low = level_of(*[0.1] * 30)
    stats = trainer.train_step(40, step_of(encoder, [[1, 2]]), 0.0, low)
    assert stats.fault is not None
    assert "more than 2.0 above its mean of 0.100" in stats.fault
    assert len(stats.names) == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True)) == changes
    assert Progress(40, stats.position).totals.after(stats.sums, stats.counts, 0).run.bad_steps == int(not changes)


def test_what_is_no_number_is_a_fault_of_its_part() -> None:
    level = level_of(*[1.0] * 30)
    assert find_fault(math.nan, NORMS, level, 2.0) == "the loss is nan"
    assert find_fault(1.0, NORMS | {"vision": math.inf}, level, None) == "the gradient of the vision part is inf"
    assert find_fault(2.9, NORMS, level, 2.0) is None
    assert find_fault(3.1, NORMS, level, 2.0) is not None
    assert find_fault(3.1, NORMS, level, None) is None
    assert find_fault(9.0, NORMS, level_of(1.0, 1.0), 2.0) is None  # too early to tell


def test_the_level_is_the_mean_of_the_last_losses() -> None:
    assert level_of(*[3.0] * 25).mean == pytest.approx(3.0)
    assert level_of(*[9.0] * 100, *[1.0] * 400).mean == pytest.approx(1.0, abs=0.01)
    assert level_of(1.0).mean == math.inf


def test_what_was_reached_before_a_bad_step_is_saved_before_the_run_ends(encoder: ChatEncoder, tmp_path: Path) -> None:
    trainer, ranks = build_trainer(small_config())
    steps = [StepBatches([batch_of(encoder, [[number]])], Position(0, number + 1)) for number in range(25)]
    start = Progress(0, Position(), Totals(level=level_of(*[0.1] * 30)))
    saved: list[Progress] = []
    watch = WatchBadSteps(tmp_path / "bad.jsonl", OnBadStep.stop, start, saved.append, Screen(False), ranks)
    with StopSignal() as stop, pytest.raises(UserError, match=r"step 1: the loss is .*; its 1 samples are named in"):
        run_steps(trainer, iter(steps), start, [watch], stop, ranks)
    assert saved == [start]


def test_a_run_ends_where_its_data_end(encoder: ChatEncoder) -> None:
    trainer, ranks = build_trainer(small_config())
    steps = [StepBatches([batch_of(encoder, [[number]])], Position(0, number + 1)) for number in range(3)]
    with StopSignal() as stop:
        end = run_steps(trainer, iter(steps), Progress(0, Position()), [], stop, ranks)
    assert end.step == 3
    assert end.position == Position(0, 3)
