"""From the config to transformers' own Idefics3, whose network is nanoVLM's tensor for tensor."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from vlmkit.config import ModelConfig, model_config
from vlmkit.errors import ConfigError
from vlmkit.model.weights import load_checkpoint_weights, load_weights
from vlmkit.pretrained.configs import read_checkpoint
from vlmkit.pretrained.files import find_folder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained model, and what makes its input and reads its output."""

    model: Idefics3ForConditionalGeneration
    tokenizer: ChatTokenizer
    layout: ImageLayout


def load_checkpoint(name: str, key: str = "ckpt") -> Checkpoint:
    """Load a vlmkit, nanoVLM, Idefics3 or SmolVLM checkpoint; weights become float32.

    Args:
        name: A folder or a hub id ``org/name[@revision]``.
        key: The config key that holds the name, for messages.

    Raises:
        ConfigError: It is not there, or is none of these.
        UserError: A tensor is missing, left over or of the wrong shape.
    """
    config = model_config(read_checkpoint(name, key))
    tokenizer = load_tokenizer(config.tokenizer, config.image.layout)
    hf = build_model(config, tokenizer, read_weights=False)
    load_checkpoint_weights(hf, find_folder(name, key, with_weights=True), config.language.vocab_size)
    return Checkpoint(hf, tokenizer, ImageLayout.from_config(config))


def build_model(
    config: ModelConfig, tokenizer: ChatTokenizer, read_weights: bool = True
) -> Idefics3ForConditionalGeneration:
    """A model whose new weights come from torch's global random state, and the others from where the config says.

    Args:
        config: Names in ``init_from`` or in its parts' ``pretrained`` where weights are.
        tokenizer: Gives the size of the embedding and the special ids.
        read_weights: False: all weights are random, for a run that then goes on from its own checkpoint.

    Raises:
        UserError: The named weights are not there or do not fit.
    """
    hf = _new_model(config, tokenizer)
    _check_positions(hf)
    if read_weights:
        load_weights(hf, config, tokenizer)
    return hf


def _new_model(config: ModelConfig, tokenizer: ChatTokenizer) -> Idefics3ForConditionalGeneration:
    hf = Idefics3ForConditionalGeneration._from_config(architecture(config, tokenizer), attn_implementation="sdpa")
    hf.generation_config.pad_token_id = tokenizer.pad_id
    projection = hf.model.connector.modality_projection.proj
    # Features of unit size whatever the width: with the towers' fixed range a narrow model drowns its text in them.
    nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
    if (std := config.vision.embedding_initializer_range) is not None:
        embeddings = hf.model.vision_model.embeddings
        nn.init.normal_(embeddings.patch_embedding.weight, std=std)
        nn.init.normal_(embeddings.position_embedding.weight, std=std)
    return hf


def _check_positions(hf: Idefics3ForConditionalGeneration) -> None:
    """Check that each patch of a tile has the position embedding of its own place.

    transformers computes the place in float32, and for some numbers of patches a side (19, 25, 29, …) rounding puts
    two rows into one place: all after them would see the wrong embedding.

    Raises:
        ConfigError: It is so for this tile and patch size.
    """
    embeddings = hf.model.vision_model.embeddings
    side, tile = embeddings.num_patches_per_side, embeddings.image_size
    looked_up: list[torch.Tensor] = []
    hook = embeddings.position_embedding.register_forward_pre_hook(lambda _, ids: looked_up.append(ids[0]))
    with torch.no_grad():
        embeddings(torch.zeros(1, 3, tile, tile), torch.ones(1, side, side, dtype=torch.bool))
    hook.remove()
    if not torch.equal(looked_up[0].flatten(), torch.arange(side**2)):
        raise ConfigError(
            f"model.vision.tile_size={tile}: {side} patches a side get wrong positions in transformers' Idefics3; "
            "choose another size"
        )


def architecture(config: ModelConfig, tokenizer: ChatTokenizer) -> Idefics3Config:
    """The transformers config of a model; it is saved as the checkpoint's config.json."""
    vision, language = config.vision, config.language
    return Idefics3Config(
        vision_config=Idefics3VisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_heads,
            image_size=vision.tile_size,
            patch_size=vision.patch_size,
            layer_norm_eps=vision.layer_norm_eps,
            initializer_range=vision.initializer_range,
        ),
        text_config=LlamaConfig(
            vocab_size=max(language.vocab_size or 0, tokenizer.vocab_size),
            hidden_size=language.hidden_size,
            intermediate_size=language.intermediate_size,
            num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_heads,
            num_key_value_heads=language.num_kv_heads,
            max_position_embeddings=language.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
            rms_norm_eps=language.rms_norm_eps,
            initializer_range=language.initializer_range,
            tie_word_embeddings=language.tie_word_embeddings,
            bos_token_id=tokenizer.turn_start_id,
            eos_token_id=tokenizer.turn_end_id,
            # No pad_token_id: it is the end of a turn too, and an embedding learns nothing for its padding index.
        ),
        scale_factor=config.pixel_shuffle_factor,
        image_token_id=tokenizer.image_id,
        tie_word_embeddings=language.tie_word_embeddings,
    )


def parameters_of(hf: Idefics3ForConditionalGeneration) -> dict[str, list[nn.Parameter]]:
    """The parameters of each part: vision, projector, language. Each is there once, also where two modules share it."""
    language = [*hf.model.text_model.parameters(), *hf.lm_head.parameters()]
    return {
        "vision": list(hf.model.vision_model.parameters()),
        "projector": list(hf.model.connector.parameters()),
        "language": list(dict.fromkeys(language)),
    }


def count_parameters(hf: Idefics3ForConditionalGeneration) -> dict[str, int]:
    """How many numbers each part has."""
    return {name: sum(p.numel() for p in parameters) for name, parameters in parameters_of(hf).items()}
