"""A small dataset with ratings and with everything that can be odd about a sample, and the config to look at it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.conftest import composed, png
from vlmkit.config import RATING_AXES, InspectConfig

NO_PICTURE, CUT_OFF, NO_TEXTS, MANY_PICTURES, TOO_LONG, SCRIPT, TEXT_ONLY = 5, 3, 9, 11, 14, 16, 18
EVIL = "</article><script>document.title = 'pwned'</script> & <b>\"bold\"</b>"
PICTURE_SIZES = [[(300, 200)], [(64, 64), (90, 700)], [], [(37, 21)]]
SETTINGS = (
    "dataset=local",
    "filter=recommended",
    "packing.seq_length=1024",
    "model.vision.tile_size=64",
    "model.image.max_img_size=256",
)


def rated_rows() -> list[dict[str, Any]]:
    """40 rows; those named above are odd."""
    rows = []
    for number in range(40):
        turns = range(1 + number % 3)
        row: dict[str, Any] = {
            "images": [picture(*size, number) for size in PICTURE_SIZES[number % 4]],
            "texts": [
                {"user": f"What is {number}.{t}?", "assistant": f"It is {t}. " * (1 + number % 5)} for t in turns
            ],
        }
        for place, axis in enumerate(RATING_AXES):
            ratings = [1 + (number * 7 + turn * 3 + place) % 5 for turn in turns]
            some = [None if (number + turn + place) % 6 == 0 else ratings[turn] for turn in turns]
            row[f"{axis}_ratings"] = None if number % 8 == place else some
        rows.append(row)
    rows[NO_PICTURE]["images"] = [{"bytes": b"no picture", "path": None}]
    rows[CUT_OFF] |= {"images": [{"bytes": picture(50, 50, 0)["bytes"][:100], "path": None}], **rated(5, 1)}
    rows[NO_TEXTS]["texts"] = []
    rows[MANY_PICTURES] |= {"images": [picture(30, 30, n) for n in range(5)], **rated(4, 3)}
    rows[TOO_LONG] |= {"images": [], "texts": [{"user": "All?", "assistant": "All. " * 1000}], **rated(5, 1)}
    rows[SCRIPT] |= {"texts": [{"user": EVIL, "assistant": EVIL}] * 2, **rated(5, 2)}
    rows[SCRIPT]["relevance_ratings"] = [5, 1]
    rows[TEXT_ONLY] |= {"images": None, "texts": [{"user": "Grüße 日本 🙂?", "assistant": "はい 🙂"}], **rated(5, 1)}
    return rows


def rated(rating: int, turns: int) -> dict[str, list[int]]:
    return {f"{axis}_ratings": [rating] * turns for axis in RATING_AXES}


def picture(width: int, height: int, seed: int) -> dict[str, Any]:
    """A picture as parquet has it."""
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)  # blurred: survives a lossy format
    return {"bytes": png(Image.fromarray(pixels).resize((width, height))), "path": None}


def picture_size(image: dict[str, Any]) -> tuple[int, int]:
    return Image.open(io.BytesIO(image["bytes"])).size


def write_rated(folder: Path, num_files: int = 1) -> Path:
    """The rows as parquet files."""
    rows = rated_rows()
    schema = pa.Table.from_pylist(rows).schema
    per_file = -(-len(rows) // num_files)
    for number in range(num_files):
        part = rows[number * per_file : (number + 1) * per_file]
        pq.write_table(pa.Table.from_pylist(part, schema=schema), folder / f"{number}.parquet", row_group_size=8)
    return folder


def composed_inspect(*overrides: str) -> InspectConfig:
    """The real config of the command."""
    config = composed("inspect", *overrides)
    assert isinstance(config, InspectConfig)
    return config
