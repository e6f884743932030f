from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.data.best_fit import BestFitPacker
from vlmkit.data.greedy import GreedyPacker
from vlmkit.data.packing import KnapsackPacker, Packer, Size, best_capped_subset, best_subset

PACKERS = {
    "knapsack": KnapsackPacker,
    "knapsack of 3": partial(KnapsackPacker, pool_size=3),
    "bfd": BestFitPacker,
    "greedy": GreedyPacker,
    "greedy of 1": partial(GreedyPacker, buffer_packs=1),
}
every_packer = pytest.mark.parametrize("build", PACKERS.values(), ids=PACKERS)

sizes = st.builds(Size, st.integers(1, 64), st.integers(0, 3), st.integers(0, 5))


@every_packer
@given(
    items=st.lists(sizes, max_size=60),
    max_images=st.integers(3, 6),
    max_tiles=st.none() | st.integers(5, 12),
)
def test_every_sample_once_and_no_cap_broken(
    build: Callable[..., Packer], items: list[Size], max_images: int, max_tiles: int | None
) -> None:
    packer = build(max_tokens=64, max_images=max_images, max_tiles=max_tiles)
    packs = list(packer.pack(items))
    assert sorted(number for pack in packs for number in pack) == list(range(len(items)))
    for pack in packs:
        assert sum(items[number].tokens for number in pack) <= 64
        assert sum(items[number].images for number in pack) <= max_images
        assert max_tiles is None or sum(items[number].tiles for number in pack) <= max_tiles
    assert packs == list(packer.pack(iter(items)))


@every_packer
@pytest.mark.parametrize("item", [(65, 1, 1), (0, 1, 1), (10, 19, 1), (10, 1, 9), (10, -1, 1), (10, 1, -1)])
def test_an_item_larger_than_a_pack_is_named(build: Callable[..., Packer], item: tuple[int, int, int]) -> None:
    packer = build(max_tokens=64, max_images=18, max_tiles=8)
    with pytest.raises(ValueError, match="item 1 has Size"):
        list(packer.pack([(1, 1, 1), item]))


@every_packer
@pytest.mark.parametrize("caps", [{"max_tokens": 0}, {"max_images": -1}, {"max_tiles": -1}])
def test_caps_without_sense_are_refused(build: Callable[..., Packer], caps: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="too small"):
        build(**caps)


@given(items=st.lists(sizes, max_size=200), pool_size=st.integers(1, 8), max_tiles=st.none() | st.just(5))
def test_no_item_of_a_pool_is_later_than_twice_its_size(
    items: list[Size], pool_size: int, max_tiles: int | None
) -> None:
    packer = KnapsackPacker(max_tokens=64, max_images=3, max_tiles=max_tiles, pool_size=pool_size)
    for place, number in enumerate(chain.from_iterable(packer.pack(items))):
        assert place - number <= 2 * pool_size - 1


def test_small_samples_do_not_overtake_large_ones_without_end() -> None:
    """Each large one is followed by all the small ones there are; without the limit the last waits for 21."""
    items = [(40, 0, 0)] * 8 + [(1, 0, 0)] * 200
    order = list(chain.from_iterable(KnapsackPacker(max_tokens=64, pool_size=8).pack(items)))
    assert max(place - number for place, number in enumerate(order)) <= 15


@given(items=st.lists(sizes, min_size=1, max_size=60), pool_size=st.integers(1, 20))
def test_the_oldest_waiting_sample_opens_each_pack(items: list[Size], pool_size: int) -> None:
    waiting = set(range(len(items)))
    for pack in KnapsackPacker(max_tokens=64, max_images=4, pool_size=pool_size).pack(items):
        assert pack[0] == min(waiting)
        assert all(number in sorted(waiting)[:pool_size] for number in pack)
        waiting -= set(pack)


@given(items=st.lists(sizes, max_size=8), room=st.integers(0, 100))
def test_the_chosen_subset_is_the_fullest(items: list[Size], room: int) -> None:
    tokens = [size.tokens for size in items]
    chosen = best_subset(tokens, room)
    assert sum(tokens[place] for place in chosen) == fullest(items, room, None)


@given(items=st.lists(sizes, max_size=8), room=st.integers(0, 100), cap=st.integers(0, 6))
def test_the_chosen_subset_under_a_cap_is_the_fullest(items: list[Size], room: int, cap: int) -> None:
    tokens, images = [size.tokens for size in items], [size.images for size in items]
    chosen = best_capped_subset(tokens, room, images, cap)
    assert sum(images[place] for place in chosen) <= cap
    assert sum(tokens[place] for place in chosen) == fullest(items, room, cap)


def test_of_equally_full_packs_the_one_with_the_oldest_samples_is_taken() -> None:
    assert best_subset([3, 2, 5], 5) == [0, 1]
    assert best_capped_subset([3, 2, 5], 5, [1, 1, 1], 2) == [0, 1]
    assert best_capped_subset([3, 2, 5], 5, [1, 1, 1], 1) == [2]


def test_a_pack_can_be_filled_where_each_cap_alone_would_break_the_other() -> None:
    """Full with fewest samples: 1 and 2 (too many images); under the cap on images alone 1 and 3 (too many tiles)."""
    items = [(4, 0, 2), (30, 2, 0), (30, 2, 0), (30, 0, 8), (30, 1, 2)]
    packs = list(KnapsackPacker(max_tokens=64, max_images=3, max_tiles=8).pack(items))
    assert packs[0] == [0, 1, 4]


def endless(tokens_read: list[int]) -> Iterator[tuple[int, int, int]]:
    while True:
        tokens_read.append(10)
        yield (10, 1, 1)


def test_packs_stream_before_the_items_end() -> None:
    packs = KnapsackPacker(max_tokens=40, pool_size=8).pack(endless([]))
    assert next(packs) == [0, 1, 2, 3]
    assert next(packs) == [4, 5, 6, 7]


def test_a_greedy_buffer_holds_so_many_packs_of_tokens() -> None:
    tokens_read: list[int] = []
    next(GreedyPacker(max_tokens=40, buffer_packs=3).pack(endless(tokens_read)))
    assert len(tokens_read) == 11  # with one padding token each, 11 samples are the first to make up 120


def test_greedy_opens_five_packs_too_many() -> None:
    packs = list(GreedyPacker(max_tokens=40, buffer_packs=3).pack([(9, 1, 1)] * 12))
    assert sorted(map(len, packs)) == [1, 1, 1, 1, 2, 2, 2, 2]


@given(items=st.lists(sizes, max_size=60), max_images=st.integers(3, 6), max_tiles=st.none() | st.integers(5, 12))
def test_best_fit_decreasing_is_that(items: list[Size], max_images: int, max_tiles: int | None) -> None:
    packs = list(BestFitPacker(64, max_images, max_tiles).pack(items))
    assert packs == slow_best_fit(items, 64, max_images, max_tiles)


def slow_best_fit(items: list[Size], max_tokens: int, max_images: int, max_tiles: int | None) -> list[list[int]]:
    """The rule in words: the largest first, into the pack with the fewest free tokens, images, the last used first."""
    caps = (max_tokens, max_images, max_tiles)
    packs: list[list[int]] = []
    last_used: list[int] = []

    def free(pack: list[int], axis: int) -> float:
        cap = caps[axis]
        return float("inf") if cap is None else cap - sum(items[number][axis] for number in pack)

    def share(number: int) -> float:
        return sum(items[number][axis] / cap for axis, cap in enumerate(caps) if cap)

    for turn, number in enumerate(sorted(range(len(items)), key=share, reverse=True)):
        fitting = [
            (free(pack, 0), free(pack, 1), -last_used[place], place)
            for place, pack in enumerate(packs)
            if all(free(pack, axis) >= items[number][axis] for axis in range(3))
        ]
        place = min(fitting)[-1] if fitting else len(packs)
        if not fitting:
            packs.append([])
            last_used.append(turn)
        packs[place].append(number)
        last_used[place] = turn
    return [sorted(pack) for pack in packs]


def fullest(items: list[Size], max_tokens: int, max_images: int | None) -> int:
    """Brute force."""
    best = 0
    for length in range(len(items) + 1):
        for subset in combinations(items, length):
            tokens, images = sum(size.tokens for size in subset), sum(size.images for size in subset)
            if tokens <= max_tokens and (max_images is None or images <= max_images):
                best = max(best, tokens)
    return best
