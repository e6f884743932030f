"""What a row means, however odd it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.datasets import picture, row, turn
from vlmkit.config import RATING_AXES
from vlmkit.data.rows import RATING_COLUMNS, read_row, sample_from_row
from vlmkit.errors import BadSampleError
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import image_size

ONE, TWO = picture(grey=1), picture(grey=2)


def reason(made: dict[str, Any], folder: Path | None = None) -> str:
    with pytest.raises(BadSampleError) as caught:
        sample_from_row(made, "source/7", folder)
    assert str(caught.value).startswith(f"source/7: {caught.value.reason}")
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (None, ()),
        ([], ()),
        ([None], ()),
        ([None, None], ()),
        (ONE, (ONE,)),
        ({"bytes": ONE, "path": None}, (ONE,)),
        ({"bytes": ONE, "path": "../../etc/passwd"}, (ONE,)),
        ([ONE, {"bytes": TWO}], (ONE, TWO)),
        ((TWO, ONE), (TWO, ONE)),
    ],
)
def test_pictures_of_every_form_are_the_same_pictures(images: Any, expected: tuple[bytes, ...]) -> None:
    assert sample_from_row(row(images), "").images == expected


def test_a_row_without_the_key_images_is_text() -> None:
    assert sample_from_row({"texts": [turn()]}, "").images == ()


@pytest.mark.parametrize(
    "images",
    [
        [ONE, None],
        [None, ONE, TWO],
        {},
        [{}],
        {"bytes": None, "path": None},
        3,
        [3],
        ["a.png"],
        [[ONE]],
        [bytearray(3)],
    ],
)
def test_a_picture_among_others_that_is_not_there_makes_a_bad_sample(images: Any) -> None:
    assert reason(row(images)) == "picture is missing"


@pytest.mark.parametrize("texts", [None, [], (), "text", {}, 3])
def test_a_row_without_texts_is_bad(texts: Any) -> None:
    assert reason({"texts": texts}) == "no texts"
    assert reason({}) == "no texts"


@pytest.mark.parametrize(
    "text",
    [None, "text", {}, {"user": "q"}, {"assistant": "a"}, turn() | {"user": None}, turn() | {"assistant": 3}, [turn()]],
)
def test_a_turn_that_lacks_a_side_makes_a_bad_sample(text: Any) -> None:
    assert reason({"texts": [turn(), text]}) == "turn is not a user and an assistant text"


def test_turns_with_blank_answers_are_left_out_and_questions_may_be_empty() -> None:
    made = {"texts": [turn(answer=" \n"), turn("", "yes"), turn(answer="")], "relevance_ratings": [1, 2, 3]}
    [left] = sample_from_row(made, "").turns
    assert (left.user, left.assistant, left.ratings[0]) == ("", "yes", 2)
    assert reason({"texts": [turn(answer=" "), turn(answer="")]}) == "every answer is empty"


def test_keys_of_no_meaning_change_nothing() -> None:
    made = row([ONE], 2, relevance=[3, 4])
    extra = made | {"source": "x", "relevance_min": 3, "images_2": [TWO], 7: None}
    assert sample_from_row(extra, "") == sample_from_row(made, "")


@pytest.mark.parametrize("nothing", [None, [None, None], [float("nan"), None]])
def test_missing_ratings_are_none(nothing: Any) -> None:
    sample = sample_from_row(row(None, 2, relevance=[1, 5.0], formatting=nothing), "")
    assert [turn.ratings for turn in sample.turns] == [(1, None, None, None), (5, None, None, None)]


def test_ratings_beyond_the_scale_stay_as_they_are() -> None:
    sample = sample_from_row(row(None, 3, relevance=[0, -3, 99]), "")
    assert [turn.ratings[0] for turn in sample.turns] == [0, -3, 99]


@pytest.mark.parametrize("value", ["3", 3.5, True, float("inf"), [3], {}])
def test_a_rating_that_is_no_whole_number_makes_a_bad_sample(value: Any) -> None:
    assert reason(row(None, 1, visual_dependency=[value])) == "rating is no whole number"


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3], 3, "12", {"0": 1, "1": 2}])
def test_ratings_that_do_not_fit_the_turns_make_a_bad_sample(values: Any) -> None:
    assert reason(row(None, 2, relevance=values)) == "ratings do not fit the turns"


def test_half_a_surrogate_pair_makes_a_bad_sample() -> None:
    """JSON can spell it, and no tokenizer can take it."""
    assert reason({"texts": [turn(answer=json.loads('"a\\ud800b"'))]}) == "text is not Unicode"


def test_a_message_stays_short_however_large_the_value() -> None:
    made = row(None, 1, relevance=[["x" * 10_000] * 1000])
    with pytest.raises(BadSampleError, match="relevance_ratings has") as caught:
        sample_from_row(made, "source/7")
    assert len(str(caught.value)) < 500


def test_a_row_that_raises_when_it_is_read_is_bad() -> None:
    def broken(number: int) -> dict[str, Any]:
        raise RecursionError(f"row {number}\nis nested too deeply")

    with pytest.raises(BadSampleError, match=r"^source/7: row cannot be read: row 7 is nested too deeply$"):
        read_row(broken, 7, "source/7")


# ---- paths ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset's folder, beside a picture that is not its own and a folder whose name begins alike."""
    made = tmp_path / "data"
    (made / "sub").mkdir(parents=True)
    (made / "sub" / "in.png").write_bytes(ONE)
    (tmp_path / "out.png").write_bytes(TWO)
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / "out.png").write_bytes(TWO)
    (made / "link.png").symlink_to(tmp_path / "out.png")
    (made / "links").symlink_to(tmp_path)
    (made / "circle.png").symlink_to(made / "circle.png")
    return made


@pytest.mark.parametrize("path", ["sub/in.png", "./sub/../sub/in.png", "links/data/sub/in.png"])
@pytest.mark.parametrize("in_struct", [True, False])
def test_a_path_leads_from_the_dataset_s_folder(folder: Path, path: str, in_struct: bool) -> None:
    image = {"bytes": None, "path": path} if in_struct else path
    [found] = sample_from_row(row([image]), "", folder).images
    assert found == folder.resolve() / "sub" / "in.png"


@pytest.mark.parametrize(
    "path", ["../out.png", "sub/../../out.png", "link.png", "links/out.png", "../data2/out.png", "/etc/passwd", "{out}"]
)
@pytest.mark.parametrize("in_struct", [True, False])
def test_no_path_leads_out_of_the_dataset_s_folder(folder: Path, path: str, in_struct: bool) -> None:
    path = path.format(out=folder.parent / "out.png")
    image = {"bytes": None, "path": path} if in_struct else path
    assert reason(row([image]), folder) == "picture lies outside the dataset's folder"
    assert reason(row([image])) == "picture is missing"


@pytest.mark.parametrize("path", ["a\0b.png", "circle.png", "x" * 5000, "nowhere.png", "", "sub"])
def test_a_path_that_leads_to_no_picture_makes_a_bad_sample(folder: Path, path: str) -> None:
    with pytest.raises(BadSampleError, match=r"^source/7: (picture is missing|cannot read the picture)"):
        [image_size(image, "source/7") for image in sample_from_row(row([path]), "source/7", folder).images]


# ---- anything ------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
odd_text = st.sampled_from(["", " ", "\n", "\ud800", "yes"]) | junk
odd_turn = st.fixed_dictionaries({}, optional={"user": odd_text, "assistant": odd_text, "more": junk}) | junk
odd_image = st.sampled_from(["sub/x.png", "../x.png", "/x", ""]) | junk
odd_image = odd_image | st.fixed_dictionaries({}, optional={"bytes": odd_image, "path": odd_image})


def mostly(good: Any, odd: Any) -> st.SearchStrategy[Any]:
    """One of two strategies or values, seldom the second."""
    strategies = [each if isinstance(each, st.SearchStrategy) else st.just(each) for each in (good, odd)]
    return st.integers(0, 9).flatmap(lambda number: strategies[number == 0])


@st.composite
def odd_rows(draw: st.DrawFn) -> dict[str, Any]:
    """Rows of which each part is mostly right, and seldom anything."""
    turns = draw(st.integers(1, 3))
    texts = st.fixed_dictionaries({"user": st.text(max_size=9), "assistant": st.text(max_size=9)})
    made = {
        "images": draw(mostly(st.lists(mostly(st.none() | st.just(ONE), odd_image), max_size=3), odd_image)),
        "texts": draw(mostly(st.lists(mostly(texts, odd_turn), min_size=turns, max_size=turns), junk)),
        "more": draw(junk),
    }
    for column in RATING_COLUMNS:
        rating = mostly(st.none() | st.integers(-1, 7) | st.sampled_from([3.0, float("nan")]), junk)
        made[column] = draw(mostly(st.none() | st.lists(rating, min_size=turns, max_size=turns), junk))
    left_out = draw(st.sets(st.sampled_from(sorted(made)), max_size=1))
    return {name: value for name, value in made.items() if name not in left_out}


@settings(max_examples=200)
@given(made=odd_rows())
def test_anything_is_a_sample_or_a_bad_sample(
    encoder: ChatEncoder, tmp_path_factory: Any, made: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        sample = sample_from_row(made, "source/7", folder)
    except BadSampleError as error:
        assert error.name == "source/7"
        return
    assert sample.turns
    assert all(turn.assistant.strip() for turn in sample.turns)
    assert all(isinstance(image, bytes) or image.is_relative_to(folder.resolve()) for image in sample.images)
    assert all(rating is None or isinstance(rating, int) for turn in sample.turns for rating in turn.ratings)
    assert all(len(turn.ratings) == len(RATING_AXES) for turn in sample.turns)
    assert encoder.encode_sample(sample.turns, ()).input_ids
