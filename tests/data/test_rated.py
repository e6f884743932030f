"""easy-VQA with known faults: shares hold, ratings tell of the faults, and nothing that trains reads the truth."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import composed
from vlmkit.config import RATING_AXES, EasyVQARatedConfig, MixtureConfig
from vlmkit.data.pipeline import build_training_data
from vlmkit.data.rated import TRUTH, describe_filter, rated_rows
from vlmkit.data.rows import RATING_COLUMNS, Row, sample_from_row
from vlmkit.data.sources import build_sources, read_easyvqa, read_easyvqa_test
from vlmkit.errors import ConfigError
from vlmkit.processing.chat import ChatEncoder

DEFAULT = EasyVQARatedConfig()
FLAWLESS = EasyVQARatedConfig(wrong_answers=0, swapped_pictures=0, no_picture_needed=0, garbled_answers=0)
CLEAN = read_easyvqa("train")
SHARES = ("wrong_answers", "swapped_pictures", "no_picture_needed", "garbled_answers")  # in the order of RATING_AXES
EVERYTHING = (1, 1, 1, 1)

share = st.floats(0, 1)


ROWS = rated_rows(CLEAN[:400], DEFAULT)


def turns(rows: list[Row]) -> list[tuple[Any, list[int], list[str]]]:
    """Text, ratings and truth of every turn."""
    return [
        (text, [row[column][number] for column in RATING_COLUMNS], row[TRUTH][number])
        for row in rows
        for number, text in enumerate(row["texts"])
    ]


@settings(max_examples=15, deadline=None)
@given(share, share, share, share, st.integers(0, 2**32 - 1))
def test_so_large_a_share_is_faulty_as_was_asked(
    wrong: float, swapped: float, blind: float, bad: float, seed: int
) -> None:
    config = EasyVQARatedConfig(
        wrong_answers=wrong, swapped_pictures=swapped, no_picture_needed=blind, garbled_answers=bad, fault_seed=seed
    )
    rows = rated_rows(CLEAN[:60], config)
    faulty = [truth for _, _, truth in turns(rows)]
    for axis, asked in (("relevance", wrong), ("visual_dependency", blind), ("formatting", bad)):
        assert sum(axis in each for each in faulty) == round(asked * len(faulty))
    of_rows = [["image_correspondence" in each for each in row[TRUTH]] for row in rows]
    assert all(any(each) == all(each) for each in of_rows)  # a picture is its row's
    wanted = round(swapped * len(rows))
    assert sum(any(each) for each in of_rows) == (0 if wanted == 1 else wanted)  # one alone has no other to swap with


def test_a_fault_is_what_the_truth_says_and_nothing_else_changes() -> None:
    for clean, row in zip(CLEAN[: len(ROWS)], ROWS, strict=True):
        assert (row["images"] != clean["images"]) == all("image_correspondence" in each for each in row[TRUTH])
        for before, after, faulty in zip(clean["texts"], row["texts"], row[TRUTH], strict=True):
            assert (after["user"] != before["user"]) == ("visual_dependency" in faulty)
            assert after["assistant"].startswith("**") == ("formatting" in faulty)
            if "visual_dependency" not in faulty:
                assert (after["assistant"].strip("*") != before["assistant"]) == ("relevance" in faulty)


def test_a_fault_is_rated_low_and_the_rest_high_but_not_always() -> None:
    for axis, name in enumerate(RATING_AXES):
        rated = [(ratings[axis], name in faulty) for _, ratings, faulty in turns(ROWS)]
        assert {rating for rating, _ in rated} == {1, 2, 3, 4, 5}
        bad, good = ([rating for rating, faulty in rated if faulty is wanted] for wanted in (True, False))
        assert sum(bad) / len(bad) < 2 < 4 < sum(good) / len(good)
        assert any(rating >= 3 for rating in bad)
        assert any(rating < 3 for rating in good)


def test_ratings_without_noise_are_never_wrong() -> None:
    rows = rated_rows(CLEAN[:100], replace(DEFAULT, rating_noise=0))
    for _, ratings, faulty in turns(rows):
        assert [rating < 3 for rating in ratings] == [axis in faulty for axis in RATING_AXES]


def test_a_filter_s_effect_is_the_share_it_keeps_and_the_faults_among_that() -> None:
    rows = rated_rows(CLEAN[:400], replace(DEFAULT, rating_noise=0))
    everything = describe_filter(rows, EVERYTHING)
    strict = describe_filter(rows, (3, 1, 1, 3))
    assert everything.kept == 1
    assert everything.faulty["relevance"] == pytest.approx(0.3, abs=0.001)
    assert 0.45 < strict.kept < 0.53  # 0.7 of 0.7
    assert strict.faulty["relevance"] == strict.faulty["formatting"] == 0
    assert 0.07 < strict.faulty["visual_dependency"] < 0.13


@pytest.mark.parametrize("rows", [[], CLEAN[:1]], ids=["none", "one"])
def test_few_rows_are_no_mistake(rows: list[Row]) -> None:
    effect = describe_filter(rated_rows(rows, DEFAULT), (5, 5, 5, 5))
    assert 0 <= effect.kept <= 1


@pytest.mark.parametrize(
    "change", [*({each: 0.31} for each in SHARES), {"rating_noise": 0.8}, {"fault_seed": 1}], ids=str
)
def test_another_value_makes_other_rows(change: dict[str, Any]) -> None:
    assert rated_rows(CLEAN[:400], replace(DEFAULT, **change)) != ROWS


def test_the_same_values_make_the_same_rows_on_every_machine() -> None:
    """With other draws all that was measured on these rows would be about other data."""
    assert ROWS[0]["relevance_ratings"] == [2, 5, 1, 4, 4, 4, 4, 1, 3, 1, 4, 4]
    assert [len(faulty) for faulty in ROWS[0][TRUTH]] == [2, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_what_is_trained_on_does_not_depend_on_the_truth() -> None:
    row = ROWS[0]
    without = {key: value for key, value in row.items() if key != TRUTH}
    assert TRUTH in row
    assert sample_from_row(row, "") == sample_from_row(without, "")


def test_without_faults_it_is_easyvqa_with_ratings() -> None:
    assert [(row["images"], row["texts"]) for row in rated_rows(CLEAN[:50], FLAWLESS)] == [
        (row["images"], row["texts"]) for row in CLEAN[:50]
    ]


@pytest.mark.parametrize("streaming", ["true", pytest.param("false", marks=pytest.mark.slow)])  # by number: an index
def test_whatever_the_faults_and_the_filter_a_run_is_validated_on_the_same(
    streaming: str, encoder: ChatEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path))
    validated = []
    for options in (["dataset=easyvqa"], ["dataset=easyvqa_rated", "filter=all_5", "dataset.fault_seed=1"]):
        small = ["dataset.num_workers=0", "packing.seq_length=1024", "trainer.batch_size=4", "trainer.max_val_packs=8"]
        config = composed("train", *options, *small, f"dataset.streaming={streaming}")
        data = build_training_data(config, encoder, 0, 1, lambda parts: parts)
        validated.append([batch.labels.tolist() for batch in data.validation])
    clean, rated = validated
    assert clean
    assert rated == clean


def test_a_source_changes_with_what_is_rated_and_its_test_is_easyvqa_s() -> None:
    parts = {
        name: {"dataset": "easyvqa_rated", "weight": 1, "rating_noise": noise} for name, noise in (("a", 0), ("b", 1))
    }
    certain, noisy = build_sources(MixtureConfig(parts=parts))
    assert (certain.name, noisy.name) == ("a", "b")
    assert certain.fingerprint != noisy.fingerprint
    assert certain.contents != noisy.contents
    assert certain.test == noisy.test == read_easyvqa_test()
    effect = describe_filter(noisy.rows or (), EVERYTHING)
    assert effect.faulty == pytest.approx(dict(zip(RATING_AXES, (0.3, 0.5, 0.1, 0.3), strict=True)), abs=0.01)


@pytest.mark.parametrize(
    ("key", "value"), [*((each, 1.5) for each in SHARES), ("rating_noise", -1.0), ("fault_seed", -1)]
)
def test_a_value_out_of_range_is_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^dataset\.{key}={value}: must be "):
        EasyVQARatedConfig(**{key: value})
