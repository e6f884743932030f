from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.config import KnapsackConfig
from vlmkit.data.index import TOO_LONG, TOO_MANY_TILES, IndexedSample, SampleIndex
from vlmkit.data.loader import Shard
from vlmkit.data.plan import Plan, Position
from vlmkit.errors import DataError


def sample(number: int, turns: int = 4, length: int = 10, images: int = 1) -> IndexedSample:
    lengths = tuple(length + turn for turn in range(turns))
    return IndexedSample(number, tuple(range(turns)), lengths, lengths, 5 * images, images, images)


def plan(samples: list[IndexedSample], turns_per_visit: int | None = None, seed: int = 0) -> Plan:
    packing = KnapsackConfig(seq_length=200, max_images_per_knapsack=6, pool_size=8)
    return Plan(SampleIndex(samples), packing, seed, max_sample_length=150, turns_per_visit=turns_per_visit)


SAMPLES = [sample(number, turns=1 + number % 5) for number in range(40)]


@given(steps=st.integers(0, 60), turns=st.none() | st.integers(1, 3))
def test_going_on_from_a_position_is_going_on(steps: int, turns: int | None) -> None:
    whole = list(islice(plan(SAMPLES, turns).packs_from(Position()), 80))
    position = whole[steps - 1][1] if steps else Position()
    assert list(islice(plan(SAMPLES, turns).packs_from(position), 80 - steps)) == whole[steps:]


def test_every_sample_once_an_epoch_in_another_order_each() -> None:
    epochs = [[visit.sample for pack in plan(SAMPLES).epoch(epoch) for visit in pack.visits] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_drawn_turns_change_with_the_epoch_and_fit_their_pack() -> None:
    drawn = [
        {visit.sample: visit.turns for pack in plan(SAMPLES, 2).epoch(epoch) for visit in pack.visits}
        for epoch in range(2)
    ]
    assert drawn[0] != drawn[1]
    assert all(len(set(turns)) == len(turns) == min(2, 1 + number % 5) for number, turns in drawn[0].items())
    assert all(pack.tokens <= 200 for pack in plan(SAMPLES, 2).epoch(0))


def test_what_does_not_fit_is_left_out_and_counted() -> None:
    planned = plan([*SAMPLES, sample(40, length=60), sample(41, images=7)])
    assert len(planned) == 40
    assert planned.left_out == {TOO_LONG: 1, TOO_MANY_TILES: 1}


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="no sample is left to train on"):
        next(plan([]).packs_from(Position()))


@settings(max_examples=20)
@given(world_size=st.sampled_from([1, 2, 3, 4, 6]), micro_batches=st.sampled_from([1, 2]))
def test_processes_share_a_step_without_overlap(world_size: int, micro_batches: int) -> None:
    batch_size = 24 // world_size // micro_batches
    shards = [Shard(rank, world_size, batch_size, micro_batches) for rank in range(world_size)]
    assert {shard.packs_per_step for shard in shards} == {24}
    packs = [pack for pack, _ in islice(plan(SAMPLES).packs_from(Position()), 24)]
    shared = [pack for shard in shards for micro_batch in shard.micro_batches_of(packs) for pack in micro_batch]
    assert sorted(map(repr, shared)) == sorted(map(repr, packs))
