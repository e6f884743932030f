"""easy-VQA with known faults: shares hold, ratings tell of the faults, and nothing that trains reads the truth."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.datasets import samples_of
from vlmkit.config import RATING_AXES, EasyVQAConfig, EasyVQARatedConfig, MixtureConfig
from vlmkit.data.rated import TRUTH, describe_filter, rated_rows
from vlmkit.data.rows import RATING_COLUMNS, Row, sample_from_row
from vlmkit.data.sources import Source, build_sources, read_easyvqa
from vlmkit.errors import ConfigError

DEFAULT = EasyVQARatedConfig()
FLAWLESS = EasyVQARatedConfig(wrong_answers=0, swapped_pictures=0, no_picture_needed=0, garbled_answers=0)
CLEAN = read_easyvqa("train")
SHARES = ("wrong_answers", "swapped_pictures", "no_picture_needed", "garbled_answers")  # in the order of RATING_AXES
EVERYTHING = (1, 1, 1, 1)

share = st.floats(0, 1)


@cache
def source() -> Source:
    [made] = build_sources(DEFAULT)
    return made


def turns(rows: list[Row]) -> list[tuple[Any, list[int], list[str]]]:
    """Text, ratings and truth of every turn."""
    return [
        (text, [row[column][number] for column in RATING_COLUMNS], row[TRUTH][number])
        for row in rows
        for number, text in enumerate(row["texts"])
    ]


@settings(max_examples=25, deadline=None)
@given(share, share, share, share, st.integers(0, 2**32 - 1))
def test_so_large_a_share_is_faulty_as_was_asked(wrong: float, swapped: float, blind: float, bad: float, seed: int) -> None:
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
    for clean, row in zip(CLEAN, source().rows or (), strict=True):
        assert (row["images"] != clean["images"]) == all("image_correspondence" in each for each in row[TRUTH])
        for before, after, faulty in zip(clean["texts"], row["texts"], row[TRUTH], strict=True):
            assert (after["user"] != before["user"]) == ("visual_dependency" in faulty)
            assert after["assistant"].startswith("**") == ("formatting" in faulty)
            if "visual_dependency" not in faulty:
                assert (after["assistant"].strip("*") != before["assistant"]) == ("relevance" in faulty)


def test_a_fault_is_rated_low_and_the_rest_high_but_not_always() -> None:
    for axis, name in enumerate(RATING_AXES):
        rated = [(ratings[axis], name in faulty) for _, ratings, faulty in turns(list(source().rows or ()))]
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
    assert 0.15 < strict.faulty["visual_dependency"] < 0.25


@pytest.mark.parametrize("rows", [[], CLEAN[:1]], ids=["none", "one"])
def test_few_rows_are_no_mistake(rows: list[Row]) -> None:
    effect = describe_filter(rated_rows(rows, DEFAULT), (5, 5, 5, 5))
    assert 0 <= effect.kept <= 1


@pytest.mark.parametrize("change", [*({each: 0.31} for each in SHARES), {"rating_noise": 0.8}, {"fault_seed": 1}], ids=str)
def test_another_value_makes_other_rows_and_another_fingerprint(change: dict[str, Any]) -> None:
    [other] = build_sources(replace(DEFAULT, **change))
    assert other.rows != source().rows
    assert other.fingerprint != source().fingerprint
    assert other.contents != source().contents


def test_the_same_values_make_the_same_rows_as_ever() -> None:
    """Of every machine and version: a change here makes all that was measured on these rows another experiment's."""
    assert source().rows == (build_sources(replace(DEFAULT))[0]).rows
    assert source().contents == "CONTENTS"


def test_what_is_trained_on_does_not_depend_on_the_truth() -> None:
    row = (source().rows or ())[0]
    without = {key: value for key, value in row.items() if key != TRUTH}
    assert TRUTH in row
    assert sample_from_row(row, "") == sample_from_row(without, "")


def test_without_faults_it_is_easyvqa_with_ratings() -> None:
    assert [(row["images"], row["texts"]) for row in rated_rows(CLEAN, FLAWLESS)] == [
        (row["images"], row["texts"]) for row in CLEAN
    ]


@pytest.mark.parametrize("streaming", [True, False])
def test_validation_and_test_are_easyvqa_s_own(streaming: bool) -> None:
    [rated] = build_sources(replace(DEFAULT, streaming=streaming))
    [clean] = build_sources(EasyVQAConfig(streaming=streaming))
    assert rated.validation is not None
    assert list(rated.validation.all_rows()) == list(clean.all_rows())
    assert list(rated.all_rows()) == list(source().rows or ())
    assert rated.test == clean.test


def test_it_can_be_a_part_of_a_mixture() -> None:
    parts = {"shapes": {"dataset": "easyvqa_rated", "weight": 1, "wrong_answers": 0.5}}
    [part] = build_sources(MixtureConfig(parts=parts))
    assert part.name == "shapes"
    assert describe_filter(part.rows or (), EVERYTHING).faulty["relevance"] == pytest.approx(0.5, abs=0.001)
    assert len(samples_of(part)) == 4000


@pytest.mark.parametrize(
    ("key", "value"), [*((each, 1.5) for each in SHARES), ("rating_noise", -1.0), ("fault_seed", -1)]
)
def test_a_value_out_of_range_is_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^dataset\.{key}={value}: must be "):
        EasyVQARatedConfig(**{key: value})
