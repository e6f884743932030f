"""Small pretrained models in folders, as transformers writes them."""

import json
from pathlib import Path

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from vlmkit.config import ModelConfig, model_config
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.processor import save_processor
from vlmkit.processing.tokenizer import ChatTokenizer

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TILE = {"image_size": 32, "patch_size": 8}
LANGUAGE = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}


def shake(model: torch.nn.Module) -> None:
    """Make all weights differ, norms and biases too: new ones are 0 or 1, which would hide a mix-up."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def save_llama(folder: Path, vocab_size: int, tied: bool = True, **saving: object) -> LlamaForCausalLM:
    torch.manual_seed(1)
    llama = LlamaForCausalLM(LlamaConfig(**LANGUAGE, vocab_size=vocab_size, tie_word_embeddings=tied)).eval()
    shake(llama)
    llama.save_pretrained(folder, **saving)
    return llama


def save_siglip(folder: Path, with_text: bool) -> SiglipVisionModel:
    """The vision tower, of a checkpoint of both towers or of this one."""
    torch.manual_seed(2)
    if with_text:
        text = {**VISION, "vocab_size": 50}
        model = SiglipModel(SiglipConfig(vision_config={**VISION, **TILE}, text_config=text)).eval()
        shake(model)
        model.save_pretrained(folder)
        return model.vision_model
    tower = SiglipVisionModel(SiglipVisionConfig(**VISION, **TILE)).eval()
    shake(tower)
    tower.save_pretrained(folder)
    return tower


def config_of(tokenizer: str = "tiny", **language: object) -> ModelConfig:
    """The config of a model with these two as its parts."""
    return model_config(
        {
            "tokenizer": tokenizer,
            "vision": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_layers": 2,
                "num_heads": 2,
                "tile_size": 32,
                "patch_size": 8,
            },
            "language": {
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_layers": 2,
                "num_heads": 3,
                "num_kv_heads": 1,
                "max_position_embeddings": 256,
                **language,
            },
            "pixel_shuffle_factor": 2,
            "image": {"max_img_size": 64},
        }
    )


def save_own(folder: Path, hf: Idefics3ForConditionalGeneration, tokenizer: ChatTokenizer, layout: ImageLayout) -> None:
    """A checkpoint as training writes it, without what resuming needs."""
    hf.save_pretrained(folder)
    save_processor(folder, tokenizer, layout)


def save_smolvlm(folder: Path, tokenizer: ChatTokenizer) -> Idefics3ForConditionalGeneration:
    """A checkpoint like SmolVLM's: another name of the architecture, a head of its own, more rows than tokens."""
    torch.manual_seed(3)
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(**VISION, **TILE),
        text_config=LlamaConfig(**LANGUAGE, vocab_size=tokenizer.vocab_size + 14, pad_token_id=2),
        scale_factor=2,
        image_token_id=tokenizer.image_id,
        tie_word_embeddings=False,
    )
    hf = Idefics3ForConditionalGeneration(config).eval()
    shake(hf)
    hf.save_pretrained(folder)
    tokenizer.save(folder)
    longest = {"longest_edge": 64}
    Idefics3ImageProcessor(size=longest, max_image_size={"longest_edge": 32}).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"model_type": "smolvlm"}))
    return hf
