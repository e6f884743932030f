"""How many floating-point operations a training step needs, and how many a GPU can do: what MFU is made of.

Counted as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) and Kaplan et al. 2020 (arXiv:2001.08361,
section 2.1): multiplications and additions of matrix products alone, each 2 operations per weight and token, or per
entry of the attention matrix and channel. It is what the mathematics needs, not what ran: padding, masked pairs and
what is computed twice to save memory are left out, so that waste lowers the MFU.

The backward pass of a product is two products of the same size: the gradient of its weights, if they are trained, and
that of its input, if anything before it is.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from transformers import Idefics3Config

from vlmkit.model.loss import shift_labels
from vlmkit.types import IGNORED_LABEL, Batch

# bf16 with dense matrices, from NVIDIA's data sheets; the first name found in the device's counts.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
}


@dataclass(frozen=True, slots=True)
class Work:
    """What a model has to do, in counts that can be added up over micro-batches and processes."""

    tokens: int  # without padding
    pairs: int  # of a query and a key that it sees: of a sample of n tokens n (n + 1) / 2
    tiles: int
    labelled: int  # tokens that are learnt

    @classmethod
    def of(cls, batch: Batch) -> "Work":
        """That of one micro-batch; on a GPU this waits for it."""
        return cls(
            tokens=int((batch.segment_ids >= 0).sum()),
            pairs=batch.num_pairs,
            tiles=len(batch.tiles),
            labelled=int((shift_labels(batch.labels) != IGNORED_LABEL).sum()),
        )


def count_training_flops(config: Idefics3Config, work: Work, trained: Collection[str]) -> float:
    """Operations of the forward and backward pass.

    Args:
        config: The model's sizes.
        work: What it is given.
        trained: Its parts that are not frozen, of "vision", "projector" and "language". In front of frozen parts
            there is no backward pass: none through the vision tower if it is frozen.
    """
    vision, projector, language = (part in trained for part in ("vision", "projector", "language"))
    patch_products, tower_products, tower_attention = _vision_forward(config, work)
    return (
        _forward_and_backward(patch_products, weights=vision, inputs=False)
        + _forward_and_backward(tower_products, weights=vision, inputs=vision)
        + _forward_and_backward(tower_attention, weights=vision, inputs=vision)
        + _forward_and_backward(_projector_forward(config, work), weights=projector, inputs=vision)
        + _forward_and_backward(_language_products(config, work), weights=language, inputs=bool(trained))
        + _forward_and_backward(_language_attention(config, work), weights=bool(trained), inputs=bool(trained))
    )


def find_peak_flops(device_name: str) -> float | None:
    """bf16 operations a second that a GPU can do at best, by the name torch gives it; None if it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name)), None)


def _forward_and_backward(forward: float, weights: bool, inputs: bool) -> float:
    """A product's operations, with the gradients that it must give; in attention both factors are inputs."""
    return forward * (1 + weights + inputs)


def _vision_forward(config: Idefics3Config, work: Work) -> tuple[float, float, float]:
    """Of the patches' embedding, of the layers' products with weights, and of their attention."""
    vision = config.vision_config
    width = vision.hidden_size
    patches = (vision.image_size // vision.patch_size) ** 2
    embedding = vision.num_channels * vision.patch_size**2 * width
    layers = vision.num_hidden_layers
    weights = layers * (4 * width**2 + 2 * width * vision.intermediate_size)  # query, key, value, out; two of the MLP
    attention = layers * 2 * width * patches**2  # every patch with every other: scores, and values weighted by them
    return 2 * work.tiles * patches * embedding, 2 * work.tiles * patches * weights, 2 * work.tiles * attention


def _projector_forward(config: Idefics3Config, work: Work) -> float:
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    image_tokens = work.tiles * patches / config.scale_factor**2
    return 2 * image_tokens * vision.hidden_size * config.scale_factor**2 * config.text_config.hidden_size


def _language_products(config: Idefics3Config, work: Work) -> float:
    """Of all tokens with the layers' weights, and of the labelled ones with the head's."""
    text = config.text_config
    width, heads, kv_heads = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
    attention = 2 * width**2 * (1 + kv_heads / heads)  # query and out; key and value
    weights = text.num_hidden_layers * (attention + 3 * width * text.intermediate_size)
    return 2 * work.tokens * weights + 2 * work.labelled * width * text.vocab_size


def _language_attention(config: Idefics3Config, work: Work) -> float:
    """Scores, and values weighted by them."""
    text = config.text_config
    return 2 * work.pairs * text.num_hidden_layers * 2 * text.hidden_size
