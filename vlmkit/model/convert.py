"""Where nanoVLM's checkpoints keep the tensors of Idefics3: the networks are the same, the names are not."""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Origin:
    """The tensor of a file that holds a parameter of Idefics3."""

    name: str
    third: int | None = None  # the parameter is this third of the tensor's rows
    is_batch: bool = False  # the tensor has an axis of 1 in front

    def shape(self, wanted: list[int]) -> list[int]:
        """Shape of the whole tensor for a parameter of the wanted shape."""
        first, *others = wanted
        whole = [first if self.third is None else 3 * first, *others]
        return [1, *whole] if self.is_batch else whole

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """The parameter's part of a tensor of that shape."""
        rows = tensor[0] if self.is_batch else tensor
        return rows if self.third is None else rows.chunk(3)[self.third]


POSITIONS = "vision_encoder.patch_embedding.position_embedding"
# Idefics3's name → nanoVLM's, each rule applied to what the ones before it left.
NANOVLM_NAMES = (
    (r"^lm_head\.", "decoder.head."),
    (r"^model\.connector\.modality_projection\.", "MP."),
    (r"^model\.vision_model\.embeddings\.patch_embedding\.", "vision_encoder.patch_embedding.conv."),
    (r"^model\.vision_model\.embeddings\.position_embedding\.weight$", POSITIONS),
    (r"^model\.vision_model\.post_layernorm\.", "vision_encoder.layer_norm."),
    (r"^model\.vision_model\.encoder\.layers\.", "vision_encoder.blocks."),
    (r"^model\.text_model\.embed_tokens\.", "decoder.token_embedding."),
    (r"^model\.text_model\.layers\.", "decoder.blocks."),
    (r"^model\.text_model\.", "decoder."),
    (r"\.layer_norm([12])\.", r".ln\1."),
    (r"\.input_layernorm\.", ".norm1."),
    (r"\.post_attention_layernorm\.", ".norm2."),
    (r"\.self_attn\.o_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.", ".attn."),
)


def origin_in_nanovlm(name: str) -> Origin:
    """Where nanoVLM keeps a parameter of ``Idefics3ForConditionalGeneration``.

    Its vision tower has queries, keys and values one above the other in one matrix, and its position embedding is
    [1, patches, width].
    """
    for pattern, theirs in NANOVLM_NAMES:
        name = re.sub(pattern, theirs, name)
    if match := re.fullmatch(r"(vision_encoder\..*\.attn\.)([qkv])_proj(\..*)", name):
        return Origin(f"{match[1]}qkv_proj{match[3]}", "qkv".index(match[2]))
    return Origin(name, is_batch=name == POSITIONS)
