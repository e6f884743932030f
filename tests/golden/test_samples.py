"""Ids, labels and tiles are nanoVLM's own."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlmkit.data.ratings import kept_turns
from vlmkit.data.rows import sample_from_row
from vlmkit.model.loss import shift_labels
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout, cut_tiles, load_image
from vlmkit.processing.tokenizer import ChatTokenizer, load_tokenizer
from vlmkit.types import Sample

GOLDEN = Path(os.environ.get("VLMKIT_GOLDEN", Path(__file__).parent))
CASES = [json.loads(line) for line in (GOLDEN / "samples" / "expected.jsonl").read_text().splitlines()]


@cache
def tokenizer() -> ChatTokenizer:
    return load_tokenizer(str(GOLDEN / "tokenizer"))


@cache
def samples() -> list[Sample]:
    rows = [json.loads(line) for line in (GOLDEN / "samples" / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        row["images"] = [GOLDEN / "samples" / image for image in row["images"]]
    return [sample_from_row(row, f"golden/{number}") for number, row in enumerate(rows)]


def case_id(case: dict[str, Any]) -> str:
    return f"{case['sample']}-{case['max_img_size']}-{case['tile_size']}-{''.join(map(str, case['min_ratings']))}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_sample_is_what_nanovlm_makes_of_it(case: dict[str, Any]) -> None:
    sample = samples()[case["sample"]]
    kept = kept_turns([turn.ratings for turn in sample.turns], case["min_ratings"])
    assert case["result"] == ("ok" if kept else "filtered")
    if not kept:
        return
    layout = ImageLayout(
        tile_size=case["tile_size"],
        tokens_per_tile=case["tokens_per_tile"],
        max_img_size=case["max_img_size"],
        resize_to_max_side_len=case["resize_to_max_side_len"],
        mean=0.0,
        std=1.0,
    )
    pictures = [load_image(image, sample.name) for image in sample.images]
    tiles = [cut_tiles(picture, layout) for picture in pictures]
    assert [len(of_picture) for of_picture in tiles] == case["tiles"]
    expected = [[value for picture in case[key] for value in picture] for key in ("tile_means", "tile_stds")]
    if pictures:
        flat = np.concatenate(tiles).reshape(len(expected[0]), -1) / 255
        np.testing.assert_allclose(flat.mean(1), expected[0], atol=2e-3)
        np.testing.assert_allclose(flat.std(1), expected[1], atol=2e-3)

    grids = [layout.grid(*picture.size) for picture in pictures]
    encoded = ChatEncoder(tokenizer(), layout).encode_sample([sample.turns[turn] for turn in kept], grids)
    assert encoded.input_ids == case["input_ids"]
    assert shift_labels(torch.tensor([encoded.labels]))[0].tolist() == case["labels_shifted"]
