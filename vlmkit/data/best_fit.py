"""Best fit decreasing: for a dataset whose sizes are all known, a million samples in a second.

Every sample, the largest first, goes into that open pack which it leaves the fewest free tokens in. The open packs
are grouped by (free tokens, free images); the groups are, in that order, the leaves of a segment tree whose nodes
know the most images and the most tiles that a pack below them has free. So the best pack for a sample is in the first
leaf, from (its tokens, its images) on, that has enough of both.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import ParamSpec, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from vlmkit.data.packing import Item, Packer

P = ParamSpec("P")
R = TypeVar("R")

Ints = NDArray[np.int32]
NONE = -1


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled at its first call; the machine code is kept in ``__pycache__`` or the user's cache."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # neither folder can be written to: each process compiles for itself
        return numba.njit(function)


class BestFitPacker(Packer):
    """Packs all items at once, the largest first: so shuffle the packs before you train on them."""

    offline = True

    def pack(self, items: Iterable[Item]) -> Iterator[list[int]]:
        """See Packer. All items are read, and all packs made, before the first one is yielded."""
        sizes = np.fromiter(chain.from_iterable(items), np.int64).reshape(-1, 3)
        self._check(sizes)
        if self.max_tiles is None:
            sizes[:, 2] = 0
        caps = (self.max_tokens, self.max_images, self.max_tiles or 0)
        share = (sizes / np.maximum(caps, 1)).sum(axis=1)
        pack_of = _best_fit(sizes.astype(np.int32), np.argsort(-share, kind="stable"), *caps)
        numbers = np.argsort(pack_of, kind="stable")
        ends = np.cumsum(np.bincount(pack_of)).tolist()
        for start, end in zip([0, *ends], ends, strict=False):
            yield numbers[start:end].tolist()

    def _check(self, sizes: NDArray[np.int64]) -> None:
        most = (self.max_tokens, self.max_images, np.inf if self.max_tiles is None else self.max_tiles)
        for number in np.flatnonzero(((sizes < (1, 0, 0)) | (sizes > most)).any(axis=1))[:1].tolist():
            self.check(number, tuple(sizes[number].tolist()))


@compiled
def _first_leaf(most: Ints, start: int, images: int, tiles: int) -> int:
    """The first node from the leaf ``start`` on, of all leaves, with that much free; 0: there is none."""
    leaves = len(most) // 2
    node = start
    while node:
        if most[node, 0] >= images and most[node, 1] >= tiles:
            if node >= leaves:
                break
            node *= 2
        else:  # on to the subtree to the right; above a last child there is none but its parent's
            while node & 1:
                node >>= 1
            node += node > 0
    return node


@compiled
def _set_most(most: Ints, node: int, images: int, tiles: int) -> None:
    """Set what is free in a leaf, and so in the nodes above it."""
    while node and (most[node, 0] != images or most[node, 1] != tiles):
        most[node, 0], most[node, 1] = images, tiles
        node >>= 1
        images = max(most[2 * node, 0], most[2 * node + 1, 0])
        tiles = max(most[2 * node, 1], most[2 * node + 1, 1])


@compiled
def _take(newest: Ints, older: Ints, free_tiles: Ints, group: int, tiles: int) -> int:
    """Take the newest pack with that many free tiles out of its group."""
    pack, newer = newest[group], NONE
    while free_tiles[pack] < tiles:
        pack, newer = older[pack], pack
    if newer == NONE:
        newest[group] = older[pack]
    else:
        older[newer] = older[pack]
    return pack


@compiled
def _most_tiles(newest: Ints, older: Ints, free_tiles: Ints, group: int, limit: int) -> int:
    """Free tiles of the pack of a group with the most, known to be ``limit`` at most."""
    tiles, pack = NONE, newest[group]
    while pack != NONE and tiles < limit:
        tiles, pack = max(tiles, free_tiles[pack]), older[pack]
    return tiles


@compiled
def _best_fit(sizes: Ints, order: NDArray[np.int64], max_tokens: int, max_images: int, max_tiles: int) -> Ints:
    """The pack of each item, when they come in this order: int32 [items, 3] → int32 [items]."""
    width = max_images + 1  # groups with the same number of free tokens
    leaves = 1
    while leaves < (max_tokens + 1) * width:
        leaves *= 2
    most = np.full((2 * leaves, 2), NONE, np.int32)  # free images and tiles below each node; the root is node 1
    newest = np.full(leaves, NONE, np.int32)  # pack of each group
    older = np.empty(len(order), np.int32)  # the next pack in the group of each pack
    free_tiles = np.empty(len(order), np.int32)  # of each pack
    pack_of = np.empty(len(order), np.int32)
    packs = 0
    for item in order:
        tokens, images, tiles = sizes[item]
        node = _first_leaf(most, leaves + tokens * width + images, images, tiles)
        if node:
            group = node - leaves
            pack = _take(newest, older, free_tiles, group, tiles)
            left = _most_tiles(newest, older, free_tiles, group, most[node, 1])
            _set_most(most, node, NONE if left == NONE else group % width, left)
        else:
            group = max_tokens * width + max_images
            pack = packs
            packs += 1
            free_tiles[pack] = max_tiles
        pack_of[item] = pack
        group -= tokens * width + images
        free_tiles[pack] -= tiles
        older[pack] = newest[group]
        newest[group] = pack
        node = leaves + group
        _set_most(most, node, group % width, max(most[node, 1], free_tiles[pack]))
    return pack_of
