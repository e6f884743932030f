"""Which samples share a pack: arithmetic on (tokens, images, tiles), no tensors, pure Python.

Pool packing: keep ``pool_size`` waiting samples in the order of arrival; the oldest opens a pack; the rest of the
pack is the subset of the others that fills it best, found exactly. The subset sums are the bits of one big integer:
bit s of ``reach`` says that some subset has s tokens, and a sample of n tokens adds ``reach << n``. Of all best
subsets the one with the oldest samples is taken, so nothing waits long.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple


class Size(NamedTuple):
    """What a sample takes up in a pack."""

    tokens: int
    images: int
    tiles: int


class KnapsackPacker:
    """Packs a stream of sizes under caps on tokens, images and (if not None) tiles."""

    def __init__(
        self, max_tokens: int = 4096, max_images: int = 18, max_tiles: int | None = None, pool_size: int = 64
    ) -> None:
        if max_tokens < 1 or max_images < 0 or pool_size < 1:
            raise ValueError(f"max_tokens={max_tokens}, max_images={max_images}, pool_size={pool_size}: too small")
        self.max_tokens = max_tokens
        self.max_images = max_images
        self.max_tiles = max_tiles
        self.pool_size = pool_size

    def pack(self, items: Iterable[tuple[int, int, int]]) -> Iterator[list[int]]:
        """Yield the packs as lists of item numbers (from 0, in the order of ``items``), each number once.

        Raises:
            ValueError: An item is larger than a pack.
        """
        arriving = ((number, self._checked(number, Size(*item))) for number, item in enumerate(items))
        pool: deque[tuple[int, Size]] = deque(islice(arriving, self.pool_size))
        while pool:
            first, size = pool.popleft()
            chosen = self._fill([waiting for _, waiting in pool], size)
            yield [first, *(pool[place][0] for place in chosen)]
            taken = set(chosen)
            pool = deque(entry for place, entry in enumerate(pool) if place not in taken)
            pool.extend(islice(arriving, self.pool_size - len(pool)))

    def _checked(self, number: int, size: Size) -> Size:
        tiles_fit = self.max_tiles is None or size.tiles <= self.max_tiles
        if size.tokens < 1 or size.tokens > self.max_tokens or size.images > self.max_images or not tiles_fit:
            raise ValueError(
                f"item {number} has {size}; a pack holds 1 to {self.max_tokens} tokens, "
                f"{self.max_images} images, {self.max_tiles} tiles (None: no limit)"
            )
        return size

    def _fill(self, waiting: Sequence[Size], first: Size) -> list[int]:
        """Places in ``waiting`` of the best company for ``first``, oldest first."""
        tokens = self.max_tokens - first.tokens
        images = self.max_images - first.images
        tiles = None if self.max_tiles is None else self.max_tiles - first.tiles
        chosen = best_subset(waiting, tokens)
        fits = sum(waiting[place].images for place in chosen) <= images
        if tiles is not None:
            fits = fits and sum(waiting[place].tiles for place in chosen) <= tiles
        return chosen if fits else best_capped_subset(waiting, tokens, images, tiles)


def best_subset(sizes: Sequence[Size], max_tokens: int) -> list[int]:
    """Places of a subset with the most tokens up to ``max_tokens``; of several, the one with the oldest sizes."""
    window = (1 << (max_tokens + 1)) - 1
    reach = 1
    before = []  # reach without this size and all older ones
    for size in reversed(sizes):
        before.append(reach)
        if size.tokens <= max_tokens:
            reach |= (reach << size.tokens) & window
    left = reach.bit_length() - 1
    chosen = []
    for place, (size, others) in enumerate(zip(sizes, reversed(before), strict=True)):
        if left >= size.tokens and others >> (left - size.tokens) & 1:
            chosen.append(place)
            left -= size.tokens
    return chosen


def best_capped_subset(sizes: Sequence[Size], max_tokens: int, max_images: int, max_tiles: int | None) -> list[int]:
    """As ``best_subset``, with at most so many images and tiles: one ``reach`` for each (images, tiles)."""
    window = (1 << (max_tokens + 1)) - 1
    tiles_of = [0 if max_tiles is None else size.tiles for size in sizes]
    tile_cap = max_tiles or 0
    layers = {(0, 0): 1}
    before = []
    for size, size_tiles in zip(reversed(sizes), reversed(tiles_of), strict=True):
        before.append(layers)
        grown = dict(layers)
        for (images, tiles), reach in layers.items():
            key = (images + size.images, tiles + size_tiles)
            if key[0] <= max_images and key[1] <= tile_cap and (more := (reach << size.tokens) & window):
                grown[key] = grown.get(key, 0) | more
        layers = grown
    left, (images, tiles) = max((reach.bit_length() - 1, key) for key, reach in layers.items())
    chosen = []
    for place, (size, size_tiles, others) in enumerate(zip(sizes, tiles_of, reversed(before), strict=True)):
        rest = (images - size.images, tiles - size_tiles)
        if left >= size.tokens and others.get(rest, 0) >> (left - size.tokens) & 1:
            chosen.append(place)
            left, (images, tiles) = left - size.tokens, rest
    return chosen
