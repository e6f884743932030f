"""The index: the same however it is built, new only where what it measures is new."""

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from tests.conftest import png
from tests.data.datasets import Row, picture, row, some_rows, turn, write_parquet
from vlmkit.config import LocalConfig
from vlmkit.data.index import SampleIndex, index_folder, load_or_build_index
from vlmkit.data.sources import Source, build_sources
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import load_tokenizer

BAD = [row() | {"texts": []}, row([b"no picture"]), row([picture()[:20]]), row(None, 1, relevance=["3"])]
ROWS = [*some_rows(), *BAD, row([picture(1, 10_000)])]


def build(
    rows: Sequence[Row], encoder: ChatEncoder, cache: Path, processes: int | None = 1
) -> tuple[SampleIndex, list[int]]:
    """The index of some rows, and the parts that were measured for it."""
    measured: list[int] = []

    def watch(starts: Sequence[int]) -> Iterable[int]:
        measured.extend(starts)
        return starts

    return load_or_build_index(Source("rows", rows), encoder, cache, watch, processes), measured


def assert_equal(one: SampleIndex, other: SampleIndex) -> None:
    for each in fields(SampleIndex):
        mine, theirs = getattr(one, each.name), getattr(other, each.name)
        if each.name == "bad":
            assert list(map(str, mine)) == list(map(str, theirs))
        else:
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs), each.name


def test_every_row_is_a_sample_or_is_named_with_its_reason(encoder: ChatEncoder, tmp_path: Path) -> None:
    index, _ = build(ROWS, encoder, tmp_path)
    assert sorted([*index.rows, *index.bad_rows]) == list(range(len(ROWS))) == list(range(index.num_rows))
    assert index.bad_rows.tolist() == [23, 24, 25, 26]
    assert [error.reason for error in index.bad] == [
        "no texts", "cannot read the picture", "cannot read the picture", "rating is no whole number",
    ]  # fmt: skip
    assert [error.name for error in index.bad] == [f"rows/{number}" for number in range(23, 27)]
    assert index.picture_sizes[-1].tolist() == [1, 10_000]


def test_pictures_of_every_mode_are_samples_and_a_bomb_is_not(encoder: ChatEncoder, tmp_path: Path) -> None:
    pictures = [png(Image.new(mode, (30, 20))) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
    pictures += [cmyk(), png(Image.new("1", (9000, 9000)))]
    index, _ = build([row([each]) for each in pictures], encoder, tmp_path)
    assert index.picture_sizes.tolist() == [[30, 20]] * 7
    assert [str(error) for error in index.bad] == [
        "rows/7: cannot read the picture: it has 9000x9000 pixels; at most 64000000 are read"
    ]


def cmyk() -> bytes:
    buffer = io.BytesIO()
    Image.new("CMYK", (30, 20)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_index_comes_back_from_the_cache_as_it_was_built(encoder: ChatEncoder, tmp_path: Path) -> None:
    built, measured = build(ROWS, encoder, tmp_path)
    kept, again = build(ROWS, encoder, tmp_path)
    in_memory, _ = build(ROWS, encoder, Path("/proc/nothing-can-be-made-here"))
    assert (measured, again) == ([0], [])
    assert_equal(built, kept)
    assert_equal(built, in_memory)


@pytest.mark.parametrize("rows", [[], [row()] * 3, [row([picture()])], BAD], ids=["none", "text", "picture", "bad"])
def test_columns_may_be_empty(encoder: ChatEncoder, tmp_path: Path, rows: list[Row]) -> None:
    built, _ = build(rows, encoder, Path("/proc/nothing-can-be-made-here"))
    build(rows, encoder, tmp_path)
    kept, _ = build(rows, encoder, tmp_path)
    assert_equal(built, kept)
    assert kept.picture_sizes.shape == (sum(bool(each["images"]) for each in rows) if rows is not BAD else 0, 2)


def test_the_files_of_an_index_hold_numbers_and_json_alone(encoder: ChatEncoder, tmp_path: Path) -> None:
    build(ROWS, encoder, tmp_path)
    [folder] = tmp_path.iterdir()
    assert {path.suffix for path in folder.iterdir() if path.name != ".lock"} == {".npy", ".json"}
    for path in folder.glob("*.npy"):
        np.load(path, allow_pickle=False)


def test_a_finished_index_is_read_without_writing(encoder: ChatEncoder, tmp_path: Path) -> None:
    """So a cache that others can only read serves them too."""
    build(ROWS, encoder, tmp_path)
    [folder] = tmp_path.iterdir()
    (folder / ".lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    build(ROWS, encoder, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


def test_several_processes_measure_what_one_does(encoder: ChatEncoder, tmp_path: Path) -> None:
    rows = [*ROWS, *({"texts": [turn(f"question {number}")]} for number in range(5000)), *BAD]
    one, _ = build(rows, encoder, tmp_path / "one", processes=1)
    two, measured = build(rows, encoder, tmp_path / "two", processes=2)
    assert measured == [0, 1000, 2000, 3000, 4000, 5000]
    assert_equal(one, two)
    samples = [Source("rows", rows).sample(row) for row in two.rows]
    assert np.diff(two.turn_ends, prepend=0).tolist() == [len(sample.turns) for sample in samples]
    assert np.diff(two.picture_ends, prepend=0).tolist() == [len(sample.images) for sample in samples]
    [folder] = (tmp_path / "two").iterdir()
    assert not (folder / "parts").exists()


# ---- what an index depends on --------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "cache"))
    return write_parquet(tmp_path / "a.parquet", ROWS[:5])


def folder_of(path: Path, encoder: ChatEncoder) -> Path:
    [source] = build_sources(LocalConfig(path=str(path)))
    return index_folder(Path("cache"), source, encoder)


def test_another_tile_size_needs_no_new_index(path: Path, encoder: ChatEncoder, tmp_path: Path) -> None:
    layout: ImageLayout = replace(encoder.layout, tile_size=32, tokens_per_tile=4, resize_to_max_side_len=True)
    other = ChatEncoder(encoder.tokenizer, layout)
    assert folder_of(path, other) == folder_of(path, encoder)
    assert_equal(build(ROWS, encoder, tmp_path / "a")[0], build(ROWS, other, tmp_path / "b")[0])


def test_another_layout_needs_a_new_index(path: Path, encoder: ChatEncoder, idefics3_encoder: ChatEncoder) -> None:
    """Even if a tokenizer had the tokens of both: turns are written in another way."""
    tokenizer = replace(idefics3_encoder.tokenizer, _text=encoder.tokenizer._text)
    assert folder_of(path, ChatEncoder(tokenizer, idefics3_encoder.layout)) != folder_of(path, encoder)


def test_a_changed_file_needs_a_new_index(path: Path, encoder: ChatEncoder) -> None:
    before = folder_of(path, encoder)
    assert folder_of(path, encoder) == before
    os.utime(path, ns=(1, 1))
    touched = folder_of(path, encoder)
    write_parquet(path, ROWS[:6])
    os.utime(path, ns=(1, 1))
    assert len({before, touched, folder_of(path, encoder)}) == 3


def test_another_tokenizer_needs_a_new_index(path: Path, encoder: ChatEncoder) -> None:
    again = ChatEncoder(load_tokenizer("tiny"), encoder.layout)
    assert folder_of(path, again) == folder_of(path, encoder)
    text = Tokenizer.from_str(encoder.tokenizer._text.to_str())
    text.add_tokens(["what"])
    other = ChatEncoder(replace(encoder.tokenizer, _text=text), encoder.layout)
    assert folder_of(path, other) != folder_of(path, encoder)
