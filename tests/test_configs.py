"""Every yaml option composes, and holds only what differs."""

import re
from functools import partial
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from tests import conftest
from vlmkit.config import SCHEMAS, AugmentConfig, Layout, OptimizerConfig, PackingConfig, TrainerConfig
from vlmkit.errors import ConfigError
from vlmkit.paths import config_dir
from vlmkit.pretrained.configs import flat_items
from vlmkit.run_directory import plain_config

composed = partial(conftest.composed, "train")
OPTIONS = sorted(path for path in config_dir().glob("*/*.yaml"))


NEEDED = {
    "model=checkpoint": ["model.tokenizer=tiny"],  # a checkpoint would say it
    "model=smolvlm_256m": ["model.tokenizer=tiny"],
    "dataset=local": ["dataset.path=data/*.parquet"],
    "dataset=shards": ["dataset.path=data"],
    "dataset=mixture": ["+dataset.parts.shapes={dataset: easyvqa, weight: 1}"],
}


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_option_composes(path: Path) -> None:
    option = f"{path.parent.name}={path.stem}"
    composed(option, *NEEDED.get(option, []))


def test_options_were_found() -> None:
    assert {path.parent.name for path in OPTIONS} >= {
        "model", "dataset", "filter", "packing", "optimizer", "trainer", "logger", "evals", "eval_suite",
    }  # fmt: skip


def inherited(name: str, folder: Path) -> DictConfig:
    """What an option begins with: the defaults of a schema, or another option of its group."""
    if name in SCHEMAS:
        return OmegaConf.structured(SCHEMAS[name][1])
    option = OmegaConf.load(folder / f"{name}.yaml")
    return OmegaConf.merge(inherited(option.pop("defaults")[0], folder), option)


@pytest.mark.parametrize(
    "path",
    [path for path in OPTIONS if path.parent.name != "experiment"],
    ids=lambda path: f"{path.parent.name}={path.stem}",
)
def test_an_option_repeats_no_default(path: Path) -> None:
    option = OmegaConf.load(path)
    defaults = option.pop("defaults")
    without = inherited(defaults[0].partition("@")[0], path.parent)
    if path.read_text().startswith("# @package _global_"):
        option = option[path.parent.name]
    for key, value in flat_items(OmegaConf.to_container(option)):
        assert OmegaConf.select(without, key, throw_on_missing=False) != value, f"{path.name}: {key} is the default"


def test_the_defaults_of_trainer_optimizer_and_packing_are_the_reference() -> None:
    config = composed("trainer=default", "optimizer=adamw", "packing.seq_length=4096")
    assert PackingConfig().seq_length == 4096
    assert (config.optimizer.lr_projector, config.optimizer.lr_vision, config.optimizer.lr_language) == (
        0.00512, 5e-5, 5e-5,
    )  # fmt: skip
    assert (config.packing.seq_length, config.packing.max_images_per_knapsack) == (4096, 18)
    assert (config.trainer.max_training_steps, config.trainer.batch_size) == (40000, 2)
    assert config.trainer.gradient_accumulation_steps == 8
    assert config.filter.minima == (1, 1, 1, 1)


def test_a_dataset_chooses_what_goes_with_it_and_the_command_line_comes_first() -> None:
    assert composed().trainer.max_training_steps == 2100
    assert composed().optimizer.lr_projector == 1e-3
    assert composed("optimizer=adamw").optimizer == OptimizerConfig()
    assert composed("trainer=default").trainer == TrainerConfig()
    assert composed("trainer=default", "trainer.batch_size=3").trainer.batch_size == 3


EXPERIMENTS = sorted((config_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_begins_with_its_command_and_repeats_no_default(path: Path) -> None:
    package, command, *_ = path.read_text().splitlines()
    assert package == "# @package _global_"  # Hydra wants it first
    yaml = OmegaConf.load(path)
    of_hydra = yaml.pop("hydra", {})
    assert command == f"# python -m vlmkit.train {'-m ' * ('sweeper' in of_hydra)}experiment={path.stem}"
    lines = [
        {"experiment": line} if isinstance(line, str) else line for line in yaml.pop("defaults") if line != "_self_"
    ]
    chosen = [f"{key.removeprefix('override /')}={name}" for line in lines for key, name in line.items()]
    without = OmegaConf.create(plain_config(composed(*(each for each in chosen if not each.startswith("hydra/")))))
    for key, value in flat_items(OmegaConf.to_container(yaml)):
        assert OmegaConf.select(without, key) != value, f"{path.name}: {key} is the default"


def test_the_experiments_are_the_reference_s() -> None:
    production = composed("experiment=production")
    assert (production.dataset.repo, production.dataset.streaming) == (
        "HuggingFaceM4/FineVision_concat_shuffled_2",
        True,
    )
    assert production.trainer == TrainerConfig()
    assert (production.packing.seq_length, production.packing.max_images_per_knapsack) == (4096, 18)
    low = composed("experiment=low_resource")
    assert (low.trainer.batch_size, low.trainer.gradient_accumulation_steps, low.trainer.eval_interval) == (1, 16, 1000)
    assert (low.packing.seq_length, low.packing.max_images_per_knapsack) == (2048, 10)
    assert low.dataset.max_images_per_example == 2


def test_an_experiment_wins_over_its_dataset_and_the_command_line_over_both() -> None:
    """easyvqa.yaml chooses the trainer demo and a pack of 192 tokens."""
    assert composed("experiment=production", "dataset=easyvqa").trainer == TrainerConfig()
    assert composed("experiment=low_resource", "dataset=easyvqa").packing.seq_length == 2048
    changed = composed("experiment=production", "model=tiny", "trainer.batch_size=4")
    assert (changed.trainer.batch_size, changed.model.vision.hidden_size) == (4, 128)
    assert changed.optimizer.lr_projector == 1e-3
    assert composed("trainer=demo", "experiment=production").trainer.max_training_steps == 2100
    assert composed("experiment=low_resource", "packing.seq_length=512").packing.seq_length == 512


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("resize_to_max_side_len=false", "resize_to_max_side_len=False: must be true with model.image.layout=idefics3"),
        ("max_img_size=448", "max_img_size=448: must be a multiple of model.vision.tile_size=64, at most 6 tiles"),
        ("max_img_size=255", "max_img_size=255: must be even with model.image.layout=idefics3"),
        ("max_img_size=4160", "max_img_size=4160: must be at most 4096 with model.image.layout=idefics3"),
    ],
)
def test_what_the_processor_of_idefics3_would_do_otherwise_is_refused(override: str, told: str) -> None:
    idefics3 = ("model.image.layout=idefics3", "model.image.resize_to_max_side_len=true")
    assert composed(*idefics3).model.image.layout is Layout.idefics3
    with pytest.raises(ConfigError, match=f"^{re.escape(f'model.image.{told}')}"):
        composed(*idefics3, f"model.image.{override}")


def test_a_pretrained_model_goes_with_the_reference_s_optimizer() -> None:
    for option in ("nanovlm_222m", "nanovlm_460m"):
        assert composed(f"model={option}").optimizer == OptimizerConfig()


def test_the_reference_s_models_have_its_tokens_per_tile() -> None:
    assert composed("model=nanovlm_222m").model.tokens_per_tile == 49
    assert composed("model=nanovlm_460m").model.tokens_per_tile == 64


def test_pictures_are_augmented_only_if_asked_for() -> None:
    assert composed().dataset.augment == AugmentConfig(color_jitter=0, rotation_degrees=0)
    asked = composed("dataset.augment.color_jitter=0.1", "dataset.augment.rotation_degrees=5")
    assert asked.dataset.augment == AugmentConfig(color_jitter=0.1, rotation_degrees=5)


def test_the_recommended_filter_is_the_reference_s() -> None:
    assert composed("filter=recommended").filter.minima == (3, 3, 2, 3)


@pytest.mark.parametrize("command", [["train"], ["eval", "ckpt=x"]])
def test_a_job_of_an_evaluation_that_would_be_told_to_leave_as_it_begins_is_refused_at_once(command: list[str]) -> None:
    arguments = [*command, "evals=slurm", "evals.job.time_min=2"]
    conftest.composed(*arguments, "cluster.signal_delay_s=119")
    with pytest.raises(ConfigError, match=r"^time_min=2: must be more than signal_delay_s=120 \(seconds\)"):
        conftest.composed(*arguments)
