"""What json files say becomes the config's values, and what vlmkit's models are not is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import Idefics3Config, LlamaConfig, SiglipVisionConfig, SmolVLMConfig
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from vlmkit.config import LanguageConfig, VisionConfig
from vlmkit.errors import ConfigError
from vlmkit.paths import config_dir
from vlmkit.pretrained import configs
from vlmkit.pretrained.configs import read_checkpoint, read_language, read_vision

NANOVLM = Path(__file__).parents[1] / "golden" / "checkpoint"


def saved(folder: Path, config: dict[str, Any], name: str = "config.json") -> str:
    (folder / name).write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("defaults", "theirs"),
    [
        (configs.LLAMA_DEFAULTS, LlamaConfig()),
        (configs.SIGLIP_DEFAULTS, SiglipVisionConfig()),
        (configs.IDEFICS3_VISION_DEFAULTS, Idefics3VisionConfig()),
        (configs.IDEFICS3_VISION_DEFAULTS, SmolVLMVisionConfig()),
    ],
    ids=["llama", "siglip", "idefics3", "smolvlm"],
)
def test_what_a_file_leaves_out_is_transformers_default(defaults: dict[str, Any], theirs: object) -> None:
    assert {name: getattr(theirs, name) for name in defaults} == defaults


def test_so_are_those_of_a_whole_checkpoint(tmp_path: Path) -> None:
    vision = {"image_size": 64, "patch_size": 8}
    folder = saved(tmp_path, {"model_type": "smolvlm", "text_config": {"vocab_size": 9}, "vision_config": vision})
    saved(tmp_path, {"tile_size": 64, "max_img_size": 128, "mean": 0.5, "kind": "idefics3"}, "vlmkit_processor.json")
    said = read_checkpoint(folder, "ckpt")
    for theirs in (Idefics3Config(), SmolVLMConfig()):
        assert said["pixel_shuffle_factor"] == theirs.scale_factor
        assert said["language"]["tie_word_embeddings"] == theirs.tie_word_embeddings
    assert said["language"]["rope_theta"] == LlamaConfig().rope_parameters["rope_theta"]
    assert said["language"]["num_kv_heads"] == LlamaConfig().num_key_value_heads
    assert said["image"] == {"layout": "idefics3", "max_img_size": 128, "mean": 0.5}


def test_nanovlm_s_config_is_read_whole() -> None:
    said = read_checkpoint(str(NANOVLM), "ckpt")
    assert said == {
        "tokenizer": str(NANOVLM / "tokenizer"),
        "vision": {
            "pretrained": None,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_layers": 2,
            "num_heads": 3,
            "tile_size": 64,
            "patch_size": 16,
            "layer_norm_eps": 1e-6,
        },
        "language": {
            "pretrained": None,
            "vocab_size": 466,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_layers": 3,
            "num_heads": 4,
            "num_kv_heads": 2,
            "max_position_embeddings": 512,
            "rope_theta": 100000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
        "pixel_shuffle_factor": 2,
        "image": {"layout": "nanovlm", "max_img_size": 256, "resize_to_max_side_len": False, "mean": 0.0, "std": 1.0},
    }


def test_every_size_of_a_part_is_read() -> None:
    """Or a new key of the config would be taken from its default without a word."""
    free = {"pretrained", "initializer_range", "embedding_initializer_range"}
    said = read_checkpoint(str(NANOVLM), "ckpt")
    assert said["vision"].keys() | free >= set(VisionConfig.__dataclass_fields__)
    assert said["language"].keys() | free >= set(LanguageConfig.__dataclass_fields__)


def test_a_nanovlm_checkpoint_may_name_a_tokenizer_of_the_hub(tmp_path: Path) -> None:
    config = json.loads((NANOVLM / "config.json").read_text())
    folder = saved(tmp_path, config | {"lm_tokenizer": "HuggingFaceTB/SmolLM2-360M-Instruct"})
    assert read_checkpoint(folder, "ckpt")["tokenizer"] == "HuggingFaceTB/SmolLM2-360M-Instruct"


def test_rope_is_read_as_older_files_write_it(tmp_path: Path) -> None:
    folder = saved(tmp_path, {"model_type": "llama", "rope_theta": 100000, "num_key_value_heads": None})
    assert read_language(folder)["rope_theta"] == 100000.0
    assert read_language(folder)["num_kv_heads"] == 32


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_act": "gelu"}, "its hidden_act is gelu; vlmkit's models have silu"),
        ({"attention_bias": True}, "its attention_bias is True"),
        ({"head_dim": 32}, "its head_dim is 32; vlmkit's models have 128"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "its rope_type is linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "its rope_type is llama3"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "its rope_type is yarn"),
        ({"model_type": "qwen2"}, "its model_type is qwen2; must be llama"),
    ],
)
def test_a_language_model_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    folder = saved(tmp_path, {"model_type": "llama"} | changes)
    with pytest.raises(ConfigError, match=f"model.language.pretrained=.*{told}"):
        read_language(folder)


@pytest.mark.parametrize("changes", [{"hidden_act": "quick_gelu"}, {"model_type": "siglip2"}])
def test_a_vision_tower_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = saved(tmp_path, {"model_type": "siglip_vision_model"} | changes)
    with pytest.raises(ConfigError, match=f"model.vision.pretrained=.*its {next(iter(changes))} is"):
        read_vision(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vit_cls_flag": True}, "its vit_cls_flag is True; vlmkit's models have False"),
        ({"lm_attn_scaling": 0.5}, "its lm_attn_scaling is 0.5"),
        ({"vit_hidden_dim": None}, "its model_type is None"),
        ({"lm_re_base": None}, "its json files leave out 'lm_re_base'"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    config = json.loads((NANOVLM / "config.json").read_text()) | changes
    folder = saved(tmp_path, {name: value for name, value in config.items() if value is not None})
    with pytest.raises(ConfigError, match=f"^ckpt={folder}: .*{told}"):
        read_checkpoint(folder, "ckpt")


def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^ckpt=.*: cannot read its config.json \(FileNotFoundError\)"):
        read_checkpoint(str(tmp_path), "ckpt")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot read its config.json \(JSONDecodeError\)"):
        read_checkpoint(str(tmp_path), "ckpt")


def test_the_yaml_sizes_of_smollm2_135m_are_its_own() -> None:
    """The others are on the hub: they are compared when they are loaded."""
    for option in ("smollm2_135m_local", "nanovlm_222m"):
        language = OmegaConf.load(config_dir() / "model" / f"{option}.yaml").language
        del language["pretrained"]
        stated = OmegaConf.merge(OmegaConf.structured(LanguageConfig), language)
        assert {name: stated[name] for name in configs.SMOLLM2_135M} == configs.SMOLLM2_135M
