"""Attention inside a pack: every token sees its own sample up to itself, and nothing else.

Four ways to compute the same (``model.attention``). ``sdpa`` and ``flex`` take packs as rows, with a mask; ``varlen``
and ``flash_attention_2`` take all samples of a micro-batch in one row without padding, and where each begins.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedModel

from vlmkit.config import Attention
from vlmkit.errors import ConfigError
from vlmkit.types import Batch


def choose_attention(asked: Attention, device: torch.device, bf16: bool) -> Attention:
    """The backend of a run, never ``auto``.

    ``auto`` is varlen in bf16 on a GPU that has its kernels (they skip both padding and other samples' keys, come with
    torch itself and need no compiler), else sdpa, which works everywhere.

    Args:
        asked: ``model.attention``.
        device: Where the model computes.
        bf16: Whether it computes in bf16.

    Raises:
        ConfigError: What was asked for cannot run here.
    """
    on_gpu = device.type == "cuda"
    flash_gpu = on_gpu and torch.cuda.get_device_capability(device) >= (8, 0)
    if asked is Attention.auto:
        return Attention.varlen if flash_gpu and bf16 else Attention.sdpa
    key, way_out = f"model.attention={asked.value}", "or use model.attention=sdpa"
    if asked is not Attention.sdpa and not on_gpu:
        raise ConfigError(f"{key}: needs a GPU; this run computes on {device.type}: use model.attention=sdpa")
    if asked in _KERNELS:
        if not flash_gpu:
            raise ConfigError(f"{key}: needs a GPU of compute capability 8.0 or more, {way_out}")
        if not bf16:
            raise ConfigError(f"{key}: computes in bf16 only: set trainer.precision=bf16, {way_out}")
    if asked is Attention.flash_attention_2 and find_spec("flash_attn") is None:
        raise ConfigError(f"{key}: needs the package flash-attn, which is not installed: install it, {way_out}")
    return asked


def set_attention(text_model: PreTrainedModel, attention: Attention) -> None:
    """Let a transformers text model attend with a backend (not ``auto``) from now on."""
    text_model.set_attn_implementation(_NAMES[attention])


@contextmanager
def attending_with(text_model: PreTrainedModel, attention: Attention) -> Iterator[None]:
    """Attend with another backend for a while."""
    before = text_model.config._attn_implementation
    set_attention(text_model, attention)
    try:
        yield
    finally:
        text_model.set_attn_implementation(before)


def arrange(batch: Batch, attention: Attention) -> tuple[Batch, dict[str, Any]]:
    """A micro-batch in the form that a backend takes, and what its attention is told.

    Returns:
        The same samples, for varlen kernels in one row (``flatten``), and arguments of the text model's forward.
    """
    match attention:
        case Attention.sdpa:
            return batch, {"attention_mask": block_causal_mask(batch.segment_ids)}
        case Attention.flex:
            return batch, {"attention_mask": flex_mask(batch.segment_ids)}
        case _:
            flat = flatten(batch)
            return flat, {"attention_mask": None, **sample_bounds(flat.segment_ids)}


def block_causal_mask(segment_ids_BT: torch.Tensor) -> torch.Tensor:
    """Which key each query may attend to.

    Args:
        segment_ids_BT: int [B, T], equal for tokens of one sample. Padding is a segment of its own, so that no
            row of the mask is empty (softmax over nothing is NaN).

    Returns:
        bool [B, 1, T, T], True where query (row) may see key (column).
    """
    length = segment_ids_BT.shape[1]
    same_sample = segment_ids_BT[:, None, :, None] == segment_ids_BT[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids_BT.device).tril()
    return same_sample & causal


def flex_mask(segment_ids_BT: torch.Tensor) -> BlockMask:
    """The relation of ``block_causal_mask`` in blocks; those in which nothing is seen cost nothing."""

    def sees(pack: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (segment_ids_BT[pack, query] == segment_ids_BT[pack, key])

    packs, length = segment_ids_BT.shape
    # Compiled, the T x T relation is never held in memory as a whole.
    create = _compiled(create_block_mask) if segment_ids_BT.is_cuda else create_block_mask
    return create(sees, packs, None, length, length, device=segment_ids_BT.device)


def flatten(batch: Batch) -> Batch:
    """All packs of a micro-batch in one row [1, N], without padding; tiles stay as they are.

    A micro-batch of padding alone keeps one token of it: kernels refuse no tokens.
    """
    kept_BT = batch.segment_ids >= 0
    kept_BT[0, 0] |= ~kept_BT.any()
    kept_N = kept_BT.flatten().nonzero()[:, 0]
    packs, length = batch.segment_ids.shape
    offset_B1 = torch.arange(packs, device=kept_N.device)[:, None] * (length + 1)

    def joined(values_BT: torch.Tensor) -> torch.Tensor:
        return values_BT.flatten()[kept_N][None]

    return replace(
        batch,
        input_ids=joined(batch.input_ids),
        labels=joined(batch.labels),
        position_ids=joined(batch.position_ids),
        segment_ids=joined(batch.segment_ids + offset_B1),  # not those of the pack before
    )


def sample_bounds(segment_ids_1N: torch.Tensor) -> dict[str, Any]:
    """Where the samples of one row begin and end, and the length of the longest: what varlen attention is told."""
    is_last = segment_ids_1N[0].diff(append=segment_ids_1N.new_tensor([-2])) != 0
    ends = is_last.nonzero()[:, 0] + 1
    bounds = torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)
    return {"bounds": bounds, "longest": int(bounds.diff().max())}


def _flex_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: BlockMask,
    *,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: [B, heads, T, d] → [B, T, heads, d]."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast rotary positions make them float32
    key, value = _for_all_heads(query, key, value)
    # A compiled layer compiles it along; on a CPU it has no compiled backward pass.
    alone = query.is_cuda and not torch.compiler.is_compiling()
    attend: Any = _compiled(flex_attention) if alone else flex_attention
    out: torch.Tensor = attend(query, key, value, block_mask=attention_mask, scale=scaling)
    return out.transpose(1, 2), None


def _for_all_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values once for each head (dimension 1) of the queries: not every version and group takes fewer."""
    group = query.shape[1] // key.shape[1]
    return key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once, for all lengths."""
    return torch.compile(function, dynamic=True)


def _in_one_row(kernel: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, None]]:
    """What transformers calls, on a kernel for samples of different lengths in one row."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None,
        *,
        scaling: float,
        bounds: torch.Tensor,
        longest: int,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        # Under autocast rotary positions make queries and keys float32; kernels want one type.
        rows = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
        return kernel(*rows, bounds, longest, scaling)[None], None

    return attend


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    """The kernel that comes with torch: [N, heads, d]."""
    from torch.nn.attention.varlen import varlen_attn  # a second that is spent only where it is used

    key, value = _for_all_heads(query, key, value)
    causal = (-1, 0)
    out = varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=causal)
    assert isinstance(out, torch.Tensor)  # a pair only if more is asked for
    return out


def _flash_attention_2(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    """The kernel of the package flash-attn: [N, heads, d]."""
    from flash_attn import flash_attn_varlen_func  # optional

    return flash_attn_varlen_func(query, key, value, bounds, bounds, longest, longest, softmax_scale=scale, causal=True)


_KERNELS = {Attention.varlen: _varlen, Attention.flash_attention_2: _flash_attention_2}
_NAMES = {  # of the backends in transformers, which would look for a kernel of its own under a name with "flash"
    Attention.sdpa: "sdpa",
    Attention.flex: "vlmkit_flex",
    Attention.varlen: "vlmkit_varlen",
    Attention.flash_attention_2: "vlmkit_fa2",
}
AttentionInterface.register(_NAMES[Attention.flex], _flex_attention)
for _backend, _kernel in _KERNELS.items():
    AttentionInterface.register(_NAMES[_backend], _in_one_row(_kernel))
