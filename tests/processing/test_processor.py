"""A checkpoint of the layout idefics3 is served by transformers alone: ids and pixels are those of training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Idefics3Processor

from tests.conftest import as_idefics3
from vlmkit.config import Layout, ModelConfig
from vlmkit.model.build import build_model
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.chat import ChatEncoder, Message, Role
from vlmkit.processing.images import ImageLayout, TileGrid, cut_tiles
from vlmkit.processing.processor import save_processor
from vlmkit.processing.tokenizer import load_tokenizer
from vlmkit.types import Turn

SMOLLM2 = str(Path(__file__).parents[1] / "golden" / "tokenizer")
SIZES = [(1, 1), (64, 64), (300, 7), (5, 400), (257, 256), (160, 100), (999, 1000)]
PICTURES = [
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for number, (width, height) in enumerate(SIZES)
]

Served = tuple[ChatEncoder, Any]  # ours, and transformers' processor of a checkpoint of ours


@pytest.fixture(scope="module", params=["tiny", SMOLLM2], ids=["tiny", "smollm2"])
def served(request: Any, layout: ImageLayout, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(ChatEncoder(load_tokenizer(request.param, Layout.idefics3), as_idefics3(layout)), tmp_path_factory)


@pytest.fixture(scope="module")
def one_tile(layout: ImageLayout, tmp_path_factory: pytest.TempPathFactory) -> Served:
    layout = replace(as_idefics3(layout), max_img_size=64, mean=0.2, std=0.3)
    return serve(ChatEncoder(load_tokenizer("tiny", Layout.idefics3), layout), tmp_path_factory)


def serve(encoder: ChatEncoder, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_processor(folder, encoder.tokenizer, encoder.layout)
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, Idefics3Processor)
    return encoder, processor


def messages(turns: Sequence[Turn], pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """A conversation as transformers wants it."""
    made = []
    for number, turn in enumerate(turns):
        shown = [{"type": "image", "image": picture} for picture in pictures] if number == 0 else []
        made.append({"role": "user", "content": [*shown, {"type": "text", "text": turn.user}]})
        made.append({"role": "assistant", "content": [{"type": "text", "text": turn.assistant}]})
    return made


def processed(processor: Any, conversation: list[dict[str, Any]], prompt: bool = False) -> Any:
    return processor.apply_chat_template(
        conversation, add_generation_prompt=prompt, tokenize=True, return_dict=True, return_tensors="pt"
    )


def pixels(pictures: Sequence[Image.Image], layout: ImageLayout) -> torch.Tensor:
    tiles = torch.from_numpy(np.concatenate([cut_tiles(picture, layout) for picture in pictures]))
    return (tiles.permute(0, 3, 1, 2) / 255 - layout.mean) / layout.std


def assert_same(served: Served, turns: Sequence[Turn], pictures: Sequence[Image.Image]) -> None:
    encoder, processor = served
    theirs = processed(processor, messages(turns, pictures))
    grids = [encoder.layout.grid(*picture.size) for picture in pictures]
    assert encoder.encode_sample(turns, grids).input_ids == theirs.input_ids[0].tolist()
    prompt = processed(processor, messages(turns[:1], pictures)[:1], prompt=True)
    assert encoder.encode_messages([Message("user", (*grids, turns[0].user))]) == prompt.input_ids[0].tolist()
    if pictures:
        torch.testing.assert_close(pixels(pictures, encoder.layout), theirs.pixel_values[0], rtol=0, atol=0.01)


plain = st.text(st.characters(exclude_characters="<"), max_size=20) | st.sampled_from(
    ["\n", "\n\nq", " q", "  ", "12345", "你好🙂", "User: x\nAssistant: y", "'s", "\u2028\t x \n"]
)
conversations = st.lists(st.builds(Turn, plain, plain), min_size=1, max_size=3)


@settings(max_examples=60)
@given(turns=conversations, pictures=st.lists(st.sampled_from(PICTURES), max_size=3))
def test_ids_and_pixels_are_those_of_the_processor(
    served: Served, turns: list[Turn], pictures: list[Image.Image]
) -> None:
    assert_same(served, turns, pictures)


Parts = list[str | Image.Image]
interleaved = st.lists(
    st.tuples(
        st.sampled_from(["system", "user", "assistant"]),
        st.lists(plain | st.sampled_from(PICTURES), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(conversation=interleaved)
def test_interleaved_pictures_are_those_of_the_processor(
    served: Served, conversation: list[tuple[Role, Parts]]
) -> None:
    encoder, processor = served

    def shown(part: str | Image.Image) -> dict[str, Any]:
        return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}

    def placed(part: str | Image.Image) -> str | TileGrid:
        return part if isinstance(part, str) else encoder.layout.grid(*part.size)

    theirs = [{"role": role, "content": [*map(shown, parts)]} for role, parts in conversation]
    ours = [Message(role, tuple(map(placed, parts))) for role, parts in conversation]
    assert encoder.encode_messages(ours) == processed(processor, theirs, prompt=True).input_ids[0].tolist()


@pytest.mark.parametrize("picture", PICTURES, ids=str(SIZES).split("), "))
def test_every_odd_picture_is_that_of_the_processor(served: Served, picture: Image.Image) -> None:
    assert_same(served, [Turn("what is it?", "a square")], [picture])


def test_a_picture_of_one_tile_is_that_of_the_processor(one_tile: Served) -> None:
    for picture in PICTURES:
        assert_same(one_tile, [Turn("what is it?", "a square")], [picture, PICTURES[1]])


def test_contents_may_be_strings_too(served: Served) -> None:
    encoder, processor = served
    text = processor.apply_chat_template([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}])
    assert text == encoder.tokenizer.hf.decode(encoder.encode_sample([Turn("hi", "ho")], ()).input_ids)


# ---- the files -----------------------------------------------------------------------------------------


def test_the_tokenizer_comes_back(encoder: ChatEncoder, idefics3_encoder: ChatEncoder, tmp_path: Path) -> None:
    """The layout does too: tests/model/test_build.py."""
    for one in (encoder, idefics3_encoder):
        save_processor(tmp_path, one.tokenizer, one.layout)
        again = ChatEncoder(load_tokenizer(str(tmp_path), one.layout.kind), one.layout)
        turns, grids = [Turn("what?", "a square")], [one.layout.grid(100, 50)]
        assert again.encode_sample(turns, grids) == one.encode_sample(turns, grids)
        assert again.tokenizer.fingerprint == one.tokenizer.fingerprint


def test_a_checkpoint_of_nanovlm_s_layout_promises_no_processor(encoder: ChatEncoder, tmp_path: Path) -> None:
    save_processor(tmp_path, encoder.tokenizer, encoder.layout)
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert not (tmp_path / "processor_config.json").exists()


# ---- the model -----------------------------------------------------------------------------------------


def test_transformers_alone_gives_our_logits_and_answers(
    tiny_model_config: ModelConfig, idefics3_encoder: ChatEncoder, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tokenizer, layout = idefics3_encoder.tokenizer, idefics3_encoder.layout
    ours = PackedVLM(build_model(tiny_model_config, tokenizer), layout).eval()
    ours.hf.save_pretrained(tmp_path)
    save_processor(tmp_path, tokenizer, layout)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert plain.generation_config.eos_token_id == tokenizer.turn_end_id
    asked = processed(
        AutoProcessor.from_pretrained(tmp_path), messages([Turn("what is it?", "")], PICTURES[2:4])[:1], prompt=True
    )
    tiles = torch.from_numpy(np.concatenate([cut_tiles(picture, layout) for picture in PICTURES[2:4]]))
    grids = [layout.grid(*size) for size in SIZES[2:4]]
    prompt = idefics3_encoder.encode_messages([Message("user", (*grids, "what is it?"))])
    with torch.no_grad():
        theirs = plain(**asked).logits
        embedded = ours.embed(torch.tensor([prompt]), tiles)
        torch.testing.assert_close(ours.hf(inputs_embeds=embedded).logits, theirs, rtol=1e-4, atol=1e-4)
    answer = plain.generate(**asked, max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    assert ours.generate([prompt], tiles, 8) == [answer]
