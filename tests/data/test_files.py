"""Damaged and odd files cost the rows that are damaged, and nothing more."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.datasets import picture, row, turn, write_members, write_parquet, write_saved, write_tar
from vlmkit.data.files import ArrowFile, ParquetFile, RowFile, RowsFile, TarFile
from vlmkit.data.rows import read_row, sample_from_row
from vlmkit.errors import BadSampleError, DataError
from vlmkit.types import Sample

ONE, TWO = picture(grey=1), picture(grey=2)
TEXTS = json.dumps({"texts": [turn()]})


def read(file: RowFile, folder: Path | None = None) -> list[Sample | str]:
    """Each row's sample, or the reason why there is none."""
    opened = file.open()
    found: list[Sample | str] = []
    for number, size in enumerate(opened.group_sizes):
        group = opened.group(number)
        for place in range(size):
            try:
                found.append(sample_from_row(read_row(group.row, place, ""), "", folder))
            except BadSampleError as error:
                found.append(error.reason)
    return found


def ratings(file: RowFile) -> list[Mapping[str, Any]]:
    opened = file.open()
    sizes = enumerate(opened.group_sizes)
    return [opened.group(number).ratings(place) for number, size in sizes for place in range(size)]


@pytest.mark.parametrize("kind", ["parquet", "tar", "saved", "memory"])
def test_ratings_are_read_without_the_rest(tmp_path: Path, kind: str) -> None:
    rows = [row([ONE], 2, relevance=[3, None], formatting=[1, 2]), row([], 1, relevance=None)]
    files = {
        "parquet": lambda: ParquetFile(str(write_parquet(tmp_path / "a.parquet", rows))),
        "tar": lambda: TarFile(write_tar(tmp_path / "a.tar", rows)),
        "saved": lambda: ArrowFile(write_saved(tmp_path / "a", rows)),
        "memory": lambda: RowsFile("a", rows),
    }
    first, second = ratings(files[kind]())
    if kind == "memory":  # nothing is gained there
        assert (first, second) == ({}, {})
        return
    assert (first["relevance_ratings"], first["formatting_ratings"]) == ([3, None], [1, 2])
    assert second["relevance_ratings"] is None
    assert "images" not in first


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_file_without_ratings_has_none(tmp_path: Path, kind: str) -> None:
    rows = [row([ONE])]
    file = ParquetFile(str(write_parquet(tmp_path / "a.parquet", rows)))
    assert ratings(file if kind == "parquet" else ArrowFile(write_saved(tmp_path / "a", rows))) == [{}]


# ---- parquet -------------------------------------------------------------------------------------------


def damage(path: Path, column: str, group: int = 0) -> Path:
    """Overwrite a column's data in one row group; the footer stays whole."""
    metadata = pq.ParquetFile(path).metadata.row_group(group)
    chunks = [metadata.column(number) for number in range(metadata.num_columns)]
    contents = bytearray(path.read_bytes())
    for chunk in chunks:
        if chunk.path_in_schema.split(".")[0] == column:
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            contents[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(contents)
    return path


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    rows = [row([ONE], relevance=[4]) for _ in range(9)]
    path = damage(write_parquet(tmp_path / "a.parquet", rows, row_group_size=3), "images", group=1)
    reasons = [each if isinstance(each, str) else "good" for each in read(ParquetFile(str(path)))]
    assert reasons == ["good"] * 3 + ["row cannot be read"] * 3 + ["good"] * 3
    assert [each["relevance_ratings"] for each in ratings(ParquetFile(str(path)))] == [[4]] * 9


def test_text_that_is_not_utf8_costs_its_own_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"texts": [turn(answer=f"answer {n}")]} for n in "XYZ"])
    texts = pq.read_table(path)["texts"].combine_chunks()
    answers = texts.values.field("assistant")
    data = answers.buffers()[2].to_pybytes().replace(b"answer Y", b"answer \xff")
    damaged = pa.Array.from_buffers(pa.string(), 3, [None, answers.buffers()[1], pa.py_buffer(data)])
    turns = pa.StructArray.from_arrays([texts.values.field("user"), damaged], ["user", "assistant"])
    pq.write_table(pa.table({"texts": pa.ListArray.from_arrays(texts.offsets, turns)}), path)
    first, second, third = read(ParquetFile(str(path)))
    assert isinstance(first, Sample)
    assert second == "row cannot be read"
    assert isinstance(third, Sample)


@pytest.mark.parametrize("contents", [b"", b"PAR1", b"no parquet at all", b"PAR1" + b"\xff" * 100 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(contents)
    with pytest.raises(DataError, match=r"a\.parquet: cannot read the parquet file"):
        ParquetFile(str(path)).open()


def test_a_path_in_parquet_leads_from_the_dataset_s_folder(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(ONE)
    rows = [row([{"bytes": None, "path": path}]) for path in ("in.png", "../out.png", "/etc/passwd")]
    found = read(ParquetFile(str(write_parquet(tmp_path / "a.parquet", rows))), tmp_path)
    assert found == [
        Sample("", (tmp_path.resolve() / "in.png",), sample_from_row(row(), "").turns),
        "picture lies outside the dataset's folder",
        "picture lies outside the dataset's folder",
    ]


# ---- tar -----------------------------------------------------------------------------------------------


def tar(folder: Path, members: Mapping[str, str | bytes]) -> TarFile:
    return TarFile(write_members(folder / "a.tar", members))


def test_pictures_of_a_row_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    pictures = [picture(grey=number) for number in range(12)]
    members: dict[str, str | bytes] = {
        f"a.{number}.png": pictures[number] for number in (10, 2, 11, 0, 1, *range(3, 10))
    }
    [sample] = read(tar(tmp_path, {**members, "a.json": TEXTS}))
    assert isinstance(sample, Sample)
    assert list(sample.images) == pictures


def test_members_may_have_any_name(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {
        "../../up.json": TEXTS,
        "../../up.png": ONE,
        "/etc/passwd.json": TEXTS,
        "sub/up.JSON": TEXTS,
        "sub/up.JPG": TWO,
        "sub/up.txt": "not needed",
        "new\nline ü.json": TEXTS,
        "n" * 300 + ".json": TEXTS,
        "README.md": "no row",
    }
    found = read(tar(tmp_path / "x" / "y", members))
    images = [each if isinstance(each, str) else each.images for each in found]
    assert images == [(ONE,), (), (TWO,), (), (), "no texts"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.tar"]


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ("{", "row cannot be read"),
        ("[" * 100_000, "row cannot be read"),
        (b"\xff\xfe\xfd", "row cannot be read"),
        ("[]", "row cannot be read"),
        ("1" * 5000, "row cannot be read"),
        ("{}", "no texts"),
        ('{"texts": [{"user": "q", "assistant": "\\ud800"}]}', "text is not Unicode"),
        ('{"texts": [{"user": "q", "assistant": "a"}], "relevance_ratings": [Infinity]}', "rating is no whole number"),
    ],
)
def test_a_broken_json_costs_its_own_row(tmp_path: Path, contents: str | bytes, reason: str) -> None:
    found = read(tar(tmp_path, {"a.json": TEXTS, "b.json": contents, "b.png": ONE, "c.json": TEXTS}))
    assert [each if isinstance(each, str) else "good" for each in found] == ["good", reason, "good"]


def test_a_path_in_json_leads_from_the_tar_s_folder(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(ONE)
    rows = {path: json.dumps({"texts": [turn()], "images": [path]}) for path in ("in.png", "../out.png", "/etc/passwd")}
    found = read(tar(tmp_path, {f"{number}.json": text for number, text in enumerate(rows.values())}), tmp_path)
    outside = "picture lies outside the dataset's folder"
    assert [each if isinstance(each, str) else len(each.images) for each in found] == [1, outside, outside]


@pytest.mark.parametrize("cut", [100, 700, 1500])
def test_a_tar_that_is_cut_off_is_named(tmp_path: Path, cut: int) -> None:
    path = write_members(tmp_path / "a.tar", {f"{number}.json": TEXTS for number in range(3)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.tar: cannot read the tar file"):
        TarFile(path).open()


def test_a_damaged_header_in_the_middle_of_a_tar_is_not_its_end(tmp_path: Path) -> None:
    path = write_members(tmp_path / "a.tar", {f"{number}.json": TEXTS for number in range(3)})
    contents = bytearray(path.read_bytes())
    contents[1024:1100] = b"\xff" * 76
    path.write_bytes(contents)
    with pytest.raises(DataError, match=r"a\.tar: cannot read the tar file: not a tar from byte 1024 on"):
        TarFile(path).open()


def test_a_tar_without_members_has_no_rows(tmp_path: Path) -> None:
    assert read(tar(tmp_path, {})) == []
