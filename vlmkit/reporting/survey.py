"""What is known of the data before a picture is decoded: the rows, their index, what is kept of them, the packs.

A stream has no index. Some of its rows are read, from many places of its files, and then treated like any others.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vlmkit.config import InspectConfig
from vlmkit.data.files import RowFile
from vlmkit.data.index import SampleIndex, build_index, load_or_build_index
from vlmkit.data.order import keyed_permutation
from vlmkit.data.packing import Size
from vlmkit.data.pipeline import held_out_rows, limits_of
from vlmkit.data.plan import Candidates, Limits, Plan, Visit
from vlmkit.data.rows import Row, sample_from_row
from vlmkit.data.sources import Source, build_sources
from vlmkit.errors import DataError
from vlmkit.paths import cache_dir
from vlmkit.processing.chat import ChatEncoder
from vlmkit.types import Sample

PLACES_IN_A_STREAM = 10  # files, or row groups of few files, that the rows of a stream come from at least
Watch = Callable[[Sequence[int]], Iterable[int]]


@dataclass(frozen=True, slots=True)
class SurveyedSource:
    """One source: N of its samples are trained on, and as many more are kept by the filter but not by the limits."""

    source: Source
    names: Sequence[str] | None  # of the rows, if they were read from a stream
    index: SampleIndex
    part: NDArray[np.bool_]  # [rows] which rows are looked at
    filtered: Candidates  # samples that the filter keeps
    trained: Candidates  # of those, the samples that the limits keep too
    sizes: NDArray[np.int64]  # [filtered samples, 3] tokens, pictures, tiles in the first epoch
    visit: Callable[[int], Visit]  # number among the filtered samples → its visit of the first epoch

    @property
    def filtered_rows(self) -> NDArray[np.int64]:
        """Row of each sample that the filter keeps, ascending."""
        return self.index.rows[self.filtered.chosen]

    @property
    def trained_sizes(self) -> NDArray[np.int64]:
        """The sizes of the samples that are trained on."""
        return self.sizes[np.searchsorted(self.filtered.chosen, self.trained.chosen)]

    def first_visit(self, row: int) -> tuple[Visit, Size] | None:
        """What the first epoch makes of a row, limits aside; None if the filter drops it."""
        place = int(np.searchsorted(self.filtered_rows, row))
        if place == len(self.filtered_rows) or self.filtered_rows[place] != row:
            return None
        return self.visit(place), Size(*self.sizes[place].tolist())

    def name(self, row: int) -> str:
        """The row's, as messages of a training run have it."""
        return self.names[row] if self.names else f"{self.source.name}/{row}"

    def sample(self, row: int) -> Sample:
        """The whole sample, with the turns that the filter drops.

        Raises:
            BadSampleError: It cannot be read.
        """
        assert self.source.rows is not None
        return sample_from_row(self.source.rows[row], self.name(row), self.source.folder)


@dataclass(frozen=True, slots=True)
class Survey:
    """All sources, and the plan of their packs."""

    sources: Sequence[SurveyedSource]
    plan: Plan
    streamed: bool


def take_survey(config: InspectConfig, encoder: ChatEncoder, watch: Watch) -> Survey:
    """Read and measure the configured data, and plan their packs.

    Args:
        config: What to look at.
        encoder: Turns samples into ids; it decides their lengths.
        watch: Shows progress over the parts of an index that is built.

    Raises:
        UserError: There is nothing to look at.
    """
    sources = build_sources(config.dataset)
    names: list[Sequence[str] | None] = [None] * len(sources)
    if config.dataset.streaming:
        for number, source in enumerate(sources):
            sources[number], names[number] = read_stream(source, config.max_rows, config.seed)
        indexes = [build_index(source, encoder, watch) for source in sources]
    else:
        indexes = [load_or_build_index(source, encoder, cache_dir(), watch) for source in sources]
    parts = [~held_out for held_out in held_out_rows(sources, config.dataset.val_size)]

    surveyed = []
    for number, (source, index, part) in enumerate(zip(sources, indexes, parts, strict=True)):
        filtered, trained = (
            Candidates(index, part, encoder, config.filter.minima, limits, config.dataset.turns_per_visit)
            for limits in (_no_limits(index), limits_of(config))
        )
        sizes, visit = filtered.visits(config.seed, 0, number)
        surveyed.append(SurveyedSource(source, names[number], index, part, filtered, trained, sizes, visit))
    plan = Plan([one.trained for one in surveyed], config.packing, config.seed, [source.weight for source in sources])
    return Survey(surveyed, plan, config.dataset.streaming)


def _no_limits(index: SampleIndex) -> Limits:
    """Limits that every sample of an index is within."""
    most_pictures = int(np.diff(index.picture_ends, prepend=0).max(initial=0))
    return Limits(tokens=2**62, images=most_pictures, pack_images=most_pictures, pack_tiles=None)


def read_stream(source: Source, max_rows: int, seed: int) -> tuple[Source, list[str]]:
    """The source with up to so many of its rows in memory, from its files in turns, and the names of the rows.

    Raises:
        DataError: No file can be read.
    """
    at_once = -(-max_rows // PLACES_IN_A_STREAM)
    files = [source.files[number] for number in keyed_permutation(len(source.files), seed)]
    waiting = deque(_chunks(file, at_once, seed) for file in files)
    names: list[str] = []
    rows: list[Row] = []
    skipped = list(source.skipped)
    while waiting and len(rows) < max_rows:
        file = waiting.popleft()
        try:
            for name, row in next(file):
                names.append(f"{source.name}/{name}")
                rows.append(row)
            waiting.append(file)
        except StopIteration:
            pass
        except DataError as error:
            skipped.append(str(error))
    if not rows and skipped:
        raise DataError(f"{source.name}: no file can be read: {skipped[0]}")
    return replace(source, rows=rows[:max_rows], files=(), skipped=tuple(skipped)), names[:max_rows]


def _chunks(file: RowFile, at_once: int, seed: int) -> Iterator[list[tuple[str, Row]]]:
    """All rows of a file with their names: some of each row group, then more of each."""
    opened = file.open()
    sizes = opened.group_sizes
    first_rows = np.cumsum([0, *sizes]).tolist()
    for start in range(0, max(sizes, default=0), at_once):
        for number in keyed_permutation(len(sizes), seed).tolist():
            chosen = keyed_permutation(sizes[number], seed, number)[start : start + at_once].tolist()
            if chosen:
                group = opened.group(number)
                yield [(f"{file.name}/{first_rows[number] + row}", group.row(row)) for row in chosen]
