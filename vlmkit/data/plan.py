"""The plan: which samples make up which pack, epoch after epoch, from indexes and the seed alone.

There is one plan for all processes: each works it out and takes its share of every step, so the order of samples does
not depend on how many processes there are, and a position in it is two numbers. Nothing here touches a sample:
filter, tiling and length limits are arithmetic on the columns of the index.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from vlmkit.config import BestFitConfig, GreedyConfig, KnapsackConfig, NoPackingConfig, PackingConfig
from vlmkit.data.index import NO_RATING, SampleIndex
from vlmkit.data.order import keyed_hash, keyed_permutation
from vlmkit.data.packing import Item, KnapsackPacker, Lateness, Packer, Size
from vlmkit.data.ratings import FilterCounts
from vlmkit.errors import DataError
from vlmkit.processing.chat import ChatEncoder

TOO_LONG = "longer than dataset.max_sample_length"
TOO_MANY_IMAGES = "more pictures than dataset.max_images_per_example"
TOO_MANY_TILES = "more pictures or tiles than a pack holds"
ALL_TURNS_DROPPED = "every turn is rated below the filter"


@dataclass(frozen=True, slots=True)
class Visit:
    """One sample in one epoch: its row, and which of its turns, in which order."""

    source: int
    row: int
    turns: tuple[int, ...]
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Pack:
    """Samples that share a sequence."""

    places: tuple[int, ...]  # in the order of the epoch
    size: Size
    lateness: int  # places that its most delayed sample comes after its turn; 0 of an offline packer
    visit_at: Callable[[int], Visit]

    @property
    def visits(self) -> tuple[Visit, ...]:
        """The samples: looked up only when they are asked for, as most packs are another process's."""
        return tuple(self.visit_at(place) for place in self.places)


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the plan: so many packs of this epoch are consumed."""

    epoch: int = 0
    packs: int = 0
    arrived: int = 0  # samples that the pool has taken in, in packs or waiting
    waiting: tuple[int, ...] = ()  # places of those that wait: with them a pool goes on without packing again


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sample may have at most."""

    tokens: int
    images: int  # of dataset.max_images_per_example
    pack_images: int
    pack_tiles: int | None


def build_packer(config: PackingConfig) -> Packer:
    """The packer that the config names."""
    caps = (config.seq_length, config.max_images_per_knapsack, config.max_tiles_per_knapsack)
    match config:
        case KnapsackConfig():
            return KnapsackPacker(*caps, config.pool_size)
        case GreedyConfig():
            from vlmkit.data.greedy import GreedyPacker

            return GreedyPacker(*caps, config.buffer_packs)
        case BestFitConfig():
            from vlmkit.data.best_fit import BestFitPacker  # numba takes long to import and nothing else needs it

            return BestFitPacker(*caps)
        case NoPackingConfig():
            return KnapsackPacker(*caps, pool_size=1)  # nobody waits, so nobody is company
        case _:
            raise AssertionError(f"no packer for {type(config).__name__}")


class Candidates:
    """The samples of a part of one source that can be trained on, and what they take up: columns over N samples.

    Args:
        index: Of the whole source.
        part: bool [rows of the source], True for the rows that belong to the part.
        encoder: Knows what pictures take up.
        minima: Rating minima in the order of RATING_AXES.
        limits: Samples beyond them are left out and counted.
        turns_per_visit: So many turns of a sample, drawn anew each epoch; None: all, in order.
    """

    def __init__(
        self,
        index: SampleIndex,
        part: NDArray[np.bool_],
        encoder: ChatEncoder,
        minima: Sequence[int],
        limits: Limits,
        turns_per_visit: int | None,
    ) -> None:
        self._index = index
        self._inside = part[index.rows]  # [S]
        self._turns_per_visit = turns_per_visit
        self.bad = [error for row, error in zip(index.bad_rows, index.bad, strict=True) if part[row]]
        self.left_out = Counter(error.reason for error in self.bad)  # samples, by reason
        self._kept = self._filter(minima)  # [U]
        self._images = np.diff(index.picture_ends, prepend=0)  # [S]
        self._other_tokens, self._tiles = self._measure_pictures(encoder, limits.images)  # [S]
        self.chosen = self._choose(limits)  # [N] numbers of samples in the index

    def __len__(self) -> int:
        return len(self.chosen)

    def visits(self, seed: int, epoch: int, source: int) -> tuple[NDArray[np.int64], Callable[[int], Visit]]:
        """What the candidates take up in an epoch, int64 [N, 3] (tokens, images, tiles), and each one's visit."""
        index = self._index
        turns, ends = self._visited_turns(seed, epoch)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        lengths = index.later_lengths[turns].astype(np.int64)
        leads = starts[self._images[self.chosen] > 0]
        lengths[leads] = index.first_lengths[turns[leads]]
        total = np.concatenate([[0], np.cumsum(lengths)])
        text_tokens = total[ends] - total[starts]
        of_sample = np.diff(index.turn_ends, prepend=0)
        first_turns = index.turn_ends[self.chosen] - of_sample[self.chosen]
        sizes = np.stack(
            [text_tokens + self._other_tokens[self.chosen], self._images[self.chosen], self._tiles[self.chosen]], 1
        )
        rows = index.rows[self.chosen]

        def visit(number: int) -> Visit:
            visited = turns[starts[number] : ends[number]] - first_turns[number]
            return Visit(source, int(rows[number]), tuple(visited.tolist()), epoch)

        return sizes, visit

    def _filter(self, minima: Sequence[int]) -> NDArray[np.bool_]:
        """Which turns pass; counts what does not."""
        below = (self._index.ratings != NO_RATING) & (self._index.ratings < np.array(minima, np.int8))
        kept: NDArray[np.bool_] = ~below.any(axis=1)
        turns = np.repeat(self._inside, np.diff(self._index.turn_ends, prepend=0))
        kept_of_sample = _sums(kept, self._index.turn_ends)[self._inside]
        self.counts = FilterCounts(
            turns=int(turns.sum()),
            kept_turns=int(kept[turns].sum()),
            below=below[turns].sum(axis=0).tolist(),
            samples=len(kept_of_sample),
            kept_samples=int((kept_of_sample > 0).sum()),
        )
        return kept

    def _measure_pictures(self, encoder: ChatEncoder, max_images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each sample's tokens beyond its turns, and its tiles; tokens only for samples with at most ``max_images``."""
        widths, heights = self._index.picture_sizes.T.astype(np.int64)
        sizes, of_picture = np.unique(widths << 32 | heights, return_inverse=True)  # as one number: rows sort slowly
        tokens, tiles = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
        length_of = cache(encoder.picture_length)  # there are few grids
        for number, size in enumerate(sizes.tolist()):
            grid = encoder.layout.grid(size >> 32, size & 0xFFFFFFFF)
            tokens[number], tiles[number] = length_of(grid), grid.num_tiles
        ends = self._index.picture_ends
        extra_lengths = np.array([encoder.extra_length(count) for count in range(max_images + 1)])
        extra = extra_lengths[np.minimum(self._images, max_images)]
        of_picture = of_picture.reshape(-1)
        return _sums(tokens[of_picture], ends) + extra, _sums(tiles[of_picture], ends)

    def _choose(self, limits: Limits) -> NDArray[np.int64]:
        """Samples that fit whichever turns are drawn; the others are counted under the first reason that holds."""
        dropped = _sums(self._kept, self._index.turn_ends) == 0
        too_many_tiles = self._images > limits.pack_images
        if limits.pack_tiles is not None:
            too_many_tiles |= self._tiles > limits.pack_tiles
        left = self._inside.copy()
        for reason, wrong in (
            (ALL_TURNS_DROPPED, dropped),
            (TOO_MANY_IMAGES, self._images > limits.images),
            (TOO_LONG, self._longest() > limits.tokens),
            (TOO_MANY_TILES, too_many_tiles),
        ):
            if count := int((left & wrong).sum()):
                self.left_out[reason] += count
            left &= ~wrong
        return np.flatnonzero(left)

    def _longest(self) -> NDArray[np.int64]:
        """Tokens of each sample's longest visit; if turns are drawn, at least these."""
        index = self._index
        turns = np.flatnonzero(self._kept)
        of_turn = np.searchsorted(index.turn_ends, turns, side="right")
        lengths, firsts = index.later_lengths[turns].astype(np.int64), index.first_lengths[turns]
        may_lead = self._images[of_turn] > 0
        if self._turns_per_visit is None:
            leads = may_lead & (_places(of_turn) == 0)
            lengths[leads] = firsts[leads]
        else:
            lengths[may_lead] = np.maximum(lengths, firsts)[may_lead]
            order = np.lexsort((-lengths, of_turn))
            order = order[_places(of_turn[order]) < self._turns_per_visit]
            of_turn, lengths = of_turn[order], lengths[order]
        longest = np.bincount(of_turn, lengths, minlength=len(index)).astype(np.int64)
        return longest + self._other_tokens

    def _visited_turns(self, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Turns visited in an epoch, sample after sample, and where each sample's end."""
        is_chosen = np.zeros(len(self._index), bool)
        is_chosen[self.chosen] = True
        turns = np.flatnonzero(self._kept)
        of_turn = np.searchsorted(self._index.turn_ends, turns, side="right")
        turns, of_turn = turns[is_chosen[of_turn]], of_turn[is_chosen[of_turn]]
        if self._turns_per_visit is not None:
            drawn = keyed_hash(turns.astype(np.uint64), seed, epoch)
            order = np.lexsort((drawn, of_turn))
            order = order[_places(of_turn[order]) < self._turns_per_visit]
            turns, of_turn = turns[order], of_turn[order]
        counts = np.bincount(of_turn, minlength=len(self._index))[self.chosen]
        return turns, np.cumsum(counts)


class Plan:
    """The packs of every epoch."""

    def __init__(
        self,
        candidates: Sequence[Candidates],
        packing: PackingConfig,
        seed: int,
        weights: Sequence[float | None] | None = None,
    ) -> None:
        self._candidates = candidates
        self._packing = packing
        self._seed = seed
        self._counts = _samples_an_epoch([len(part) for part in candidates], weights or [None] * len(candidates))
        self.left_out: Counter[str] = sum((part.left_out for part in candidates), Counter())

    def __len__(self) -> int:
        """Samples in an epoch."""
        return sum(self._counts)

    @property
    def seq_length(self) -> int:
        """Tokens that a pack can hold."""
        return self._packing.seq_length

    @property
    def shares_of_sources(self) -> list[float]:
        """What share of an epoch's samples comes from each source."""
        return [count / max(len(self), 1) for count in self._counts]

    @property
    def epochs_of_sources(self) -> list[float]:
        """How often each source is gone through in one epoch of the plan."""
        return [count / max(len(part), 1) for count, part in zip(self._counts, self._candidates, strict=True)]

    @cached_property
    def first_packs(self) -> list[Pack]:
        """The first packs of the first epoch: all of a small dataset, of a large one enough to judge."""
        return list(islice(self.packs(0), 5000))

    def packs(self, epoch: int) -> Iterator[Pack]:
        """The packs of an epoch, in order."""
        return (pack for pack, _ in self._packs(Position(epoch)))

    def packs_from(self, position: Position) -> Iterator[tuple[Pack, Position]]:
        """The packs from a position on, without end, each with the position after it.

        Raises:
            DataError: There is nothing to train on.
        """
        if not len(self):
            raise DataError("no sample is left to train on: the filter or the length limits leave nothing")
        while True:
            packs = self._packs(position)
            pack = next(packs, None)
            while pack is not None:
                following = next(packs, None)
                yield pack if following else (pack[0], Position(position.epoch + 1))
                pack = following
            position = Position(position.epoch + 1)

    def _packs(self, start: Position) -> Iterator[tuple[Pack, Position]]:
        """The rest of an epoch's packs, each with the position after it."""
        sizes, visit_at = self._order(start.epoch)
        packer = build_packer(self._packing)
        pooled = isinstance(packer, KnapsackPacker)
        waiting = dict.fromkeys(start.waiting)  # an ordered set
        arrived = start.arrived
        lateness = Lateness(arrived - len(waiting))

        def arriving() -> Iterator[Item]:
            nonlocal arrived
            for item in _as_tuples(sizes, arrived):
                waiting[arrived] = None
                arrived += 1
                yield item

        if isinstance(packer, KnapsackPacker):
            restored = [(place, tuple(sizes[place].tolist())) for place in start.waiting]
            packs = packer.pack_on(restored, start.arrived, arriving())
        else:
            packs = packer.pack(_as_tuples(sizes))
            if packer.offline:
                made = list(packs)
                packs = (made[number] for number in keyed_permutation(len(made), self._seed, start.epoch))
            packs = islice(packs, start.packs, None)
        for done, places in enumerate(packs, start.packs + 1):
            size = Size(*sizes[places].sum(axis=0).tolist())
            pack = Pack(tuple(places), size, 0 if packer.offline else lateness.of(places), visit_at)
            if pooled:
                for place in places:
                    del waiting[place]
                yield pack, Position(start.epoch, done, arrived, tuple(waiting))
            else:
                yield pack, Position(start.epoch, done)

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], Callable[[int], Visit]]:
        """Sizes of an epoch's samples in their order, int64 [N, 3], and the visit at each place."""
        parts = [part.visits(self._seed, epoch, number) for number, part in enumerate(self._candidates)]
        of_source = np.repeat(np.arange(len(parts)), self._counts)
        members = np.concatenate(
            [
                _endless_order(len(part), epoch * count, count, self._seed, number)
                for number, (part, count) in enumerate(zip(self._candidates, self._counts, strict=True))
            ]
        )
        order = keyed_permutation(len(members), self._seed, epoch)
        of_source, members = of_source[order], members[order]
        sizes = np.empty((len(members), 3), np.int64)
        for number, (of_part, _) in enumerate(parts):
            own = of_source == number
            sizes[own] = of_part[members[own]]

        def visit(place: int) -> Visit:
            return parts[of_source[place]][1](members[place])

        return sizes, visit


def _samples_an_epoch(sizes: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """How many samples of each source make up an epoch: all of an unweighted one, else its share of all together."""
    shares = [float(size) if weight is None else weight for size, weight in zip(sizes, weights, strict=True)]
    total = sum(shares) or 1.0
    return [round(sum(sizes) * share / total) if size else 0 for size, share in zip(sizes, shares, strict=True)]


def _endless_order(length: int, start: int, count: int, seed: int, source: int) -> NDArray[np.int64]:
    """``count`` members from place ``start`` on of an endless row of permutations of the numbers below ``length``."""
    taken = []
    while count:
        lap, place = divmod(start, length)
        members = keyed_permutation(length, seed, lap, source)[place : place + count]
        taken.append(members)
        start, count = start + len(members), count - len(members)
    return np.concatenate(taken) if taken else np.empty(0, np.int64)


def _as_tuples(sizes: NDArray[np.int64], first: int = 0, at_once: int = 4096) -> Iterator[Item]:
    """Rows from one on as Python numbers, which the packer is fastest with, without a list of them all."""
    for start in range(first, len(sizes), at_once):
        yield from map(tuple, sizes[start : start + at_once].tolist())


def _sums(values: NDArray[np.generic], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of each run of values, given where the runs end."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return np.diff(total[ends], prepend=0)


def _places(sorted_groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each entry in its run of equal entries, from 0."""
    numbers = np.arange(len(sorted_groups))
    starts = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    return numbers - np.repeat(starts, np.diff(np.append(starts, len(sorted_groups))))
