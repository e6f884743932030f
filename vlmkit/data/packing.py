"""Which samples share a pack: arithmetic on (tokens, images, tiles), no tensors, pure Python.

Pool packing: keep ``pool_size`` waiting samples in the order of arrival; the oldest opens a pack; the rest of the
pack is the subset of the others that fills it best, found exactly. The subset sums are the bits of one big integer:
bit r of ``reach`` says that some subset leaves r tokens free, and a sample of n tokens adds ``reach >> n``. The
oldest samples are tried first and the search ends as soon as nothing is left free, so nothing waits long.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import ClassVar, NamedTuple


class Size(NamedTuple):
    """What a sample takes up in a pack."""

    tokens: int
    images: int
    tiles: int


Item = tuple[int, int, int]  # a Size, or a plain tuple of tokens, images, tiles


class Lateness:
    """How many places later than its turn an item comes, while packs are taken one after the other."""

    def __init__(self, done: int = 0) -> None:
        self._done = done  # items that came before

    def of(self, pack: Sequence[int]) -> int:
        """The most of the next pack's items."""
        latest = max((self._done + place - number for place, number in enumerate(pack)), default=0)
        self._done += len(pack)
        return latest


class Packer(ABC):
    """Packs sizes under caps on tokens, images and (if not None) tiles."""

    offline: ClassVar[bool] = False  # True: needs all items at once, and the order of the packs follows their sizes

    def __init__(self, max_tokens: int = 4096, max_images: int = 18, max_tiles: int | None = None) -> None:
        if max_tokens < 1 or max_images < 0 or (max_tiles is not None and max_tiles < 0):
            raise ValueError(f"max_tokens={max_tokens}, max_images={max_images}, max_tiles={max_tiles}: too small")
        self.max_tokens = max_tokens
        self.max_images = max_images
        self.max_tiles = max_tiles

    @abstractmethod
    def pack(self, items: Iterable[Item]) -> Iterator[list[int]]:
        """Yield the packs as lists of item numbers (from 0, in the order of ``items``), each number once.

        The same items give the same packs.

        Raises:
            ValueError: An item is larger than a pack.
        """

    def check(self, number: int, item: Item) -> None:
        """Raise a ValueError that names the item unless a pack can hold it."""
        tokens, images, tiles = item
        tiles_fit = tiles >= 0 and (self.max_tiles is None or tiles <= self.max_tiles)
        if not (1 <= tokens <= self.max_tokens and 0 <= images <= self.max_images and tiles_fit):
            raise ValueError(
                f"item {number} has {Size(*item)}; a pack holds 1 to {self.max_tokens} tokens, "
                f"{self.max_images} images, {self.max_tiles} tiles (None: no limit)"
            )

    def numbered(self, items: Iterable[Item], start: int = 0) -> Iterator[tuple[int, Item]]:
        """The items with their numbers, each checked."""
        for number, item in enumerate(items, start):
            self.check(number, item)
            yield number, item


class KnapsackPacker(Packer):
    """Pool packing, in a stream. No item comes more than ``2 * pool_size - 1`` places later than it arrived."""

    def __init__(
        self, max_tokens: int = 4096, max_images: int = 18, max_tiles: int | None = None, pool_size: int = 64
    ) -> None:
        super().__init__(max_tokens, max_images, max_tiles)
        if pool_size < 1:
            raise ValueError(f"pool_size={pool_size}: too small")
        self.pool_size = pool_size

    def pack(self, items: Iterable[Item]) -> Iterator[list[int]]:
        """See Packer."""
        return self.pack_on([], 0, items)

    def pack_on(self, waiting: Sequence[tuple[int, Item]], arrived: int, items: Iterable[Item]) -> Iterator[list[int]]:
        """Go on where a stream was left: the packs that ``pack`` would have yielded next.

        Args:
            waiting: Numbers and sizes of the items that had arrived and were in no pack yet, in order.
            arrived: How many items had arrived; the next one has this number.
            items: The items that follow.
        """
        arriving = self.numbered(items, arrived)
        pool = list(waiting)
        while True:
            # Only what has arrived can overtake, so this limit bounds the delay of the oldest waiting item.
            limit = (pool[0][0] if pool else arrived) + 2 * self.pool_size
            new = list(islice(arriving, min(self.pool_size - len(pool), limit - arrived)))
            pool += new
            arrived += len(new)
            if not pool:
                return
            (oldest, item), *pool = pool
            chosen = self._company(item, [other for _, other in pool])
            pack = [oldest, *(pool[place][0] for place in chosen)]
            for place in reversed(chosen):
                del pool[place]
            yield pack

    def _company(self, first: Item, others: Sequence[Item]) -> list[int]:
        """Places in ``others`` of the best company for ``first``, oldest first."""
        room, free_images = self.max_tokens - first[0], self.max_images - first[1]
        tokens, images = [item[0] for item in others], [item[1] for item in others]
        chosen = best_subset(tokens, room)
        if _total(images, chosen) > free_images:
            chosen = best_capped_subset(tokens, room, images, free_images)
        if self.max_tiles is None:
            return chosen
        free_tiles, tiles = self.max_tiles - first[2], [item[2] for item in others]
        if _total(tiles, chosen) > free_tiles:
            chosen = best_capped_subset(tokens, room, tiles, free_tiles)
            if _total(images, chosen) > free_images:
                # Exact for both caps would cost their product. One weight that counts the scarcer of the two is safe.
                cap = max(free_images, free_tiles)
                shares = zip(_shares(images, free_images, cap), _shares(tiles, free_tiles, cap), strict=True)
                chosen = best_capped_subset(tokens, room, list(map(max, shares)), cap)
        return chosen


def best_subset(tokens: Sequence[int], room: int) -> list[int]:
    """Places of a subset with the most tokens up to ``room``; of several, the one whose newest member is oldest."""
    reach = 1 << room
    before = []  # reach without this sample and all newer ones
    for length in tokens:
        before.append(reach)
        reach |= reach >> length
        if reach & 1:
            break
    free = _lowest_bit(reach)
    chosen = []
    for place in reversed(range(len(before))):
        if not before[place] >> free & 1:
            chosen.append(place)
            free += tokens[place]
    return chosen[::-1]


def best_capped_subset(tokens: Sequence[int], room: int, weights: Sequence[int], cap: int) -> list[int]:
    """As ``best_subset``, of the subsets that weigh at most ``cap``: one ``reach`` for each weight."""
    layers = {0: 1 << room}
    before = []
    for length, weight in zip(tokens, weights, strict=True):
        before.append(layers)
        grown = dict(layers)
        new = 0
        for lighter, reach in layers.items():
            if lighter + weight <= cap:
                more = reach >> length
                grown[lighter + weight] = grown.get(lighter + weight, 0) | more
                new |= more
        layers = grown
        if new & 1:
            break
    free, left = max((-_lowest_bit(reach), weight) for weight, reach in layers.items() if reach)
    free = -free
    chosen = []
    for place in reversed(range(len(before))):
        if not before[place].get(left, 0) >> free & 1:
            chosen.append(place)
            free += tokens[place]
            left -= weights[place]
    return chosen[::-1]


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _total(weights: Sequence[int], places: Sequence[int]) -> int:
    return sum(weights[place] for place in places)


def _shares(parts: Sequence[int], whole: int, steps: int) -> list[int]:
    """Each part in steps of ``whole / steps``, rounded up; above ``steps`` if larger than the whole."""
    return [steps + 1 if part > whole else -(-part * steps // max(whole, 1)) for part in parts]
