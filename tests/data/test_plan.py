from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.config import BestFitConfig, KnapsackConfig, PackingConfig
from vlmkit.data.index import NO_RATING, SampleIndex
from vlmkit.data.loader import Shard
from vlmkit.data.plan import TOO_LONG, TOO_MANY_IMAGES, TOO_MANY_TILES, Candidates, Limits, Pack, Plan, Position
from vlmkit.errors import DataError
from vlmkit.processing.chat import ChatEncoder

KNAPSACK = KnapsackConfig(seq_length=200, max_images_per_knapsack=6, pool_size=8)


def index_of(samples: list[tuple[int, int, int]]) -> SampleIndex:
    """An index of samples of (turns, tokens of the first turn, pictures of one tile); each turn has a token more."""
    turns, lengths, images = (np.array(column, np.int64) for column in zip(*samples, strict=True))
    of_turn = np.concatenate([length + np.arange(count) for count, length in zip(turns, lengths, strict=True)])
    return SampleIndex(
        rows=np.arange(len(samples)),
        turn_ends=np.cumsum(turns),
        picture_ends=np.cumsum(images),
        later_lengths=of_turn,
        first_lengths=of_turn,
        ratings=np.full((len(of_turn), 4), NO_RATING, np.int8),
        picture_sizes=np.full((images.sum(), 2), 64, np.int32),
        bad_rows=np.empty(0, np.int64),
        bad=(),
    )


def candidates(encoder: ChatEncoder, samples: list[tuple[int, int, int]], turns: int | None = None) -> Candidates:
    index = index_of(samples)
    limits = Limits(tokens=400, images=7, pack_images=6, pack_tiles=None)
    return Candidates(index, np.ones(len(samples), bool), encoder, (1, 1, 1, 1), limits, turns)


def plan(
    encoder: ChatEncoder,
    samples: list[tuple[int, int, int]],
    turns: int | None = None,
    packing: PackingConfig = KNAPSACK,
) -> Plan:
    return Plan([candidates(encoder, samples, turns)], packing, seed=0)


def rows(pack: Pack) -> list[int]:
    return [visit.row for visit in pack.visits]


SAMPLES = [(1 + number % 5, 10, 1) for number in range(40)]


@given(steps=st.integers(0, 60), turns=st.none() | st.integers(1, 3))
def test_going_on_from_a_position_is_going_on(encoder: ChatEncoder, steps: int, turns: int | None) -> None:
    whole = [(pack.visits, after) for pack, after in islice(plan(encoder, SAMPLES, turns).packs_from(Position()), 80)]
    position = whole[steps - 1][1] if steps else Position()
    rest = islice(plan(encoder, SAMPLES, turns).packs_from(position), 80 - steps)
    assert [(pack.visits, after) for pack, after in rest] == whole[steps:]


def test_every_sample_once_an_epoch_in_another_order_each(encoder: ChatEncoder) -> None:
    planned = plan(encoder, SAMPLES)
    epochs = [[row for pack in planned.packs(epoch) for row in rows(pack)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_drawn_turns_change_with_the_epoch_and_fit_their_pack(encoder: ChatEncoder) -> None:
    planned = plan(encoder, SAMPLES, turns=2)
    drawn = [{visit.row: visit.turns for pack in planned.packs(epoch) for visit in pack.visits} for epoch in range(2)]
    assert drawn[0] != drawn[1]
    assert all(len(set(turns)) == len(turns) == min(2, 1 + row % 5) for row, turns in drawn[0].items())
    assert all(pack.size.tokens <= 200 for pack in planned.packs(0))


def test_an_offline_packer_s_packs_are_shuffled(encoder: ChatEncoder) -> None:
    samples = [(1, 1 + number, 1) for number in range(90)]
    planned = plan(encoder, samples, packing=BestFitConfig(seq_length=200, max_images_per_knapsack=6))
    epochs = [[rows(pack) for pack in planned.packs(epoch)] for epoch in range(2)]
    for packs in epochs:
        largest = [max(pack) for pack in packs]
        assert largest != sorted(largest, reverse=True)
        assert sorted(row for pack in packs for row in pack) == list(range(90))
    assert epochs[0] != epochs[1]


def test_what_does_not_fit_is_left_out_and_counted(encoder: ChatEncoder) -> None:
    planned = plan(encoder, [*SAMPLES, (4, 150, 1), (1, 10, 7), (1, 10, 8)])
    assert len(planned) == 40
    assert planned.left_out == {TOO_LONG: 1, TOO_MANY_TILES: 1, TOO_MANY_IMAGES: 1}


def test_nothing_to_train_on_is_an_error(encoder: ChatEncoder) -> None:
    with pytest.raises(DataError, match="no sample is left to train on"):
        next(plan(encoder, [(4, 150, 1)]).packs_from(Position()))


def test_a_mixture_gives_each_source_its_share_and_goes_on_where_its_epoch_ended(encoder: ChatEncoder) -> None:
    """Weights 3 to 1 over 40 and 60 samples: 75 and 25 an epoch, so the small one is seen nearly twice."""
    parts = [candidates(encoder, SAMPLES), candidates(encoder, [(1, 20, 0)] * 60)]
    mixed = Plan(parts, KNAPSACK, seed=0, weights=[3.0, 1.0])
    assert len(mixed) == 100
    assert mixed.epochs_of_sources == [75 / 40, 25 / 60]
    seen = [[], []]
    for epoch in range(12):
        for pack in mixed.packs(epoch):
            for visit in pack.visits:
                seen[visit.source].append(visit.row)
    assert (len(seen[0]), len(seen[1])) == (900, 300)
    counts = np.bincount(seen[0], minlength=40), np.bincount(seen[1], minlength=60)
    assert (counts[0].min(), counts[0].max()) == (22, 23)  # 900 visits of 40 samples: 22.5 each
    assert (counts[1] == 5).all()


@settings(max_examples=20)
@given(world_size=st.sampled_from([1, 2, 3, 4, 6]), micro_batches=st.sampled_from([1, 2]))
def test_processes_share_a_step_without_overlap(encoder: ChatEncoder, world_size: int, micro_batches: int) -> None:
    batch_size = 24 // world_size // micro_batches
    shards = [Shard(rank, world_size, batch_size, micro_batches) for rank in range(world_size)]
    assert {shard.packs_per_step for shard in shards} == {24}
    packs = [pack for pack, _ in islice(plan(encoder, SAMPLES).packs_from(Position()), 24)]
    shared = [pack for shard in shards for micro_batch in shard.micro_batches_of(packs) for pack in micro_batch]
    assert sorted(pack.places for pack in shared) == sorted(pack.places for pack in packs)
    for number in range(micro_batches):
        tiles = [sum(pack.size.tiles for pack in shard.micro_batches_of(packs)[number]) for shard in shards]
        assert max(tiles) - min(tiles) <= max(pack.size.tiles for pack in packs)
