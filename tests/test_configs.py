"""Every yaml option composes, and holds only what differs."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from vlmkit.config import SCHEMAS, AugmentConfig, OptimizerConfig, PackingConfig, TrainConfig, TrainerConfig
from vlmkit.paths import config_dir

OPTIONS = sorted(path for path in config_dir().glob("*/*.yaml"))


@pytest.fixture(autouse=True, scope="module")
def schemas() -> None:
    for name, (group, cls) in SCHEMAS.items():
        ConfigStore.instance().store(name=name, node=cls, group=group)


def composed(*overrides: str) -> TrainConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_object(compose("train", overrides=list(overrides)))
    assert isinstance(config, TrainConfig)
    return config


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
        "model", "dataset", "filter", "packing", "optimizer", "trainer", "logger",
    }  # fmt: skip


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_an_option_repeats_no_default(path: Path) -> None:
    option = OmegaConf.load(path)
    defaults = option.pop("defaults")
    _, schema = SCHEMAS[defaults[0].partition("@")[0]]
    structured = OmegaConf.structured(schema)
    if path.read_text().startswith("# @package _global_"):
        option = option[path.parent.name]
    for key, value in flat(OmegaConf.to_container(option)).items():
        assert OmegaConf.select(structured, key, throw_on_missing=False) != value, f"{path.name}: {key} is the default"


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


def flat(config: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    merged: dict[str, object] = {}
    for key, value in config.items():
        merged |= flat(value, f"{prefix}{key}.")
    return merged
