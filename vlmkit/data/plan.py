"""The plan: which samples make up which pack, epoch after epoch, from the index and the seed alone.

There is one plan for all processes: each works out the whole of it and takes its share of every step, so the order
of samples does not depend on how many processes there are, and a position in it is two numbers.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from vlmkit.config import KnapsackConfig, PackingConfig
from vlmkit.data.index import TOO_LONG, TOO_MANY_TILES, IndexedSample, SampleIndex
from vlmkit.data.order import keyed_permutation
from vlmkit.data.packing import KnapsackPacker, Size
from vlmkit.errors import DataError


@dataclass(frozen=True, slots=True)
class Visit:
    """One sample in one epoch: its number in the dataset, and which of its turns, in which order."""

    sample: int
    turns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """Samples that share a sequence."""

    visits: tuple[Visit, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the plan: so many packs of this epoch are consumed."""

    epoch: int = 0
    packs: int = 0


def build_packer(config: PackingConfig) -> KnapsackPacker:
    """The packer that the config names."""
    match config:
        case KnapsackConfig():
            return KnapsackPacker(
                config.seq_length,
                config.max_images_per_knapsack,
                config.max_tiles_per_knapsack,
                config.pool_size,
            )
        case _:
            raise AssertionError(f"no packer for {type(config).__name__}")


class Plan:
    """The packs of every epoch."""

    def __init__(
        self,
        index: SampleIndex,
        packing: PackingConfig,
        seed: int,
        max_sample_length: int,
        turns_per_visit: int | None = None,
    ) -> None:
        self._packing = packing
        self._seed = seed
        self._turns_per_visit = turns_per_visit
        self.left_out = Counter(index.left_out)  # samples, by reason
        self._samples = self._that_fit(index, max_sample_length)
        self._epoch: tuple[int, list[Pack]] | None = None

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self._samples)

    @property
    def seq_length(self) -> int:
        """Tokens that a pack can hold."""
        return self._packing.seq_length

    def epoch(self, epoch: int) -> list[Pack]:
        """All packs of an epoch, in order."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._pack_epoch(epoch))
        return self._epoch[1]

    def packs_from(self, position: Position) -> Iterator[tuple[Pack, Position]]:
        """The packs from a position on, without end, each with the position after it.

        Raises:
            DataError: There is nothing to train on.
        """
        if not self._samples:
            raise DataError("no sample is left to train on: the filter or the length limits leave nothing")
        while True:
            packs = self.epoch(position.epoch)
            for done, pack in enumerate(packs[position.packs :], start=position.packs + 1):
                yield (
                    pack,
                    Position(position.epoch, done) if done < len(packs) else Position(position.epoch + 1),
                )
            position = Position(position.epoch + 1)

    def _pack_epoch(self, epoch: int) -> list[Pack]:
        visits: list[Visit] = []
        sizes: list[Size] = []
        for i in keyed_permutation(len(self._samples), self._seed, epoch):
            sample = self._samples[i]
            places = self._visited_places(sample, epoch)
            visits.append(Visit(sample.number, tuple(sample.turns[place] for place in places)))
            sizes.append(sample.size(places))
        packs = build_packer(self._packing).pack(sizes)
        return [Pack(tuple(visits[i] for i in pack), sum(sizes[i].tokens for i in pack)) for pack in packs]

    def _visited_places(self, sample: IndexedSample, epoch: int) -> list[int]:
        if self._turns_per_visit is None:
            return list(range(len(sample.turns)))
        drawn = keyed_permutation(len(sample.turns), self._seed, epoch, sample.number)
        return [int(place) for place in drawn[: self._turns_per_visit]]

    def _that_fit(self, index: SampleIndex, max_sample_length: int) -> list[IndexedSample]:
        """Samples that fit whichever turns are drawn; the others are counted."""
        tile_cap = getattr(self._packing, "max_tiles_per_knapsack", None)
        fitting = []
        for sample in index.samples:
            if self._longest(sample) > max_sample_length:
                self.left_out[TOO_LONG] += 1
            elif sample.images > self._packing.max_images_per_knapsack or (tile_cap and sample.tiles > tile_cap):
                self.left_out[TOO_MANY_TILES] += 1
            else:
                fitting.append(sample)
        return fitting

    def _longest(self, sample: IndexedSample) -> int:
        """Tokens of the longest visit."""
        if self._turns_per_visit is None:
            return sample.size(range(len(sample.turns))).tokens
        longest_turns = sorted(map(max, sample.first_lengths, sample.later_lengths), reverse=True)
        return sample.picture_length + sum(longest_turns[: self._turns_per_visit])
