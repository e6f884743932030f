"""The index: what every row of a source would take up, measured once, so that planning is arithmetic.

It holds lengths of texts in tokens, sizes of pictures in pixels and ratings, and no choice that an experiment makes:
another filter, tile size or length limit needs no new index, another tokenizer does. Building it reads everything
once, but of a picture only the header. It is kept in a cache on disk, in columns that processes map into memory.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from vlmkit.config import RATING_AXES
from vlmkit.data.sources import Source
from vlmkit.data.worker import ignore_signals
from vlmkit.errors import BadSampleError
from vlmkit.paths import held_lock, is_writable, whole_file
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import image_size
from vlmkit.types import Sample

VERSION = 1  # of what is measured: a change of how a turn is encoded, or of a column, makes every index stale
INDEX_FILE = "index.json"
ROWS_IN_A_PART = 1000  # measured at once; what a killed build loses at most, for each process
PARTS_FOR_A_POOL = 5  # fewer are measured faster than processes start
NO_RATING = -1

T = TypeVar("T")
Watch = Callable[[Sequence[T]], Iterable[T]]  # gives the items on and shows the progress


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """S readable samples with U turns and P pictures, and B rows that are not readable."""

    rows: NDArray[np.int64]  # [S] number of the row in its source
    turn_ends: NDArray[np.int64]  # [S] where a sample's turns end among all turns
    picture_ends: NDArray[np.int64]  # [S] where its pictures end among all pictures
    later_lengths: NDArray[np.int32]  # [U] tokens of a turn without pictures before it
    first_lengths: NDArray[np.int32]  # [U] tokens of a turn that comes first, after pictures, without those
    ratings: NDArray[np.int8]  # [U, 4] in the order of RATING_AXES, or NO_RATING
    picture_sizes: NDArray[np.int32]  # [P, 2] width and height in pixels
    bad_rows: NDArray[np.int64]  # [B]
    bad: tuple[BadSampleError, ...]  # [B]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_rows(self) -> int:
        """Rows of the source."""
        return len(self.rows) + len(self.bad_rows)


ARRAYS = tuple(field.name for field in fields(SampleIndex) if field.name != "bad")
ENDS = ("turn_ends", "picture_ends")


def load_or_build_index(
    source: Source, encoder: ChatEncoder, cache: Path, watch: Watch[int], processes: int | None = None
) -> SampleIndex:
    """The source's index from the cache; if it is not there, it is built and kept there.

    A build that was killed goes on where it stopped. Of several processes one builds, the others wait. Where nothing
    can be written the index is in memory alone.

    Args:
        source: A source with ``rows``.
        encoder: Decides the lengths of texts.
        cache: Folder of all indexes.
        watch: Shows progress over parts of ROWS_IN_A_PART rows.
        processes: None: as many as this process may use.
    """
    assert source.rows is not None
    folder = index_folder(cache, source, encoder)
    starts = range(0, len(source.rows), ROWS_IN_A_PART)
    if not _is_whole(folder):
        if not is_writable(folder):
            return build_index(source, encoder, watch)
        with held_lock(folder / ".lock", wait=True):
            if not _is_whole(folder):
                parts = {start: folder / "parts" / str(start) for start in starts}
                _measure_parts(_Measurer(source, encoder, parts), watch, processes or len(os.sched_getaffinity(0)))
                _save(_joined([_load(part) for part in parts.values()]), folder)
                shutil.rmtree(folder / "parts", ignore_errors=True)
    return _load(folder)


def build_index(source: Source, encoder: ChatEncoder, watch: Watch[int]) -> SampleIndex:
    """The source's index, in memory alone."""
    assert source.rows is not None
    starts = range(0, len(source.rows), ROWS_IN_A_PART)
    return _joined([_measure_rows(source, encoder, start) for start in watch(starts)])


def index_folder(cache: Path, source: Source, encoder: ChatEncoder) -> Path:
    """Where the source's index is: it changes with the rows, the tokenizer and the chat template, and nothing else."""
    parts = (
        VERSION,
        source.fingerprint,
        str(source.folder),
        encoder.tokenizer.fingerprint,
        encoder.tokenizer.chat_template,
    )
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return cache / f"{source.name}-{key}"


def _measure_parts(measurer: "_Measurer", watch: Watch[int], processes: int) -> None:
    """Measure and save the parts that are not there yet, in several processes if there are many."""
    missing = [start for start, part in measurer.parts.items() if not _is_whole(part)]
    done = DataLoader(
        measurer,
        batch_size=None,
        sampler=missing,
        num_workers=processes if processes > 1 and len(missing) >= PARTS_FOR_A_POOL else 0,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # or it would draw from the one of the run
    )
    for _, error in zip(watch(missing), done, strict=True):
        if error:
            raise error


class _Measurer(Dataset[OSError | None]):
    """Measures parts and saves them, in workers: those of PyTorch end when their parent is killed."""

    def __init__(self, source: Source, encoder: ChatEncoder, parts: Mapping[int, Path]) -> None:
        self._source = source
        self._encoder = encoder
        self.parts = parts  # first row → folder

    def __getitem__(self, start: int) -> OSError | None:
        try:
            _save(_measure_rows(self._source, self._encoder, start), self.parts[start])
        except OSError as error:
            return error  # as a value: raised, it would come with a worker's traceback
        return None


def _measure_rows(source: Source, encoder: ChatEncoder, start: int) -> SampleIndex:
    """The index of one part of the rows."""
    assert source.rows is not None
    columns: dict[str, list[Any]] = {name: [] for name in ARRAYS}
    bad: list[BadSampleError] = []
    for row in range(start, min(start + ROWS_IN_A_PART, len(source.rows))):
        try:
            sample = source.sample(row)
            sizes = picture_sizes(sample)
        except BadSampleError as error:
            columns["bad_rows"].append(row)
            bad.append(error)
            continue
        lengths = [encoder.turn_lengths(turn) for turn in sample.turns]
        columns["later_lengths"] += [later for later, _ in lengths]
        columns["first_lengths"] += [first for _, first in lengths]
        columns["ratings"] += [[_as_int8(rating) for rating in turn.ratings] for turn in sample.turns]
        columns["picture_sizes"] += sizes
        columns["rows"].append(row)
        columns["turn_ends"].append(len(columns["later_lengths"]))
        columns["picture_ends"].append(len(columns["picture_sizes"]))
    return _as_index(columns, bad)


def _as_index(columns: Mapping[str, Sequence[Any]], bad: Sequence[BadSampleError]) -> SampleIndex:
    shapes = {"ratings": (-1, len(RATING_AXES)), "picture_sizes": (-1, 2)}
    types = {"ratings": np.int8, "picture_sizes": np.int32, "later_lengths": np.int32, "first_lengths": np.int32}
    arrays = {
        name: np.array(values, types.get(name, np.int64)).reshape(shapes.get(name, (-1,)))
        for name, values in columns.items()
    }
    return SampleIndex(**arrays, bad=tuple(bad))


def _as_int8(rating: int | None) -> int:
    """Ratings are 1 to 5; what is beyond stays beyond."""
    return NO_RATING if rating is None else min(max(rating, 0), 9)


def picture_sizes(sample: Sample) -> list[tuple[int, int]]:
    """Width and height of a sample's pictures.

    Raises:
        BadSampleError: A picture cannot be opened.
    """
    return [image_size(image, sample.name) for image in sample.images]


def _joined(parts: Sequence[SampleIndex]) -> SampleIndex:
    """One index of several that follow one another."""
    parts = parts or [_as_index({name: [] for name in ARRAYS}, [])]
    arrays = {}
    for name in ARRAYS:
        columns = [getattr(part, name) for part in parts]
        if name in ENDS:
            before = np.cumsum([0, *(column[-1] if len(column) else 0 for column in columns)])
            columns = [column + offset for column, offset in zip(columns, before, strict=False)]
        arrays[name] = np.concatenate(columns)
    return SampleIndex(**arrays, bad=tuple(error for part in parts for error in part.bad))


def _save(index: SampleIndex, folder: Path) -> None:
    """Write the columns, then INDEX_FILE, which says that they are whole."""
    for name in ARRAYS:
        with whole_file(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, getattr(index, name), allow_pickle=False)
    with whole_file(folder / INDEX_FILE) as temporary:
        bad = [(error.reason, error.name, error.detail) for error in index.bad]
        temporary.write_text(json.dumps({"samples": len(index), "bad": bad}))


def _is_whole(folder: Path) -> bool:
    return (folder / INDEX_FILE).exists()


def _load(folder: Path) -> SampleIndex:
    """Map the columns into memory."""
    bad = json.loads((folder / INDEX_FILE).read_text())["bad"]
    arrays = {name: _mapped(folder / f"{name}.npy") for name in ARRAYS}
    return SampleIndex(**arrays, bad=tuple(BadSampleError(*parts) for parts in bad))


def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
