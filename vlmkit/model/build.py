"""From the config to transformers' own Idefics3, whose network is nanoVLM's tensor for tensor."""

from torch import nn
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from vlmkit.config import ModelConfig
from vlmkit.processing.tokenizer import ChatTokenizer


def build_model(config: ModelConfig, tokenizer: ChatTokenizer) -> Idefics3ForConditionalGeneration:
    """A model with random weights, from torch's global random state."""
    hf = Idefics3ForConditionalGeneration._from_config(architecture(config, tokenizer), attn_implementation="sdpa")
    projection = hf.model.connector.modality_projection.proj
    # Features of unit size whatever the width: with the towers' fixed range a narrow model drowns its text in them.
    nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
    if (std := config.vision.embedding_initializer_range) is not None:
        embeddings = hf.model.vision_model.embeddings
        nn.init.normal_(embeddings.patch_embedding.weight, std=std)
        nn.init.normal_(embeddings.position_embedding.weight, std=std)
    return hf


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
            initializer_range=vision.initializer_range,
        ),
        text_config=LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=language.hidden_size,
            intermediate_size=language.intermediate_size,
            num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_heads,
            num_key_value_heads=language.num_kv_heads,
            max_position_embeddings=language.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
            rms_norm_eps=1e-5,
            initializer_range=language.initializer_range,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.turn_start_id,
            eos_token_id=tokenizer.turn_end_id,
            pad_token_id=tokenizer.pad_id,
        ),
        scale_factor=config.pixel_shuffle_factor,
        image_token_id=tokenizer.image_id,
        tie_word_embeddings=True,
    )


def count_parameters(model: Idefics3ForConditionalGeneration) -> dict[str, int]:
    """Parameters of each part, each counted once: vision, projector, language."""
    parts = {
        "vision": model.model.vision_model,
        "projector": model.model.connector,
        "language": model.model.text_model,
    }
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
