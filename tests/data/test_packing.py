from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.data.packing import KnapsackPacker, Size, best_capped_subset, best_subset

sizes = st.builds(Size, st.integers(1, 60), st.integers(0, 3), st.integers(0, 5))


@given(
    items=st.lists(sizes, max_size=60),
    pool_size=st.integers(1, 20),
    max_images=st.integers(3, 6),
    max_tiles=st.none() | st.integers(5, 12),
)
def test_every_sample_once_and_no_cap_broken(
    items: list[Size], pool_size: int, max_images: int, max_tiles: int | None
) -> None:
    packer = KnapsackPacker(max_tokens=64, max_images=max_images, max_tiles=max_tiles, pool_size=pool_size)
    packs = list(packer.pack(items))
    assert sorted(number for pack in packs for number in pack) == list(range(len(items)))
    for pack in packs:
        assert sum(items[number].tokens for number in pack) <= 64
        assert sum(items[number].images for number in pack) <= max_images
        assert max_tiles is None or sum(items[number].tiles for number in pack) <= max_tiles
    assert packs == list(packer.pack(items))


@given(items=st.lists(sizes, min_size=1, max_size=60), pool_size=st.integers(1, 20))
def test_the_oldest_waiting_sample_opens_each_pack(items: list[Size], pool_size: int) -> None:
    waiting = set(range(len(items)))
    for pack in KnapsackPacker(max_tokens=64, max_images=4, pool_size=pool_size).pack(items):
        assert pack[0] == min(waiting)
        assert all(number in sorted(waiting)[:pool_size] for number in pack)
        waiting -= set(pack)


@given(items=st.lists(sizes, max_size=8), max_tokens=st.integers(0, 100))
def test_the_chosen_subset_is_the_fullest(items: list[Size], max_tokens: int) -> None:
    chosen = best_subset(items, max_tokens)
    assert sum(items[place].tokens for place in chosen) == fullest(items, max_tokens, None, None)


@given(
    items=st.lists(sizes, max_size=8),
    max_tokens=st.integers(0, 100),
    max_images=st.integers(0, 6),
    max_tiles=st.none() | st.integers(0, 10),
)
def test_the_chosen_subset_under_caps_is_the_fullest(
    items: list[Size], max_tokens: int, max_images: int, max_tiles: int | None
) -> None:
    chosen = best_capped_subset(items, max_tokens, max_images, max_tiles)
    assert sum(items[place].images for place in chosen) <= max_images
    assert max_tiles is None or sum(items[place].tiles for place in chosen) <= max_tiles
    assert sum(items[place].tokens for place in chosen) == fullest(items, max_tokens, max_images, max_tiles)


def test_of_equally_full_packs_the_one_with_the_oldest_samples_is_taken() -> None:
    assert best_subset([Size(3, 1, 1), Size(2, 1, 1), Size(5, 1, 1)], 5) == [0, 1]


def test_packs_stream_before_the_items_end() -> None:
    def endless() -> object:
        while True:
            yield (10, 1, 1)

    packs = KnapsackPacker(max_tokens=40, pool_size=8).pack(endless())  # type: ignore[arg-type]
    assert next(packs) == [0, 1, 2, 3]
    assert next(packs) == [4, 5, 6, 7]


@pytest.mark.parametrize("item", [(65, 1, 1), (0, 1, 1), (10, 19, 1), (10, 1, 9)])
def test_an_item_larger_than_a_pack_is_named(item: tuple[int, int, int]) -> None:
    packer = KnapsackPacker(max_tokens=64, max_images=18, max_tiles=8)
    with pytest.raises(ValueError, match="item 1 has Size"):
        list(packer.pack([(1, 1, 1), item]))


def fullest(items: list[Size], max_tokens: int, max_images: int | None, max_tiles: int | None) -> int:
    """Brute force."""
    best = 0
    for length in range(len(items) + 1):
        for subset in combinations(items, length):
            tokens, images, tiles = (sum(size[axis] for size in subset) for axis in range(3))
            fits = (max_images is None or images <= max_images) and (max_tiles is None or tiles <= max_tiles)
            if tokens <= max_tokens and fits:
                best = max(best, tokens)
    return best
