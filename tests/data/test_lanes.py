"""Streams: the same steps whatever reads them, and exact going on."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import png
from vlmkit.data.files import ParquetFile, RowGroup
from vlmkit.data.lanes import VALIDATION_SHARE, Piece, Selection, Stream, split_pieces
from vlmkit.data.loader import LanePositions, Shard, StreamLoader, useful_workers
from vlmkit.data.packing import KnapsackPacker
from vlmkit.data.plan import Limits
from vlmkit.data.sources import Source
from vlmkit.data.state import position_from_json, position_to_json
from vlmkit.errors import DataError
from vlmkit.processing.chat import ChatEncoder

LANES = 8
ROWS_OF_FILES = [70, 45, 30, 61, 12]  # 218 rows


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> ParquetFile:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=16)
    return ParquetFile(str(path))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Five parquet files whose answers are the numbers of their rows."""
    folder, number, files = tmp_path_factory.mktemp("stream"), 0, []
    picture = png(Image.new("RGB", (64, 64), (200, 10, 10)))
    for file, count in enumerate(ROWS_OF_FILES):
        rows = []
        for _ in range(count):
            question = "what shape is in the image? " * (1 + number % 3)
            image = [{"bytes": picture, "path": None}] * (number % 3)
            rows.append({"images": image, "texts": [{"user": question, "assistant": str(number)}]})
            number += 1
        files.append(write_parquet(folder / f"{file}.parquet", rows))
    return Source("numbers", files=files)


def stream_of(
    source: Source, encoder: ChatEncoder, seed: int = 0, val_size: int = 0, turns: int | None = None
) -> Stream:
    limits = Limits(tokens=192, images=4, pack_images=6, pack_tiles=None)
    selection = Selection(encoder, (1, 1, 1, 1), limits, turns, seed)
    return Stream([source], selection, KnapsackPacker(192, 6, None, 8), LANES, val_size)


def answers(encoder: ChatEncoder, labels: torch.Tensor) -> list[str]:
    """Answers of a pack, in order, from the labels that are learnt."""
    text = encoder.tokenizer.hf.decode(labels[labels >= 0].tolist())
    return [part.strip() for part in text.split("<|im_end|>") if part.strip()]


def steps(
    stream: Stream, encoder: ChatEncoder, position: LanePositions, count: int, world_size: int = 1, workers: int = 0
) -> list[tuple[list[list[str]], LanePositions]]:
    """Global steps, each as the answers of its packs lane after lane, with the position after it."""
    batch_size = LANES // 2 // world_size or 1
    shards = [Shard(rank, world_size, batch_size, LANES // world_size // batch_size) for rank in range(world_size)]
    loaders = [iter(StreamLoader(stream, encoder, shard, workers).steps_from(position)) for shard in shards]
    result = []
    for _ in range(count):
        packs, lanes = {}, {}
        for shard, loader in zip(shards, loaders, strict=True):
            step = next(loader)
            rows = [row for batch in step.micro_batches for row in batch.labels]
            packs |= dict(zip(shard.lanes, (answers(encoder, row) for row in rows), strict=True))
            lanes |= step.position.lanes
        result.append(([packs[lane] for lane in range(LANES)], LanePositions(lanes)))
    return result


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 1), (4, 2), (8, 1)])
def test_the_steps_do_not_depend_on_processes_and_workers(
    source: Source, encoder: ChatEncoder, world_size: int, workers: int
) -> None:
    stream = stream_of(source, encoder)
    expected = steps(stream, encoder, LanePositions(), 5)
    assert steps(stream, encoder, LanePositions(), 5, world_size, workers) == expected


def test_going_on_through_changing_processes_and_workers_is_going_on(source: Source, encoder: ChatEncoder) -> None:
    """Three stops, more than an epoch; the position goes through JSON each time."""
    stream = stream_of(source, encoder)
    whole = steps(stream, encoder, LanePositions(), 24)
    assert whole[-1][1].epoch >= 1
    position, done = LanePositions(), []
    for world_size, workers, count in ((4, 2, 5), (2, 1, 1), (1, 2, 9), (8, 0, 9)):
        done += steps(stream, encoder, position, count, world_size, workers)
        position = position_from_json(json.loads(json.dumps(position_to_json(done[-1][1]))))
    assert done == whole


@settings(max_examples=15)
@given(stop=st.integers(0, 30), seed=st.integers(0, 3), turns=st.none() | st.just(1))
def test_a_lane_goes_on_from_any_state(
    source: Source, encoder: ChatEncoder, stop: int, seed: int, turns: int | None
) -> None:
    stream = stream_of(source, encoder, seed, turns=turns)
    whole = list(islice(stream.packs(3, stream.start), 34))
    state = whole[stop - 1].state if stop else stream.start
    rest = list(islice(stream.packs(3, state), 34 - stop))
    assert [(pack.samples, pack.state, pack.lateness) for pack in rest] == [
        (pack.samples, pack.state, pack.lateness) for pack in whole[stop:]
    ]


def test_every_row_comes_once_an_epoch_in_another_order_each(source: Source, encoder: ChatEncoder) -> None:
    stream = stream_of(source, encoder)
    seen: list[Counter[str]] = [Counter(), Counter()]
    orders: list[list[str]] = [[], []]
    for lane in range(LANES):
        for pack in stream.packs(lane, stream.start):
            for loaded in pack.samples:
                epoch = loaded.key[0]
                if epoch < 2:
                    seen[epoch][loaded.sample.turns[0].assistant] += 1
                    orders[epoch].append(loaded.sample.turns[0].assistant)
            if pack.state.following[0].epoch > 2:
                break
    everything = Counter(str(number) for number in range(sum(ROWS_OF_FILES)))
    assert seen == [everything, everything]
    assert orders[0] != orders[1]


def test_what_is_held_out_is_never_trained_on(source: Source, encoder: ChatEncoder) -> None:
    stream = stream_of(source, encoder, val_size=5)
    selection = Selection(encoder, (1, 1, 1, 1), Limits(192, 4, 6, None), None, 0)
    held_out = {loaded.sample.name for loaded, _ in stream.held_out(selection, 1000)}
    assert len(held_out) >= 5
    trained: set[str] = set()
    for lane in range(LANES):
        for pack in stream.packs(lane, stream.start):
            trained |= {loaded.sample.name for loaded in pack.samples}
            if pack.state.following[0].epoch > 3:
                break
    assert not trained & held_out
    assert len(trained | held_out) == sum(ROWS_OF_FILES)
    assert len(list(stream.held_out(selection, 3))) == 3


@given(
    groups=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=30),
    num_lanes=st.integers(1, 60),
    val_size=st.integers(0, 200),
)
def test_pieces_cover_every_row_once_and_every_lane_has_one(
    groups: list[list[int]], num_lanes: int, val_size: int
) -> None:
    files = [FileOfSizes(sizes) for sizes in groups]
    train, held_out = split_pieces(files, num_lanes, val_size)
    assert len(train) >= num_lanes
    assert bool(held_out) == (val_size > 0)
    assert len(held_out) <= max((len(train) + len(held_out)) // VALIDATION_SHARE, 1)
    rows = Counter(row for piece in (*train, *held_out) for row in rows_of(piece, groups))
    assert rows == Counter(
        (file, group, row)
        for file, sizes in enumerate(groups)
        for group, size in enumerate(sizes)
        for row in range(size)
    )


@dataclass(frozen=True)
class FileOfSizes:
    """A file of which nothing but the sizes of its groups is asked."""

    group_sizes: Sequence[int]
    name: str = "sizes"

    def open(self) -> "FileOfSizes":
        return self

    def group(self, number: int) -> RowGroup:
        raise AssertionError("pieces are split without reading rows")


def rows_of(piece: Piece, groups: list[list[int]]) -> Iterator[tuple[int, int, int]]:
    for group, size in enumerate(groups[piece.file]):
        if piece.group in (None, group):
            yield from ((piece.file, group, row) for row in range(piece.remainder, size, piece.modulus))


@given(batch=st.integers(1, 16), micro_batches=st.integers(1, 16), workers=st.integers(0, 40))
def test_a_worker_has_whole_micro_batches_or_a_whole_part_of_one(batch: int, micro_batches: int, workers: int) -> None:
    useful = useful_workers(Shard(0, 1, batch, micro_batches), workers)
    assert (useful == 0) == (workers == 0)
    if workers:
        lanes = batch * micro_batches // useful
        assert useful <= workers
        assert lanes * useful == batch * micro_batches
        assert lanes % batch == 0 or batch % lanes == 0
    assert workers == 0 or useful >= min(workers, 1)


def test_a_state_of_a_full_pool_is_below_a_kilobyte(tmp_path: Path, encoder: ChatEncoder) -> None:
    rows = [
        {"images": [], "texts": [{"user": "q" * (number % 60), "assistant": str(number)}]} for number in range(9000)
    ]
    stream = Stream(
        [Source("many", files=[write_parquet(tmp_path / "many.parquet", rows)])],
        Selection(encoder, (1, 1, 1, 1), Limits(192, 4, 6, None), None, 0),
        KnapsackPacker(192, 6, None, 64),
        LANES,
        val_size=0,
    )
    for pack in islice(stream.packs(0, stream.start), 60):
        text = json.dumps(position_to_json(LanePositions({0: pack.state})), separators=(",", ":"))
        assert len(text) <= 1000
    assert len(pack.state.waiting) > 50


def test_a_file_that_cannot_be_read_is_reported_and_the_stream_goes_on(
    source: Source, encoder: ChatEncoder, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 this is not one PAR1")
    stream = stream_of(Source("numbers", files=[ParquetFile(str(broken)), *source.files]), encoder)
    bad = [error for lane in range(LANES) for pack in until_epoch(stream, lane, 1) for error in pack.report.bad]
    assert {(error.name, error.reason) for error in bad} == {("numbers/broken.parquet", "file cannot be read")}


def test_a_stream_of_nothing_ends_with_the_reason(tmp_path: Path, encoder: ChatEncoder) -> None:
    rows = [{"images": [], "texts": [{"user": "q", "assistant": "a"}], "relevance_ratings": [1]}] * 40
    selection = Selection(encoder, (3, 1, 1, 1), Limits(192, 4, 6, None), None, 0)
    files = [write_parquet(tmp_path / "low.parquet", rows)]
    stream = Stream([Source("low", files=files)], selection, KnapsackPacker(192, 6), LANES, val_size=0)
    with pytest.raises(DataError, match="low: nothing to train on: every sample is filtered"):
        next(stream.packs(0, stream.start))


def test_a_mixed_stream_draws_by_weight(source: Source, encoder: ChatEncoder, tmp_path: Path) -> None:
    rows = [{"images": [], "texts": [{"user": "q", "assistant": "a"}]}] * 64
    other = Source("other", files=[write_parquet(tmp_path / "other.parquet", rows)], weight=1.0)
    numbers = Source("numbers", files=source.files, weight=3.0)
    selection = Selection(encoder, (1, 1, 1, 1), Limits(192, 4, 6, None), None, 0)
    stream = Stream([numbers, other], selection, KnapsackPacker(192, 6), LANES, val_size=0)
    drawn: Counter[str] = Counter()
    for lane in range(LANES):
        for pack in islice(stream.packs(lane, stream.start), 30):
            drawn.update(pack.report.samples_of_sources)
    laps = LanePositions({0: pack.state}).epochs_of_sources
    assert laps == [place.epoch for place in pack.state.following]
    assert drawn["numbers"] / drawn.total() == pytest.approx(0.75, abs=0.04)  # about 1,300 draws: two sigma is 0.024


def until_epoch(stream: Stream, lane: int, epoch: int) -> Iterator[Any]:
    for pack in stream.packs(lane, stream.start):
        yield pack
        if pack.state.following[0].epoch > epoch:
            return
