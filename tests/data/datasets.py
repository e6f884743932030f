"""Datasets of every kind of file, made from plain rows."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from tests.conftest import png
from vlmkit.config import RATING_AXES
from vlmkit.data.rows import RATING_COLUMNS, read_row, sample_from_row
from vlmkit.data.sources import Source
from vlmkit.types import Sample

Row = dict[str, Any]

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURN = pa.struct([("user", pa.string()), ("assistant", pa.string())])
RATINGS = pa.list_(pa.int64())


def picture(width: int = 20, height: int = 10, grey: int = 128) -> bytes:
    return png(PILImage.new("RGB", (width, height), (grey, 255 - grey, grey)))


def turn(question: str = "what is it?", answer: str = "a square") -> Row:
    return {"user": question, "assistant": answer}


def row(images: Any = None, turns: int = 1, **ratings: Any) -> Row:
    """A row whose texts tell which turn they are; ``relevance=[3]`` is its ``relevance_ratings``."""
    texts = [turn(f"question {number}", f"answer {number}") for number in range(turns)]
    return {"images": images, "texts": texts} | {f"{axis}_ratings": values for axis, values in ratings.items()}


def some_rows(count: int = 23) -> list[Row]:
    """Rows that are all good: no, one or several pictures, one or several turns, ratings of all kinds."""
    rows = []
    for number in range(count):
        images = [picture(10 + number, 7 + number % 5, number) for _ in range(number % 4)]
        made = row(images or (None if number % 3 else []), 1 + number % 3)
        for axis, name in enumerate(RATING_AXES):
            rated: list[int | None] = [1 + (number + place + axis) % 5 for place in range(len(made["texts"]))]
            rated[0] = None if number % 7 == 0 else rated[0]
            made[f"{name}_ratings"] = None if (number + axis) % 6 == 0 else rated
        made["texts"][0]["user"] += f" of row {number}: 你好 \n\t🙂 <|im_end|>"
        made["source"] = "somewhere"  # a key that nothing needs
        rows.append(made)
    return rows


def write_parquet(path: Path, rows: Sequence[Row], row_group_size: int = 4, **options: Any) -> Path:
    """As FineVision's files are: pictures as structs of bytes and path."""
    types = {"images": pa.list_(PICTURE), "texts": pa.list_(TURN)} | dict.fromkeys(RATING_COLUMNS, RATINGS)
    names = list(dict.fromkeys(name for each in rows for name in each))
    columns = {
        name: pa.array([_stored(name, each.get(name)) for each in rows], types.get(name, pa.string())) for name in names
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size, **options)
    return path


def write_tar(path: Path, rows: Sequence[Row]) -> Path:
    """As webdataset writes: a JSON and the pictures of each row side by side."""
    members = {}
    for number, each in enumerate(rows):
        members[f"{number:05}.json"] = json.dumps({key: value for key, value in each.items() if key != "images"})
        for place, image in enumerate(each["images"] or []):
            members[f"{number:05}.{place}.png"] = image
    return write_members(path, members)


def write_members(path: Path, members: Mapping[str, str | bytes]) -> Path:
    """A tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, contents in members.items():
            data = contents.encode() if isinstance(contents, str) else contents
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_saved(folder: Path, rows: Sequence[Row]) -> Path:
    """With ``save_to_disk``, pictures as the feature that decodes when it is read."""
    features = {"images": List(Image()), "texts": List({"user": Value("string"), "assistant": Value("string")})}
    features |= {name: List(Value("int64")) for name in RATING_COLUMNS if any(name in each for each in rows)}
    stored = {name: [_stored(name, each.get(name)) for each in rows] for name in features}
    Dataset.from_dict(stored, Features(features)).save_to_disk(str(folder))
    return folder


def write_shards(root: Path, rows: Sequence[Row], shards: int = 3) -> Path:
    """Folders shard_0, shard_1, …, the rows dealt in runs."""
    size = -(-len(rows) // shards)
    for number in range(shards):
        write_saved(root / f"shard_{number}", rows[number * size : (number + 1) * size])
    return root


def write_hub(root: Path, subsets: Mapping[str, Sequence[Row]]) -> Path:
    """A folder laid out like a repository of the hub; ``datasets`` takes its path for a repository's name."""
    configs = []
    for name, rows in subsets.items():
        for part, start in enumerate(range(0, len(rows), 10)):
            write_parquet(root / name / f"train-{part:05}.parquet", rows[start : start + 10])
        configs.append(f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n")
    (root / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    return root


def samples_of(source: Source) -> list[Sample]:
    """All samples of a source, streamed or not, in the order of its files; names differ, so they are left out."""
    if source.rows is not None:
        found = [source.sample(number) for number in range(len(source.rows))]
    else:
        found = [sample_from_row(each, "", source.folder) for each in streamed_rows(source)]
    return [Sample("", sample.images, sample.turns) for sample in found]


def streamed_rows(source: Source) -> Iterator[Mapping[str, Any]]:
    """All rows of a source's files."""
    for file in source.files:
        opened = file.open()
        for number, size in enumerate(opened.group_sizes):
            group = opened.group(number)
            for place in range(size):
                yield read_row(group.row, place, file.name)


def _stored(name: str, value: Any) -> Any:
    """Pictures as a parquet file holds them."""
    if name != "images" or not isinstance(value, list):
        return value
    return [{"bytes": image, "path": None} if isinstance(image, bytes) else image for image in value]
