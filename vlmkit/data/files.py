"""Files of rows, read a group at a time: parquet, webdataset tar, ``save_to_disk`` folders, rows in memory.

A group is what is fetched at once (a row group of a parquet file). Its ratings can be looked at before anything
else of it is read, so that a row that cannot pass the filter costs nothing more.
"""

import json
import re
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import fsspec
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_from_disk

from vlmkit.data.rows import RATING_COLUMNS, Row
from vlmkit.errors import DataError

ROWS_IN_A_GROUP = 256  # of a file that has no groups of its own
COLUMNS = ("images", "texts", *RATING_COLUMNS)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_MEMBER_BYTES = 2**28  # of a tar: a larger member is no picture and no row


class RowGroup(Protocol):
    """Some rows of a file; where it is damaged, asking for a row may raise anything (see ``read_row``)."""

    def ratings(self, row: int) -> Row:
        """The rating columns of a row, read without the rest; a column may be missing."""

    def row(self, row: int) -> Row:
        """A whole row, its pictures encoded."""


class OpenFile(Protocol):
    """A file that is being read."""

    @property
    def group_sizes(self) -> Sequence[int]:
        """Rows of each group."""

    def group(self, number: int) -> RowGroup:
        """A group; nothing of it is read yet."""


class RowFile(Protocol):
    """A file, or what is read like one. It holds nothing open, so any process can have it."""

    @property
    def name(self) -> str:
        """For messages; part of a sample's name."""

    def open(self) -> OpenFile:
        """Open the file.

        Raises:
            DataError: It cannot be read.
        """


# ---- rows that can be had by number --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowsFile:
    """Rows in memory."""

    name: str
    rows: Sequence[Row] = field(repr=False)

    def open(self) -> OpenFile:
        """Nothing needs opening."""
        return _Ranges(self.rows)


@dataclass(frozen=True, slots=True)
class ArrowFile:
    """A ``save_to_disk`` folder, mapped into memory."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    def open(self) -> OpenFile:
        """Map it."""
        dataset = open_saved(self.folder)
        return _Ranges(ArrowRows(dataset), ArrowRows(dataset, RATING_COLUMNS))


@dataclass(frozen=True, slots=True)
class TarFile:
    """A webdataset tar: ``KEY.json`` is a row, ``KEY.jpg`` or ``KEY.0.png``, ``KEY.1.png``, … are its pictures.

    Members are read from their places in the file; their names lead nowhere.
    """

    path: Path

    @property
    def name(self) -> str:
        """The file's."""
        return self.path.name

    def open(self) -> OpenFile:
        """Find the rows, from the headers of the members."""
        rows = self.rows()
        return _Ranges(rows, _JsonOnly(rows))

    def rows(self) -> "TarRows":
        """The rows, by number.

        Raises:
            DataError: It is no tar, or is cut off.
        """
        members: dict[str, list[_Member]] = {}
        try:
            with tarfile.open(self.path, "r:") as tar:
                for info in tar:
                    if info.isfile():
                        folder, _, name = info.name.rpartition("/")
                        key, _, _ = name.partition(".")
                        member = _Member(info.name.lower(), info.offset_data, info.size)
                        members.setdefault(f"{folder}/{key}", []).append(member)
                if not _ends_here(self.path, tar.offset):
                    raise tarfile.ReadError(f"not a tar from byte {tar.offset} on")
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{self.path}: cannot read the tar file: {error}") from error
        return TarRows(self.path, list(members.values()))


def _ends_here(path: Path, offset: int) -> bool:
    """Whether a tar ends at a byte: with zeros, or with the file. ``tarfile`` takes a damaged header for the end."""
    with path.open("rb") as file:
        file.seek(offset)
        return not any(file.read(tarfile.BLOCKSIZE))


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    offset: int
    size: int

    @property
    def place(self) -> list[tuple[int, str]]:
        """Its place among the pictures of a row: 2.png comes before 10.png."""
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", self.name)]


class TarRows(Sequence[Row]):
    """The rows of a tar; each is read from its place when it is asked for."""

    def __init__(self, path: Path, rows: Sequence[Sequence[_Member]]) -> None:
        self._path = path
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Row:  # type: ignore[override]
        row = self.json(number)
        pictures = [member for member in self._rows[number] if member.name.endswith(PICTURE_SUFFIXES)]
        images = [self._read(member) for member in sorted(pictures, key=lambda member: member.place)]
        return {**row, "images": images} if images else row

    def json(self, number: int) -> Row:
        """A row without its pictures; empty if it has no JSON.

        Raises:
            ValueError, RecursionError: Its JSON is broken.
        """
        for member in self._rows[number]:
            if member.name.endswith(".json"):
                row: Row = json.loads(self._read(member))
                if not isinstance(row, dict):
                    raise ValueError(f"{member.name}: must be a JSON object")
                return row
        return {}

    def _read(self, member: _Member) -> bytes:
        if member.size > MAX_MEMBER_BYTES:
            raise ValueError(f"{member.name}: has {member.size:,} bytes, at most {MAX_MEMBER_BYTES:,} are read")
        with self._path.open("rb") as file:  # opened anew: processes that share a handle share its position
            file.seek(member.offset)
            return file.read(member.size)


class _JsonOnly(Sequence[Row]):
    def __init__(self, rows: TarRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Row:  # type: ignore[override]
        return self._rows.json(number)


@dataclass(frozen=True, slots=True)
class _Ranges:
    """Rows by number as groups of one size, and the rest."""

    rows: Sequence[Row]
    rating_rows: Sequence[Row] | None = None  # the same without texts and pictures

    @property
    def group_sizes(self) -> Sequence[int]:
        total = len(self.rows)
        return [min(ROWS_IN_A_GROUP, total - start) for start in range(0, total, ROWS_IN_A_GROUP)]

    def group(self, number: int) -> RowGroup:
        return _Range(self, number * ROWS_IN_A_GROUP)


@dataclass(frozen=True, slots=True)
class _Range:
    of: _Ranges
    start: int

    def ratings(self, row: int) -> Row:
        return {} if self.of.rating_rows is None else self.of.rating_rows[self.start + row]

    def row(self, row: int) -> Row:
        return self.of.rows[self.start + row]


class ArrowRows(Sequence[Row]):
    """The rows of a ``datasets`` table as they lie in memory or on disk, pictures encoded.

    Not through its features: they decode pictures, and what tells nested ones not to (``cast``) copies the whole table.
    """

    def __init__(self, dataset: Dataset, columns: Sequence[str] = COLUMNS) -> None:
        known = [column for column in columns if column in dataset.column_names]
        self._dataset = dataset.with_format("arrow", columns=known)
        self._has_columns = bool(known)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, number: int) -> Row:  # type: ignore[override]
        row: Row = self._dataset[number].to_pylist()[0] if self._has_columns else {}
        return row


class JoinedRows(Sequence[Row]):
    """Several sequences of rows, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        self._parts = parts
        self._ends = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Row:  # type: ignore[override]
        part = bisect_right(self._ends, number) - 1
        return self._parts[part][number - self._ends[part]]


def open_saved(folder: Path) -> Dataset:
    """A dataset that ``save_to_disk`` wrote.

    Raises:
        DataError: The folder holds no whole dataset.
    """
    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # a damaged folder makes ``datasets`` raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}: cannot read the saved dataset: {reason}") from error
    if not isinstance(dataset, Dataset):
        raise DataError(f"{folder}: holds several splits ({', '.join(dataset)}): name the folder of one")
    return dataset


# ---- parquet -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A parquet file, local or on a hub, read a row group at a time."""

    url: str

    @property
    def name(self) -> str:
        """The file's."""
        return self.url.rsplit("/", 1)[-1]

    def open(self) -> OpenFile:
        """Read the footer."""
        try:
            return _OpenParquet(pq.ParquetFile(fsspec.open(self.url).open() if "://" in self.url else self.url))
        except (OSError, pa.ArrowException, httpx.HTTPError) as error:  # the hub's client has tried several times
            raise DataError(f"{self.url}: cannot read the parquet file: {error}") from error


@dataclass(frozen=True, slots=True)
class _OpenParquet:
    file: pq.ParquetFile

    @property
    def group_sizes(self) -> Sequence[int]:
        metadata = self.file.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def group(self, number: int) -> RowGroup:
        return _ParquetGroup(self.file, number)


class _ParquetGroup:
    """The ratings are read when the first are asked for, the rest with the first whole row."""

    def __init__(self, file: pq.ParquetFile, number: int) -> None:
        self._file = file
        self._number = number

    def ratings(self, row: int) -> Row:
        return _table_row(self._ratings, row)

    def row(self, row: int) -> Row:
        return _table_row(self._rows, row)

    @cached_property
    def _ratings(self) -> pa.Table | Exception:
        return self._read(RATING_COLUMNS)

    @cached_property
    def _rows(self) -> pa.Table | Exception:
        return self._read(COLUMNS)

    def _read(self, columns: Sequence[str]) -> pa.Table | Exception:
        """Some columns, or why they cannot be read: a damaged group is tried once, not once for each row."""
        known = [name for name in columns if name in self._file.schema_arrow.names]
        try:
            return self._file.read_row_group(self._number, columns=known)
        except Exception as error:
            return error


def _table_row(table: pa.Table | Exception, row: int) -> Row:
    if isinstance(table, Exception):
        raise table
    values: Row = table.slice(row, 1).to_pylist()[0] if table.num_columns else {}
    return values
