"""What a checkpoint holds, when it is whole, which are kept. Whole runs that are killed: tests/test_train.py."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.steps import build_trainer, encoder_of, small_config, step_of
from vlmkit.config import TrainConfig
from vlmkit.data.plan import Position
from vlmkit.errors import ConfigError, UserError
from vlmkit.model.weights import load_checkpoint_weights
from vlmkit.paths import RunPaths
from vlmkit.training.checkpoint import (
    Checkpoints,
    choose_start,
    remove_half_written,
    remove_surplus,
)
from vlmkit.training.loop import Progress, Trainer
from vlmkit.training.totals import LossLevel, Totals

KEYS = {"seed": 0}


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")


def open_checkpoints(paths: RunPaths, config: TrainConfig) -> tuple[Checkpoints, Trainer]:
    trainer, ranks = build_trainer(config)
    encoder = encoder_of(config)
    return Checkpoints(paths, config.trainer, trainer, encoder.tokenizer, encoder.layout, ranks, KEYS), trainer


def train_one(trainer: Trainer, config: TrainConfig, step: int) -> float:
    return trainer.train_step(step, step_of(encoder_of(config), [[step, 2]]), 0.0, LossLevel()).loss


def fake_checkpoints(paths: RunPaths, val_losses: dict[int, float | None]) -> None:
    for step, loss in val_losses.items():
        state = paths.checkpoint(step) / "trainer_state"
        state.mkdir(parents=True)
        (state / "progress.json").write_text(json.dumps({"step": step, "val_loss": loss}))


def kept(paths: RunPaths) -> list[int]:
    return sorted(int(path.name[5:]) for path in paths.checkpoints.iterdir())


def test_a_restored_trainer_goes_on_bit_for_bit(paths: RunPaths) -> None:
    config = small_config()
    checkpoints, trainer = open_checkpoints(paths, config)
    train_one(trainer, config, 1)
    torch.rand(7)  # the random state is part of it
    checkpoints.save(Progress(1, Position(0, 1), Totals(level=LossLevel(0.5, 1))))
    expected = train_one(trainer, config, 2), torch.rand(3)

    again, restored = open_checkpoints(paths, config)
    folder = choose_start(paths, "auto", "auto", 100)
    assert folder is not None
    load_checkpoint_weights(restored.model.hf, folder)
    progress = again.restore(folder, Position())
    assert progress == Progress(1, Position(0, 1), Totals(level=LossLevel(0.5, 1)))
    went_on = train_one(restored, config, 2), torch.rand(3)
    assert went_on[0] == expected[0]
    assert torch.equal(went_on[1], expected[1])
    for name, parameter in trainer.model.state_dict().items():
        assert torch.equal(parameter, restored.model.state_dict()[name]), name


def test_what_is_written_in_the_background_is_the_state_when_it_was_saved(paths: RunPaths) -> None:
    config = small_config("trainer.save_in_background=true")
    checkpoints, trainer = open_checkpoints(paths, config)
    before = trainer.model.hf.model.connector.modality_projection.proj.weight.detach().clone()
    with checkpoints:
        checkpoints.save(Progress(1, Position(0, 1)))
        train_one(trainer, config, 2)
    saved = load_file(paths.checkpoint(1) / "model.safetensors")
    assert torch.equal(saved["model.connector.modality_projection.proj.weight"], before)


def test_a_write_that_fails_in_the_background_is_told(paths: RunPaths) -> None:
    config = small_config("trainer.save_in_background=true")
    checkpoints, _ = open_checkpoints(paths, config)
    paths.root.mkdir(parents=True)
    paths.checkpoints.write_text("in the way of the folder")
    with pytest.raises(UserError, match="step_1: cannot write this checkpoint"), checkpoints:
        checkpoints.save(Progress(1, Position(0, 1)))


def test_weights_that_are_no_numbers_are_not_saved(paths: RunPaths) -> None:
    checkpoints, trainer = open_checkpoints(paths, small_config())
    with torch.no_grad():
        trainer.model.hf.lm_head.weight[3, 4] = torch.nan
    with pytest.raises(UserError, match=r"step_1: not saved: .*embed_tokens.weight has values that are no numbers"):
        checkpoints.save(Progress(1, Position(0, 1)))
    assert paths.newest_checkpoint is None


@pytest.mark.parametrize(
    ("overrides", "left"),
    [
        ([], [1, 2, 3, 4, 5, 6]),
        (["trainer.keep_last=2"], [3, 5, 6]),
        (["trainer.keep_last=2", "trainer.keep_best=false"], [5, 6]),
        (["trainer.keep_last=1", "trainer.keep_every=2"], [2, 3, 4, 6]),
    ],
)
def test_rotation_keeps_the_newest_every_nth_and_the_best(
    paths: RunPaths, overrides: list[str], left: list[int]
) -> None:
    fake_checkpoints(paths, {1: 3.0, 2: 2.0, 3: 0.5, 4: 0.9, 5: None, 6: 1.0})
    remove_surplus(paths, small_config(*overrides).trainer)
    assert kept(paths) == left


def test_rotation_leaves_what_others_wait_for(paths: RunPaths) -> None:
    fake_checkpoints(paths, {1: 3.0, 2: 2.0, 3: 1.0, 4: 0.5})
    config = small_config("trainer.keep_last=1").trainer
    remove_surplus(paths, config, in_need={2, 7})
    assert kept(paths) == [2, 4]
    remove_surplus(paths, config)
    assert kept(paths) == [4]


def test_a_save_asks_what_others_wait_for_and_so_does_the_end(paths: RunPaths) -> None:
    config = small_config("trainer.keep_last=1", "trainer.keep_best=false")
    trainer, ranks = build_trainer(config)
    encoder, needed = encoder_of(config), {1}
    checkpoints = Checkpoints(
        paths, config.trainer, trainer, encoder.tokenizer, encoder.layout, ranks, KEYS, lambda: needed
    )
    for step in (1, 2, 3):
        checkpoints.save(Progress(step, Position(0, step)))
    assert kept(paths) == [1, 3]
    needed.clear()
    checkpoints.tidy()
    assert kept(paths) == [3]


def test_nothing_half_written_or_half_removed_is_taken_for_a_checkpoint(paths: RunPaths) -> None:
    fake_checkpoints(paths, {9: None, 10: None})
    (paths.checkpoints / ".step_11.tmp" / "half").mkdir(parents=True)
    paths.checkpoint(10).rename(paths.checkpoints / ".step_10.tmp")  # as a removal begins
    assert paths.newest_checkpoint == paths.checkpoint(9)
    remove_half_written(paths)
    assert kept(paths) == [9]


def test_a_place_in_other_data_is_refused_and_the_way_out_is_named(paths: RunPaths) -> None:
    config = small_config()
    checkpoints, _ = open_checkpoints(paths, config)
    checkpoints.save(Progress(1, Position(0, 1)))
    progress = paths.checkpoint(1) / "trainer_state" / "progress.json"
    progress.write_text(progress.read_text().replace('"seed":0', '"seed":7'))
    with pytest.raises(ConfigError, match=r"seed=7 there, 0 here; model.init_from=.* takes the weights alone"):
        checkpoints.restore(paths.checkpoint(1), Position())


def test_no_pickle_but_tensors_and_plain_values_is_read(paths: RunPaths) -> None:
    config = small_config()
    checkpoints, _ = open_checkpoints(paths, config)
    checkpoints.save(Progress(1, Position(0, 1)))
    torch.save({"state": {}, "evil": os.system}, paths.checkpoint(1) / "trainer_state" / "optimizer.pt")
    with pytest.raises(UserError, match="cannot resume from this checkpoint"):
        checkpoints.restore(paths.checkpoint(1), Position())
