"""Every figure equals what comes of counting sample after sample."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reporting.conftest import Look
from tests.reporting.rated_data import MANY_PICTURES, NO_PICTURE, NO_TEXTS, TOO_LONG, picture_size, rated_rows
from vlmkit.config import RATING_AXES
from vlmkit.processing.chat import ChatEncoder
from vlmkit.reporting.statistics import RATINGS, Statistics, compute_statistics, distribution
from vlmkit.reporting.text import format_statistics
from vlmkit.types import Turn

MINIMA = (3, 3, 2, 3)  # filter=recommended


@pytest.fixture(scope="module")
def found(look: Look) -> tuple[Statistics, ChatEncoder, str]:
    config, encoder, survey = look()
    statistics = compute_statistics(survey, config, encoder.layout)
    return statistics, encoder, format_statistics(statistics, config)


def readable() -> dict[int, dict[str, Any]]:
    return {number: row for number, row in enumerate(rated_rows()) if number not in (NO_PICTURE, NO_TEXTS)}


def ratings_of(row: dict[str, Any]) -> list[tuple[int | None, ...]]:
    """Of each turn, on the four axes."""
    columns = [row[f"{axis}_ratings"] or [None] * len(row["texts"]) for axis in RATING_AXES]
    return list(zip(*columns, strict=True))


def passing(rated: tuple[int | None, ...], minima: tuple[int, ...]) -> bool:
    return all(rating is None or rating >= minimum for rating, minimum in zip(rated, minima, strict=True))


def kept(row: dict[str, Any]) -> list[Turn]:
    texts = zip(row["texts"], ratings_of(row), strict=True)
    return [Turn(text["user"], text["assistant"]) for text, rated in texts if passing(rated, MINIMA)]


def test_rows_samples_turns_and_pictures_are_counted(found: tuple[Statistics, ChatEncoder, str]) -> None:
    statistics, _, text = found
    rows = readable().values()
    turns = sum(len(row["texts"]) for row in rows)
    pictures = sum(len(row["images"] or []) for row in rows)
    assert (statistics.rows, statistics.samples, statistics.turns) == (40, len(rows), turns)
    assert statistics.pictures == pictures
    assert f"local         40 rows: 38 samples, {turns} turns, {pictures} pictures" in text


def test_bad_samples_have_their_reason_and_an_example(found: tuple[Statistics, ChatEncoder, str]) -> None:
    bad = {one.reason: (one.count, one.example) for one in found[0].bad}
    assert bad["no texts"] == (1, f"local/{NO_TEXTS}")
    assert bad["cannot read the picture"][0] == 1
    assert bad["cannot read the picture"][1].startswith(f"local/{NO_PICTURE}: not recognised")
    assert f"bad           1 no texts, as local/{NO_TEXTS}" in found[2]


def test_ratings_and_thresholds(found: tuple[Statistics, ChatEncoder, str]) -> None:
    samples = [ratings_of(row) for row in readable().values()]
    turns = [rated for sample in samples for rated in sample]
    for place, axis in enumerate(found[0].axes):
        counted = Counter(rated[place] for rated in turns)
        assert axis.counts == tuple(counted[rating] for rating in RATINGS)
        assert (axis.axis, axis.minimum, axis.unrated, axis.outside) == (
            RATING_AXES[place], MINIMA[place], counted[None], 0,
        )  # fmt: skip
        for minimum in RATINGS:
            ok = [[rated[place] is None or rated[place] >= minimum for rated in sample] for sample in samples]
            shares = axis.kept_turns[minimum - 1], axis.kept_samples[minimum - 1]
            assert shares[0] == pytest.approx(sum(map(sum, ok)) / len(turns))
            assert shares[1] == pytest.approx(sum(map(any, ok)) / len(samples))


def test_the_filter_and_the_limits(found: tuple[Statistics, ChatEncoder, str]) -> None:
    statistics, _, text = found
    rows = readable()
    turns = sum(len(kept(row)) for row in rows.values())
    samples = sum(bool(kept(row)) for row in rows.values())
    assert (statistics.filter.kept_turns, statistics.filter.kept_samples) == (turns, samples)
    assert kept(rows[TOO_LONG])
    assert kept(rows[MANY_PICTURES])
    assert dict(statistics.left_out) == {
        "every turn is rated below the filter": len(rows) - samples,
        "longer than dataset.max_sample_length": 1,
        "more pictures than dataset.max_images_per_example": 1,
    }
    assert statistics.trained == samples - 2
    assert f"keeps {turns} of {statistics.turns} turns" in text


def test_lengths_and_tiles_are_those_of_encoding_every_sample(found: tuple[Statistics, ChatEncoder, str]) -> None:
    statistics, encoder, _ = found
    lengths, tiles = {}, {}
    for number, row in readable().items():
        grids = [encoder.layout.grid(*picture_size(image)) for image in row["images"] or []]
        tiles[number] = [grid.num_tiles for grid in grids]
        if turns := kept(row):
            lengths[number] = len(encoder.encode_sample(turns, grids).input_ids)
    assert statistics.lengths == distribution(np.array(list(lengths.values())))
    assert statistics.tiles_of_samples == distribution(np.array([sum(own) for own in tiles.values()]))
    assert statistics.tiles_of_pictures == distribution(np.array([n for own in tiles.values() for n in own]))
    assert statistics.pictures_of_samples == distribution(np.array([len(own) for own in tiles.values()]))
    trained = [number for number in lengths if number not in (TOO_LONG, MANY_PICTURES)]
    tokens = sum(lengths[number] for number in trained)
    assert (statistics.tokens_in_an_epoch, statistics.samples_in_an_epoch) == (tokens, len(trained))
    of_pictures = sum(sum(tiles[number]) for number in trained) * encoder.layout.tokens_per_tile
    assert statistics.picture_token_share == pytest.approx(of_pictures / tokens)


def test_picture_sizes(found: tuple[Statistics, ChatEncoder, str]) -> None:
    sizes = Counter(picture_size(image) for row in readable().values() for image in row["images"] or [])
    assert dict(found[0].picture_sizes) == sizes
    assert found[0].long_sides.maximum == 700


@pytest.mark.parametrize("packing", ["knapsack", "bfd", "greedy", "none"])
def test_packs_hold_every_sample_once(look: Look, packing: str) -> None:
    config, encoder, survey = look(f"packing={packing}")
    statistics = compute_statistics(survey, config, encoder.layout)
    packs = statistics.packs
    assert packs is not None
    assert packs.counted == packs.in_an_epoch
    assert packs.samples.mean * packs.counted == pytest.approx(statistics.trained)
    assert packs.utilisation * packs.counted * packs.seq_length == pytest.approx(statistics.tokens_in_an_epoch)
    for pack in packs.shown:
        assert sum(one.size.tokens for one in pack.segments) == pack.size.tokens
        assert sum(one.size.tiles for one in pack.segments) == pack.size.tiles
    names = [one.name for pack in packs.shown for one in pack.segments]
    assert len(names) == len(set(names))


def test_rows_held_out_of_training_are_left_aside(look: Look) -> None:
    config, encoder, survey = look("dataset.val_size=10", "filter=default")
    assert compute_statistics(survey, config, encoder.layout).rows == 30


def test_nothing_left_to_train_on_is_said(look: Look) -> None:
    config, encoder, survey = look("dataset.max_sample_length=1")
    statistics = compute_statistics(survey, config, encoder.layout)
    assert statistics.packs is None
    assert "packs         none: no sample is left to train on" in format_statistics(statistics, config)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60))
def test_a_distribution_counts_every_value_in_its_bin(values: list[int]) -> None:
    made = distribution(np.array(values))
    assert (made.minimum, made.maximum, made.count) == (min(values), max(values), len(values))
    assert (made.median, made.p95) == (np.median(values), np.percentile(values, 95))
    ends = [one.stop for one in made.bins]
    assert [one.start for one in made.bins[1:]] == ends[:-1]
    assert made.bins[0].start <= min(values)
    for one in made.bins:
        assert one.count == sum(one.start <= value and (one.stop is None or value < one.stop) for value in values)
    assert sum(one.count for one in made.bins) == len(values)


def test_no_values_make_an_empty_distribution() -> None:
    assert distribution(np.array([], np.int64)).bins == ()
