from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import png
from vlmkit.config import ModelConfig
from vlmkit.data.worker import Loaded, build_batch
from vlmkit.model.build import build_model
from vlmkit.model.loss import shift_labels
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.types import Batch, Sample, Turn


@pytest.fixture(scope="module")
def model(tiny_model_config: ModelConfig, tokenizer: ChatTokenizer, layout: ImageLayout) -> PackedVLM:
    torch.manual_seed(0)
    return PackedVLM(build_model(tiny_model_config, tokenizer), layout).double().eval()


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return png(Image.fromarray(pixels))


SAMPLES = [
    Sample("test/0", (picture(0),), (Turn("what shape is in the image?", "circle"), Turn("what color?", "red"))),
    Sample("test/1", (), (Turn("is there a circle?", "no"),)),
    Sample("test/2", (picture(2, (100, 60)),), (Turn("what is the red shape?", "triangle"),)),
    Sample("test/3", (picture(3), png(Image.new("RGB", (64, 64)))), (Turn("what color is the circle?", "teal"),)),
]


def batch_of(encoder: ChatEncoder, *packs: list[int]) -> Batch:
    """A batch whose rows are packs of these samples, all turns."""
    return build_batch([[Loaded(SAMPLES[number], ()) for number in pack] for pack in packs], encoder)


@settings(max_examples=25)
@given(order=st.permutations(range(len(SAMPLES))), cut=st.integers(0, len(SAMPLES)))
def test_packed_loss_equals_unpacked_loss(model: PackedVLM, encoder: ChatEncoder, order: list[int], cut: int) -> None:
    packs = [pack for pack in (order[:cut], order[cut:]) if pack]
    with torch.no_grad():
        packed = model(batch_of(encoder, *packs))
        alone = sum(model(batch_of(encoder, [number])) for number in order)
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)


@settings(max_examples=10)
@given(data=st.data())
def test_any_split_over_ranks_micro_batches_and_packs_gives_the_same_gradient(
    model: PackedVLM, encoder: ChatEncoder, data: st.DataObject
) -> None:
    """Each part's summed loss is divided by the labelled tokens of all; gradients of ranks are added."""
    everything = [batch_of(encoder, [number]) for number in range(len(SAMPLES))]
    labelled = sum(int((shift_labels(batch.labels) != -100).sum()) for batch in everything)

    def gradient(micro_batches: Sequence[Batch]) -> torch.Tensor:
        model.zero_grad()
        for batch in micro_batches:
            (model(batch) / labelled).backward()
        return torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()])

    packs = data.draw(partitions(data.draw(st.permutations(range(len(SAMPLES))))), label="packs")
    micro_batches = data.draw(partitions(packs), label="micro-batches")
    ranks = data.draw(partitions(micro_batches), label="ranks")
    split = sum(gradient([batch_of(encoder, *packs) for packs in rank]) for rank in ranks)
    torch.testing.assert_close(split, gradient(everything), rtol=1e-6, atol=1e-8)


@st.composite
def partitions(draw: st.DrawFn, items: Sequence[Any]) -> list[Sequence[Any]]:
    """Items in order, cut anywhere."""
    cuts = [i for i in range(1, len(items)) if draw(st.booleans())]
    return [items[start:end] for start, end in zip([0, *cuts], [*cuts, len(items)], strict=True)]


def test_the_loss_is_that_of_transformers(model: PackedVLM, encoder: ChatEncoder) -> None:
    batch = batch_of(encoder, [2])
    pixels = (batch.tiles.permute(0, 3, 1, 2).double() / 255 - encoder.layout.mean) / encoder.layout.std
    with torch.no_grad():
        theirs = model.hf(input_ids=batch.input_ids, pixel_values=pixels[None], labels=batch.labels, use_cache=False)
        ours = model(batch)
    labelled = int((batch.labels[:, 1:] != -100).sum())
    torch.testing.assert_close(ours / labelled, theirs.loss.double(), rtol=1e-6, atol=1e-6)


def test_a_black_picture_counts(model: PackedVLM, encoder: ChatEncoder) -> None:
    """Idefics3's own path would drop it; sample 3 has a noisy and a black one."""
    batch = batch_of(encoder, [3])
    assert len(batch.tiles) == 2
    with torch.no_grad():
        assert torch.isfinite(model(batch))


def test_a_batch_without_pictures_still_gives_every_part_a_gradient(
    tiny_model_config: ModelConfig, tokenizer: ChatTokenizer, layout: ImageLayout, encoder: ChatEncoder
) -> None:
    """Or processes that have pictures would wait without end for those that have none."""
    model = PackedVLM(build_model(tiny_model_config, tokenizer), layout)
    model(batch_of(encoder, [1])).backward()
    seeing = [*model.hf.model.vision_model.parameters(), *model.hf.model.connector.parameters()]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in seeing)


def test_in_bf16_the_loss_is_close(
    tiny_model_config: ModelConfig, tokenizer: ChatTokenizer, layout: ImageLayout, encoder: ChatEncoder
) -> None:
    model = PackedVLM(build_model(tiny_model_config, tokenizer), layout)
    batch = batch_of(encoder, [0, 1, 2], [3])
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch)
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert rounded != exact
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_in_bf16_pixels_are_scaled_before_they_are_rounded(
    tiny_model_config: ModelConfig, tokenizer: ChatTokenizer, layout: ImageLayout
) -> None:
    model = PackedVLM(build_model(tiny_model_config, tokenizer), layout).bfloat16()
    tiles = torch.arange(256, dtype=torch.uint8).repeat(48).reshape(1, 64, 64, 3)
    seen = []
    vision = model.hf.model.vision_model
    vision.register_forward_pre_hook(lambda _, args, given: seen.append(given["pixel_values"]), with_kwargs=True)
    model.encode_tiles(tiles)
    scaled = (tiles.permute(0, 3, 1, 2).double() / 255 - layout.mean) / layout.std
    torch.testing.assert_close(seen[0].double(), scaled, rtol=2**-8, atol=1e-6)


def test_tokens_and_features_that_disagree_are_an_error(model: PackedVLM, encoder: ChatEncoder) -> None:
    batch = batch_of(encoder, [0])
    with pytest.raises(ValueError, match="16 image tokens but 32 image features: tokenizer and model disagree"):
        model.embed(batch.input_ids, batch.tiles.repeat(2, 1, 1, 1))


def test_generated_answers_do_not_depend_on_their_neighbours(model: PackedVLM, encoder: ChatEncoder) -> None:
    first = batch_of(encoder, [0])
    second = batch_of(encoder, [2])
    prompts = [first.input_ids[0, :30].tolist(), second.input_ids[0].tolist()]
    together = model.generate(prompts, torch.cat([first.tiles, second.tiles]), 6)
    alone = [model.generate([prompts[0]], first.tiles, 6)[0], model.generate([prompts[1]], second.tiles, 6)[0]]
    assert together == alone
