"""The backends with their real kernels, in the precision that they are used with."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from tests.model.test_packed import batch_of
from vlmkit.config import Attention, ModelConfig
from vlmkit.model.attention import choose_attention
from vlmkit.model.build import build_model
from vlmkit.model.layers import wrap_layers
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.types import Batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PACKS = ([0, 1], [2, 3, 1])
GPU = torch.device("cuda")
BACKENDS = [
    Attention.sdpa,
    Attention.flex,
    Attention.varlen,
    pytest.param(
        Attention.flash_attention_2,
        marks=pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs the package flash-attn"),
    ),
]


@pytest.fixture
def build(tiny_model_config: ModelConfig, tokenizer: ChatTokenizer, layout: ImageLayout):
    """The same weights with any backend; heads as wide as the narrowest that kernels take."""
    language = replace(tiny_model_config.language, hidden_size=64, num_kv_heads=2)
    config = replace(tiny_model_config, language=language)

    def model(attention: Attention) -> PackedVLM:
        torch.manual_seed(0)
        return PackedVLM(build_model(config, tokenizer), layout, attention).to(GPU)

    return model


def losses(model: PackedVLM, *batches: Batch) -> float:
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        return sum(model(batch.to(GPU)).item() for batch in batches)


@pytest.mark.parametrize("attention", BACKENDS)
def test_packed_loss_equals_unpacked_loss(attention: Attention, build, encoder: ChatEncoder) -> None:
    model, packed = build(attention), batch_of(encoder, *PACKS)
    alone = losses(model, *(batch_of(encoder, [number]) for pack in PACKS for number in pack))
    mixed_up = losses(model, replace(packed, segment_ids=packed.segment_ids.clamp(max=0)))
    difference = abs(losses(model, packed) - alone)
    assert difference < 2e-3 * alone
    assert difference < 0.1 * abs(mixed_up - alone)  # it would see samples that attend to each other


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("attention", BACKENDS)
def test_gradients_are_those_of_sdpa(attention: Attention, compiled: bool, build, encoder: ChatEncoder) -> None:
    batch = batch_of(encoder, *PACKS).to(GPU)
    gradients = []
    for model in (build(attention), build(Attention.sdpa)):
        wrap_layers(model, compiled=compiled and not gradients, recomputed=False)
        with torch.autocast("cuda", torch.bfloat16):
            model(batch).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    ours, theirs = gradients
    assert (ours - theirs).norm() < 0.03 * theirs.norm()


@pytest.mark.parametrize("attention", BACKENDS)
def test_a_run_may_ask_for_it(attention: Attention) -> None:
    assert choose_attention(attention, GPU, bf16=True) is attention
