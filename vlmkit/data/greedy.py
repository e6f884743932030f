"""The packer of the reference system (nanoVLM), kept as the baseline of the benchmarks.

Its rule of least load leaves tokens free in every pack, and opens five packs more than a buffer needs. With its own
buffer of 8 packs (four times a batch of 2) that is two packs in five; with 64 (a batch of 16) one in twelve.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vlmkit.data.order import keyed_permutation
from vlmkit.data.packing import Item, Packer, Size

SPARE_PACKS = 5


@dataclass(slots=True)
class _Bin:
    """A pack that is being filled."""

    tokens: int = 0
    images: int = 0
    tiles: int = 0
    numbers: list[int] = field(default_factory=list)

    def add(self, number: int, size: Size) -> None:
        self.tokens += size.tokens
        self.images += size.images
        self.tiles += size.tiles
        self.numbers.append(number)


class GreedyPacker(Packer):
    """Spreads each buffer of samples, the longest first, over packs: each goes into the least loaded that fits.

    Every sample counts one token more than it has: the reference puts an ignored padding token after each. A sample
    as long as a pack, which the reference leaves out, does without.
    """

    def __init__(
        self, max_tokens: int = 4096, max_images: int = 18, max_tiles: int | None = None, buffer_packs: int = 8
    ) -> None:
        super().__init__(max_tokens, max_images, max_tiles)
        if buffer_packs < 1:
            raise ValueError(f"buffer_packs={buffer_packs}: too small")
        self.buffer_packs = buffer_packs

    def pack(self, items: Iterable[Item]) -> Iterator[list[int]]:
        """See Packer."""
        buffer: list[tuple[int, Size]] = []
        tokens = 0
        for number, (length, images, tiles) in self.numbered(items):
            padded = min(length + 1, self.max_tokens)
            buffer.append((number, Size(padded, images, tiles)))
            tokens += padded
            if tokens >= self.buffer_packs * self.max_tokens:
                yield from self._spread(buffer, tokens)
                buffer, tokens = [], 0
        if buffer:
            yield from self._spread(buffer, tokens)

    def _spread(self, buffer: Sequence[tuple[int, Size]], tokens: int) -> Iterator[list[int]]:
        bins = [_Bin() for _ in range(-(-tokens // self.max_tokens) + SPARE_PACKS)]
        for number, size in sorted(buffer, key=lambda entry: -entry[1].tokens):
            chosen = min((one for one in bins if self._fits(one, size)), key=lambda one: one.tokens, default=None)
            if chosen is None:
                chosen = _Bin()
                bins.append(chosen)
            chosen.add(number, size)
        packs = [one.numbers for one in bins if one.numbers]
        for place in keyed_permutation(len(packs), buffer[0][0]):
            yield packs[place]

    def _fits(self, one: _Bin, size: Size) -> bool:
        tiles_fit = self.max_tiles is None or one.tiles + size.tiles <= self.max_tiles
        tokens_fit = one.tokens + size.tokens <= self.max_tokens
        return tokens_fit and one.images + size.images <= self.max_images and tiles_fit
