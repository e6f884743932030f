"""A nanoVLM checkpoint gives the logits, losses and answers that nanoVLM itself gave."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, Idefics3ForConditionalGeneration

from vlmkit.model.build import Checkpoint, load_checkpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.types import Batch

FOLDER = Path(os.environ.get("VLMKIT_GOLDEN", Path(__file__).parent)) / "checkpoint"
EXPECTED = load_file(FOLDER / "expected.safetensors")
LOSSES = json.loads((FOLDER / "expected.json").read_text())["loss_all_tokens"]
CASES = range(len(LOSSES))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(str(FOLDER))


def expected(case: int, name: str) -> torch.Tensor:
    return EXPECTED[f"{case}.{name}"]


def as_uint8(case: int) -> torch.Tensor:
    """The tiles as a batch has them."""
    return (expected(case, "tiles") * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def logits(hf: Idefics3ForConditionalGeneration, case: int) -> torch.Tensor:
    with torch.no_grad():
        output = hf(input_ids=expected(case, "input_ids")[None], pixel_values=expected(case, "tiles")[None])
    return output.logits[0]


@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss_are_nanovlm_s(checkpoint: Checkpoint, case: int) -> None:
    ours, ids = logits(checkpoint.model, case), expected(case, "input_ids")
    torch.testing.assert_close(ours, expected(case, "logits"), rtol=0, atol=1e-4)
    assert torch.nn.functional.cross_entropy(ours[:-1], ids[1:]).item() == pytest.approx(LOSSES[case], abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_has_nanovlm_s_loss(checkpoint: Checkpoint, case: int) -> None:
    """Through the batch, the packed forward pass and the summed loss: every token but the first is a label."""
    ids = expected(case, "input_ids")[None]
    batch = Batch(
        input_ids=ids,
        labels=ids,
        position_ids=torch.arange(ids.shape[1])[None],
        segment_ids=torch.zeros_like(ids),
        tiles=as_uint8(case),
        num_samples=1,
        num_images=1,
        num_pairs=0,
    )
    with torch.no_grad():
        loss = PackedVLM(checkpoint.model, checkpoint.layout)(batch) / (ids.shape[1] - 1)
    assert loss.item() == pytest.approx(LOSSES[case], abs=1e-4)  # nanoVLM's tiles are no whole numbers


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_nanovlm_s(checkpoint: Checkpoint, case: int) -> None:
    """Through what answers questions in vlmkit: pictures as uint8 tiles, an end of turn ends the answer."""
    packed = PackedVLM(checkpoint.model, checkpoint.layout).eval()
    greedy = expected(case, "greedy").tolist()
    [answer] = packed.generate([expected(case, "input_ids").tolist()], as_uint8(case), max_new_tokens=len(greedy))
    end = checkpoint.tokenizer.turn_end_id
    assert answer == (greedy[: greedy.index(end)] if end in greedy else greedy)


def test_a_converted_checkpoint_gives_the_same_in_plain_transformers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.model.save_pretrained(tmp_path)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for case in CASES:
        torch.testing.assert_close(logits(plain, case), logits(checkpoint.model, case), rtol=0, atol=0)
        torch.testing.assert_close(logits(plain, case), expected(case, "logits"), rtol=0, atol=1e-4)


def test_its_config_says_what_the_pictures_become(checkpoint: Checkpoint) -> None:
    layout = checkpoint.layout
    assert (layout.tile_size, layout.tokens_per_tile, layout.max_img_size) == (64, 4, 256)
    assert not layout.resize_to_max_side_len
    assert (layout.mean, layout.std) == (0.0, 1.0)  # nanoVLM feeds pixels in 0..1
