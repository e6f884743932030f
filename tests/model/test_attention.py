"""All backends give a pack the losses of its samples alone.

The kernels of the backends in one row need a GPU (``test_attention_gpu.py``). Here they are written in plain torch; all
that surrounds them is the real thing.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.model.test_packed import batch_of
from vlmkit.config import Attention, ModelConfig
from vlmkit.data.worker import Loaded, build_batch
from vlmkit.errors import BadSampleError, ConfigError
from vlmkit.model.attention import block_causal_mask, choose_attention, flatten, flex_mask, sample_bounds
from vlmkit.model.build import build_model
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer

IN_ONE_ROW = [Attention.varlen, Attention.flash_attention_2]
MASKED = [Attention.sdpa, Attention.flex]
PACKS = ([0, 1], [2, 3, 1])  # of different lengths: the first is padded

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as it is on a CPU


def varlen_in_plain_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    longest_key: int,
    scale: float,
) -> torch.Tensor:
    """What the kernels compute, [N, heads, d], and what they ask of their arguments."""
    assert bounds.dtype == torch.int32
    assert bounds is key_bounds
    assert longest == longest_key == int(bounds.diff().max())
    lengths = bounds.diff().tolist()
    group = query.shape[1] // key.shape[1]
    of_samples = zip(*(states.transpose(0, 1).split(lengths, dim=1) for states in (query, key, value)), strict=True)
    attended = [
        torch.nn.functional.scaled_dot_product_attention(
            q, k.repeat_interleave(group, 0), v.repeat_interleave(group, 0), is_causal=True, scale=scale
        )
        for q, k, v in of_samples
    ]
    return torch.cat(attended, dim=1).transpose(0, 1)


def varlen_attn(*arguments: object, scale: float, window_size: tuple[int, int]) -> torch.Tensor:
    assert window_size == (-1, 0)  # causal
    return varlen_in_plain_torch(*arguments, scale=scale)


def flash_attn_varlen_func(*arguments: object, softmax_scale: float, causal: bool) -> torch.Tensor:
    assert causal
    return varlen_in_plain_torch(*arguments, scale=softmax_scale)


@pytest.fixture(scope="module", autouse=True)
def plain_kernels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
        patch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func))
        yield


@pytest.fixture(scope="module")
def config(tiny_model_config: ModelConfig) -> ModelConfig:
    """Fewer heads of keys than of queries, as in the real models."""
    return replace(tiny_model_config, language=replace(tiny_model_config.language, num_kv_heads=2))


@pytest.fixture
def model(attention: Attention, config: ModelConfig, tokenizer: ChatTokenizer, layout: ImageLayout) -> PackedVLM:
    torch.manual_seed(0)
    return PackedVLM(build_model(config, tokenizer), layout, attention).double()


@pytest.fixture
def sdpa_model(config: ModelConfig, tokenizer: ChatTokenizer, layout: ImageLayout) -> PackedVLM:
    torch.manual_seed(0)
    return PackedVLM(build_model(config, tokenizer), layout, Attention.sdpa).double()


@torch.no_grad()
@pytest.mark.parametrize("attention", MASKED + IN_ONE_ROW)
def test_packed_loss_equals_unpacked_loss(model: PackedVLM, encoder: ChatEncoder) -> None:
    packed = model(batch_of(encoder, *PACKS))
    alone = sum(model(batch_of(encoder, [number])) for pack in PACKS for number in pack)
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("attention", MASKED + IN_ONE_ROW)
def test_samples_that_attend_to_each_other_have_other_losses(model: PackedVLM, encoder: ChatEncoder) -> None:
    """The check of the check above."""
    batch = batch_of(encoder, [0, 1, 2])
    leaky = replace(batch, segment_ids=torch.zeros_like(batch.segment_ids))
    assert abs(model(leaky) - model(batch)) > 1e-3


@pytest.mark.parametrize("attention", IN_ONE_ROW)
def test_gradients_in_one_row_are_those_of_the_mask(
    model: PackedVLM, sdpa_model: PackedVLM, encoder: ChatEncoder
) -> None:
    batch = batch_of(encoder, *PACKS)
    gradients = []
    for each in (model, sdpa_model):
        each(batch).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in each.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("attention", MASKED + IN_ONE_ROW)
def test_answers_are_the_same_with_every_backend(model: PackedVLM, sdpa_model: PackedVLM, encoder: ChatEncoder) -> None:
    batch = batch_of(encoder, [0])
    prompts = [batch.input_ids[0, :40].tolist(), batch.input_ids[0, -9:].tolist()]
    before = model.hf.model.text_model.config._attn_implementation
    answers = [each.eval().generate(prompts, batch.tiles, max_new_tokens=6) for each in (model, sdpa_model)]
    assert answers[0] == answers[1]
    assert model.hf.model.text_model.config._attn_implementation == before  # training goes on with it


@pytest.mark.parametrize("attention", IN_ONE_ROW)
def test_a_micro_batch_of_unreadable_samples_has_a_loss_of_zero(model: PackedVLM, encoder: ChatEncoder) -> None:
    nothing = build_batch([[Loaded(BadSampleError("broken", "test/0"), ())]] * 2, encoder)
    loss = model(nothing)
    loss.backward()
    assert loss == 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_one_row_has_all_tokens_and_no_padding(encoder: ChatEncoder) -> None:
    batch = batch_of(encoder, *PACKS)
    flat = flatten(batch)
    alone = [batch_of(encoder, [number]) for pack in PACKS for number in pack]
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(getattr(flat, name), torch.cat([getattr(one, name) for one in alone], dim=1))
    lengths = [one.input_ids.shape[1] for one in alone]
    bounds = sample_bounds(flat.segment_ids)
    assert bounds["bounds"].diff().tolist() == lengths
    assert bounds["longest"] == max(lengths)


def test_neighbouring_packs_of_one_sample_each_stay_apart(encoder: ChatEncoder) -> None:
    """Both are segment 0 of their pack."""
    flat = flatten(batch_of(encoder, [1], [1]))
    assert len(sample_bounds(flat.segment_ids)["bounds"]) == 3


def test_the_flex_mask_is_the_block_mask(encoder: ChatEncoder) -> None:
    segment_ids = batch_of(encoder, *PACKS).segment_ids
    mask = flex_mask(segment_ids)
    length = segment_ids.shape[1]
    queries, keys = torch.arange(length)[:, None], torch.arange(length)[None]
    for pack, block_mask in enumerate(block_causal_mask(segment_ids)):
        assert torch.equal(mask.mask_mod(pack, 0, queries, keys), block_mask[0])


# ---- which backend -------------------------------------------------------------------------------------

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_is_sdpa_on_a_cpu_and_varlen_in_bf16_on_a_new_enough_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_attention(Attention.auto, CPU, bf16=True) is Attention.sdpa
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    assert choose_attention(Attention.auto, GPU, bf16=True) is Attention.varlen
    assert choose_attention(Attention.auto, GPU, bf16=False) is Attention.sdpa
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    assert choose_attention(Attention.auto, GPU, bf16=True) is Attention.sdpa


@pytest.mark.parametrize("asked", [Attention.flex, *IN_ONE_ROW])
def test_a_backend_of_gpus_is_refused_on_a_cpu(asked: Attention) -> None:
    with pytest.raises(ConfigError, match=f"^model.attention={asked.value}: needs a GPU.*use model.attention=sdpa$"):
        choose_attention(asked, CPU, bf16=True)


@pytest.mark.parametrize(
    ("asked", "capability", "bf16", "message"),
    [
        (Attention.varlen, (7, 5), True, "needs a GPU of compute capability 8.0"),
        (Attention.varlen, (9, 0), False, "computes in bf16 only: set trainer.precision=bf16"),
        (Attention.flash_attention_2, (9, 0), True, "needs the package flash-attn, which is not installed"),
    ],
)
def test_a_backend_that_cannot_run_is_refused_in_one_line(
    asked: Attention, capability: tuple[int, int], bf16: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("vlmkit.model.attention.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f"^model.attention={asked.value}: {message}.*use model.attention=sdpa$"):
        choose_attention(asked, GPU, bf16)
