"""Streams: packs from files of which nothing is known in advance, in an order that survives anything.

There are C *lanes*, C being the packs of one global step: lane l makes the l-th pack of every step, whoever asks. So
the steps are the same for any number of processes and workers. A lane reads its own share of the files and packs what
it reads. Its state is numbers only: which samples wait in its pool, and where it reads on. The state rides with each
pack, and the training process keeps that of the last pack it has consumed.

What a lane reads is *pieces*: files; if there are few, row groups; if these are few too, every m-th row of a group. In
each epoch a keyed permutation deals the pieces to the lanes; row groups, and the rows of each, come in keyed order too.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate, islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmkit.data.files import OpenFile, RowFile, RowGroup
from vlmkit.data.order import keyed_hash, keyed_permutation
from vlmkit.data.packing import KnapsackPacker, Lateness, Size
from vlmkit.data.plan import ALL_TURNS_DROPPED, TOO_LONG, TOO_MANY_IMAGES, TOO_MANY_TILES, Limits
from vlmkit.data.ratings import FilterCounts, kept_turns
from vlmkit.data.rows import RATING_COLUMNS, Row, read_row, sample_from_row, turn_ratings
from vlmkit.data.sources import Source
from vlmkit.data.worker import Loaded
from vlmkit.errors import BadSampleError, DataError
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import image_size
from vlmkit.types import Ratings, Sample, Turn

VALIDATION_SHARE = 20  # one piece in so many at most is held out of training
MIN_FILES_PER_LANE = 2  # with fewer files their row groups are dealt
UNREADABLE_FILE = "file cannot be read"
NOTHING = Size(0, 0, 0)
MAX_USELESS_ROWS = 1000  # one after the other, over at least two epochs of a lane, and the stream gives up
MAX_USELESS_EPOCHS = 50  # the same for a lane with few rows


class Place(NamedTuple):
    """A row on a reader's way: numbers that lead to it again."""

    epoch: int
    piece: int  # of the reader's pieces of this epoch
    row: int  # of the piece, in keyed order


START = Place(0, 0, 0)


class Waiting(NamedTuple):
    """A sample in a lane's pool."""

    number: int  # of all samples that the lane has read, in order
    source: int
    place: Place


@dataclass(frozen=True, slots=True)
class LaneState:
    """Where a lane is."""

    following: tuple[Place, ...]  # where it reads on in each source
    arrived: int = 0  # samples read so far
    waiting: tuple[Waiting, ...] = ()  # oldest first


@dataclass(slots=True)
class LaneReport:
    """What lanes met on the way."""

    counts: FilterCounts = field(default_factory=FilterCounts)
    left_out: Counter[str] = field(default_factory=Counter)  # samples, by reason
    bad: list[BadSampleError] = field(default_factory=list)
    samples_of_sources: Counter[str] = field(default_factory=Counter)

    def merge(self, other: "LaneReport") -> None:
        """Add what another lane met."""
        self.counts.merge(other.counts)
        self.left_out.update(other.left_out)
        self.bad += other.bad
        self.samples_of_sources.update(other.samples_of_sources)


@dataclass(frozen=True, slots=True)
class LanePack:
    """A pack, the lane's state after it, and what was met since the pack before."""

    samples: tuple[Loaded, ...]
    state: LaneState
    report: LaneReport
    lateness: int  # places that its most delayed sample comes after its turn


class Piece(NamedTuple):
    """A file, or of one of its groups the rows whose number leaves ``remainder`` when divided by ``modulus``."""

    file: int
    group: int | None = None  # None: all of them
    remainder: int = 0
    modulus: int = 1


@dataclass(frozen=True, slots=True)
class _Found:
    """What a reader makes of one row."""

    place: Place
    following: Place
    loaded: Loaded | None = None  # None: it cannot be trained on
    size: Size = NOTHING
    ratings: Sequence[Ratings] = ()
    kept: Sequence[int] = ()
    left_out: str | None = None  # the reason
    bad: BadSampleError | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What is taken of a row."""

    encoder: ChatEncoder
    minima: tuple[int, ...]  # ratings, in the order of RATING_AXES
    limits: Limits
    turns_per_visit: int | None  # so many turns of a sample, drawn anew each epoch; None: all, in order
    seed: int

    def look_at(
        self, group: RowGroup, row: int, name: str, folder: Path | None, key: tuple[int, ...], at: _Found
    ) -> _Found:
        """Filter, limit and measure a row; what the ratings alone rule out is not read further."""
        try:
            rated = _rated_turns(read_row(group.ratings, row, name), name)
            if rated and not kept_turns(rated, self.minima):
                return replace(at, ratings=rated, left_out=ALL_TURNS_DROPPED)
            return self._measure(sample_from_row(read_row(group.row, row, name), name, folder), key, at)
        except BadSampleError as error:
            return replace(at, bad=error)

    def _measure(self, sample: Sample, key: tuple[int, ...], at: _Found) -> _Found:
        ratings = [turn.ratings for turn in sample.turns]
        kept = kept_turns(ratings, self.minima)
        at = replace(at, ratings=ratings, kept=kept)
        if not kept:
            return replace(at, left_out=ALL_TURNS_DROPPED)
        if len(sample.images) > self.limits.images:
            return replace(at, left_out=TOO_MANY_IMAGES)
        grids = [self.encoder.layout.grid(*image_size(image, sample.name)) for image in sample.images]
        visited = replace(sample, turns=self._visited([sample.turns[turn] for turn in kept], key))
        encoded = self.encoder.encode_sample(visited.turns, grids)
        tokens = len(encoded.input_ids)
        size = Size(tokens, len(grids), sum(grid.num_tiles for grid in grids))
        if tokens > self.limits.tokens:
            return replace(at, left_out=TOO_LONG)
        tile_cap = self.limits.pack_tiles
        if size.images > self.limits.pack_images or (tile_cap is not None and size.tiles > tile_cap):
            return replace(at, left_out=TOO_MANY_TILES)
        return replace(at, loaded=Loaded(visited, key, encoded), size=size)

    def _visited(self, turns: Sequence[Turn], key: tuple[int, ...]) -> tuple[Turn, ...]:
        if self.turns_per_visit is None:
            return tuple(turns)
        drawn = keyed_permutation(len(turns), self.seed, *key)[: self.turns_per_visit]
        return tuple(turns[turn] for turn in drawn)


class Stream:
    """The files of some sources, dealt to lanes; the same in every process."""

    def __init__(
        self, sources: Sequence[Source], selection: Selection, packer: KnapsackPacker, num_lanes: int, val_size: int
    ) -> None:
        self._sources = sources
        self._selection = selection
        self._packer = packer
        self._num_lanes = num_lanes
        split = [split_pieces(source.files, num_lanes, -(-val_size // len(sources))) for source in sources]
        self._train = [train for train, _ in split]
        self._held_out = [held_out for _, held_out in split]
        self._shares = list(accumulate(source.weight or 1.0 for source in sources))

    @property
    def start(self) -> LaneState:
        """The state of every lane before its first pack."""
        return LaneState(tuple(START for _ in self._sources))

    def packs(self, lane: int, state: LaneState) -> Iterator[LanePack]:
        """The packs of a lane from a state on, without end.

        Raises:
            DataError: There is nothing to train on.
        """
        readers = [
            _Reader(source, number, self._selection, self._dealt(pieces, lane))
            for number, (source, pieces) in enumerate(zip(self._sources, self._train, strict=True))
        ]
        return _Lane(lane, readers, self._shares, self._selection, state).packs(self._packer)

    def held_out(self, selection: Selection, max_samples: int) -> Iterator[tuple[Loaded, Size]]:
        """The samples of the pieces that no lane reads, the sources in turns, each sample once."""
        streams = [
            _Reader(source, number, selection, lambda _epoch, own=pieces: own).samples()  # type: ignore[misc]
            for number, (source, pieces) in enumerate(zip(self._sources, self._held_out, strict=True))
        ]
        in_turns = (sample for row in zip_longest(*streams) for sample in row if sample)
        return islice(in_turns, max_samples)

    def _dealt(self, pieces: Sequence[Piece], lane: int) -> Callable[[int], Sequence[Piece]]:
        def of_epoch(epoch: int) -> Sequence[Piece]:
            order = keyed_permutation(len(pieces), self._selection.seed, epoch)
            return [pieces[number] for number in order[lane :: self._num_lanes]]

        return of_epoch


def split_pieces(files: Sequence[RowFile], num_lanes: int, val_size: int) -> tuple[list[Piece], list[Piece]]:
    """Pieces to train on, at least one for each lane, and pieces held out of training.

    The split depends on the files and the number of lanes, not on the seed, so that runs can be compared.

    Args:
        files: Of one source.
        num_lanes: Lanes that the pieces are dealt to.
        val_size: Pieces are held out until they have so many rows, one in VALIDATION_SHARE at most, but one at least
            if this is above 0.
    """
    sizes_of = cache(lambda number: _sizes(files[number]))  # each file is opened once, and only if it must be
    enough = num_lanes + -(-num_lanes // VALIDATION_SHARE) + 1  # some may be held out
    pieces = [Piece(number) for number in range(len(files))]
    if len(pieces) < MIN_FILES_PER_LANE * num_lanes:
        groups = [Piece(number, group) for number in range(len(files)) for group in range(len(sizes_of(number)))]
        # A file that cannot be read stays a piece, to be reported.
        pieces = groups + [Piece(number) for number in range(len(files)) if not sizes_of(number)]
    modulus = -(-enough // len(pieces))
    pieces = [piece._replace(remainder=r, modulus=modulus) for r in range(modulus) for piece in pieces]
    order = keyed_permutation(len(pieces), len(files)).tolist()
    held_out: list[Piece] = []
    rows = 0
    while rows < val_size and len(held_out) < max(len(pieces) // VALIDATION_SHARE, 1):
        piece = pieces[order[len(held_out)]]
        sizes = sizes_of(piece.file)
        rows += (sum(sizes) if piece.group is None else sizes[piece.group]) // modulus
        held_out.append(piece)
    return [pieces[number] for number in sorted(order[len(held_out) :])], held_out


def _sizes(file: RowFile) -> Sequence[int]:
    """Rows of the groups of a file; none if it cannot be read."""
    try:
        return file.open().group_sizes
    except DataError:
        return []


class _Lane:
    """Draws samples from readers and packs them, and knows at any time where it is."""

    def __init__(
        self, number: int, readers: Sequence["_Reader"], shares: Sequence[float], selection: Selection, state: LaneState
    ) -> None:
        self._number = number
        self._readers = readers
        self._shares = shares
        self._selection = selection
        self._following = list(state.following)
        self._arrived = state.arrived
        self._pool = {waiting.number: (waiting, self._read_again(waiting)) for waiting in state.waiting}
        self._report = LaneReport()

    def packs(self, packer: KnapsackPacker) -> Iterator[LanePack]:
        """See Stream.packs."""
        restored = [(number, found.size) for number, (_, found) in self._pool.items()]
        lateness = Lateness(self._arrived - len(restored))
        for numbers in packer.pack_on(restored, self._arrived, self._arriving()):
            packed = [self._pool.pop(number)[1] for number in numbers]
            waiting = tuple(waiting for waiting, _ in self._pool.values())
            report, self._report = self._report, LaneReport()
            yield LanePack(
                tuple(found.loaded for found in packed if found.loaded),
                LaneState(tuple(self._following), self._arrived, waiting),
                report,
                lateness.of(numbers),
            )

    def _arriving(self) -> Iterator[Size]:
        """Samples without end, each from a source that its number and the weights decide."""
        streams = [reader.read(place) for reader, place in zip(self._readers, self._following, strict=True)]
        while True:
            source = self._drawn_source()
            for found in streams[source]:
                self._following[source] = found.following
                self._count(found, source)
                if found.loaded:
                    break
            self._pool[self._arrived] = Waiting(self._arrived, source, found.place), found
            self._arrived += 1
            yield found.size

    def _drawn_source(self) -> int:
        if len(self._shares) == 1:
            return 0
        [drawn] = keyed_hash(np.array([self._arrived], np.uint64), self._selection.seed, self._number)
        return bisect_right(self._shares, float(drawn) / 2**64 * self._shares[-1])

    def _count(self, found: _Found, source: int) -> None:
        report = self._report
        if found.ratings:
            report.counts.add(found.ratings, self._selection.minima, found.kept)
        if found.left_out:
            report.left_out[found.left_out] += 1
        if found.bad:
            report.bad.append(found.bad)
        report.samples_of_sources[self._readers[source].name] += bool(found.loaded)

    def _read_again(self, waiting: Waiting) -> _Found:
        found = next(self._readers[waiting.source].read(waiting.place))
        if not found.loaded:
            raise DataError(f"{waiting} was read before and cannot be read now: have the files changed?")
        return found


class _Reader:
    """Goes through a lane's pieces of one source, epoch after epoch, from any place on."""

    def __init__(
        self, source: Source, number: int, selection: Selection, pieces_of: Callable[[int], Sequence[Piece]]
    ) -> None:
        self.name = source.name
        self._source = source
        self._number = number
        self._selection = selection
        self._pieces_of = pieces_of  # epoch → the pieces, in order
        self._open: tuple[int, OpenFile] | None = None  # the last file
        self._group: tuple[int, int, RowGroup] | None = None  # the last group: of which file, which

    def read(self, start: Place) -> Iterator[_Found]:
        """What is found from a place on, row by row, without end.

        Raises:
            DataError: There is nothing to train on. One epoch is no proof: the next one deals other pieces.
        """
        useless_rows = useless_epochs = 0  # since the last sample that can be trained on
        while True:
            for found in self.read_epoch(start):
                useless_rows = 0 if found.loaded else useless_rows + 1
                useless_epochs = 0 if found.loaded else useless_epochs
                yield found
            useless_epochs += 1
            if useless_epochs > MAX_USELESS_EPOCHS or (useless_epochs > 1 and useless_rows > MAX_USELESS_ROWS):
                raise DataError(f"{self.name}: nothing to train on: every sample is filtered, too long or unreadable")
            start = Place(start.epoch + 1, 0, 0)

    def read_epoch(self, start: Place) -> Iterator[_Found]:
        """What is found from a place to the end of its epoch."""
        for number, piece in enumerate(self._pieces_of(start.epoch)[start.piece :], start.piece):
            first = start.row if number == start.piece else 0
            try:
                yield from self._read_piece(piece, Place(start.epoch, number, first))
            except DataError as error:
                name = f"{self.name}/{self._source.files[piece.file].name}"
                at = Place(start.epoch, number, first)
                yield _Found(
                    at, Place(at.epoch, at.piece + 1, 0), bad=BadSampleError(UNREADABLE_FILE, name, str(error))
                )

    def samples(self) -> Iterator[tuple[Loaded, Size]]:
        """The samples of one epoch."""
        return ((found.loaded, found.size) for found in self.read_epoch(START) if found.loaded)

    def _read_piece(self, piece: Piece, start: Place) -> Iterator[_Found]:
        seed, epoch = self._selection.seed, start.epoch
        file_name = self._source.files[piece.file].name
        sizes = self._opened(piece.file).group_sizes
        first_rows = [0, *accumulate(sizes)]
        groups = (
            keyed_permutation(len(sizes), seed, epoch, piece.file).tolist() if piece.group is None else [piece.group]
        )
        done = 0  # rows of the piece
        for group in groups:
            rows = keyed_permutation(sizes[group], seed, epoch, piece.file, group)
            rows = rows[rows % piece.modulus == piece.remainder]
            for place, row in enumerate(rows.tolist(), done):
                if place >= start.row:
                    at = start._replace(row=place)
                    yield self._selection.look_at(
                        self._read_group(piece.file, group),
                        row,
                        f"{self.name}/{file_name}/{first_rows[group] + row}",
                        self._source.folder,
                        (epoch, self._number, piece.file, first_rows[group] + row),
                        _Found(at, at._replace(row=place + 1)),
                    )
            done += len(rows)

    def _opened(self, file: int) -> OpenFile:
        if self._open is None or self._open[0] != file:
            self._open = (file, self._source.files[file].open())
        return self._open[1]

    def _read_group(self, file: int, group: int) -> RowGroup:
        if self._group is None or self._group[:2] != (file, group):
            self._group = (file, group, self._opened(file).group(group))
        return self._group[2]


def _rated_turns(row: Row, name: str) -> list[Ratings]:
    """Ratings of the turns, if the rating columns alone tell how many there are; else empty."""
    lengths = [len(row[column]) for column in RATING_COLUMNS if isinstance(row.get(column), list)]
    return turn_ratings(row, lengths[0], name) if lengths else []
