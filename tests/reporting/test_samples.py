"""What is drawn of a sample is what the model gets."""

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.reporting.conftest import Look
from tests.reporting.rated_data import CUT_OFF, MANY_PICTURES, SCRIPT, TEXT_ONLY, TOO_LONG, rated_rows
from vlmkit.processing.images import cut_tiles, load_image
from vlmkit.processing.tokenizer import load_tokenizer
from vlmkit.reporting.samples import REPLACEMENT, ShownSample, choose_samples, show_sample, split_tokens
from vlmkit.types import IGNORED_LABEL

TOKENIZER = load_tokenizer("tiny")


@pytest.fixture(scope="module")
def shown(look: Look) -> dict[int, ShownSample]:
    """All readable samples, by row."""
    config, encoder, survey = look("samples=100")
    return {row: show_sample(one, row, config, encoder) for one, row in choose_samples(survey, config)}


def test_every_readable_row_can_be_drawn_and_so_many_are(look: Look, shown: dict[int, ShownSample]) -> None:
    assert len(shown) == 38
    config, _, survey = look("samples=5")
    assert len({row for _, row in choose_samples(survey, config)}) == 5


def test_learnt_tokens_spell_the_answers_and_nothing_else(shown: dict[int, ShownSample]) -> None:
    rows = rated_rows()
    for number, sample in shown.items():
        for turn in sample.turns:
            question, answer = turn.messages
            assert not any(token.learnt for token in question.tokens)
            text = rows[number]["texts"][turn.number - 1]
            if not answer.hidden:
                learnt = "".join(token.text for token in answer.tokens if token.learnt)
                assert learnt == f"{text['assistant']}<|im_end|>\n"
            asked = "".join(token.text for token in question.tokens if not token.special)
            assert re.sub(r"<image: \d>", "", asked) == f"user\n{text['user']}\n"
    assert sum(len(sample.turns) for sample in shown.values()) > 10


def test_token_counts_are_those_of_the_size(shown: dict[int, ShownSample]) -> None:
    for sample in shown.values():
        if sample.size:
            messages = [message for turn in sample.turns for message in turn.messages]
            tokens = [token for message in messages for token in message.tokens]
            counted = sum(token.repeated * token.joined for token in tokens) + sum(one.hidden for one in messages)
            assert counted == sample.size.tokens
            assert sum(token.repeated for token in tokens if token.repeated > 1) == 16 * sample.size.tiles


def test_turns_are_shown_or_dropped_with_the_rating_that_drops_them(shown: dict[int, ShownSample]) -> None:
    sample = shown[SCRIPT]
    assert [turn.number for turn in sample.turns] == [1]
    [dropped] = sample.dropped
    assert dropped.number == 2
    assert [(badge.axis, badge.rating, badge.minimum) for badge in dropped.badges if badge.below] == [
        ("relevance", 1, 3)
    ]


def test_turns_that_this_epoch_leaves_out_are_apart(look: Look) -> None:
    config, encoder, survey = look("dataset.turns_per_visit=1", "filter=default", "samples=100")
    for one, row in choose_samples(survey, config):
        sample = show_sample(one, row, config, encoder)
        if sample.size:
            numbers = sorted(turn.number for turn in (*sample.turns, *sample.waiting))
            assert len(sample.turns) == 1
            assert numbers == list(range(1, len(numbers) + 1))


def test_a_sample_that_is_left_out_says_why(shown: dict[int, ShownSample]) -> None:
    assert shown[TOO_LONG].fault == "longer than dataset.max_sample_length"
    assert shown[MANY_PICTURES].fault == "more pictures than dataset.max_images_per_example"
    assert str(shown[CUT_OFF].fault).startswith("cannot read the picture: ")
    assert shown[SCRIPT].fault is None
    dropped = [sample for sample in shown.values() if sample.dropped and not sample.turns]
    assert {sample.fault for sample in dropped} == {"every turn is rated below the filter"}


def test_pictures_and_tiles_are_those_of_the_model(look: Look, shown: dict[int, ShownSample]) -> None:
    _, encoder, _ = look()
    row = next(number for number, sample in shown.items() if number % 4 == 0 and sample.pictures)
    [picture] = shown[row].pictures
    original = load_image(rated_rows()[row]["images"][0]["bytes"], "test")
    assert (picture.width, picture.height) == original.size == (300, 200)
    assert (picture.grid.rows, picture.grid.cols) == (3, 4)
    expected = cut_tiles(original, encoder.layout)
    uris = [picture.global_tile, *(tile.uri for tile in picture.tiles)]
    assert len(uris) == len(expected) == 13
    for uri, tile in zip(uris, expected, strict=True):
        assert uri
        assert np.abs(decoded(uri).astype(int) - tile).mean() < 4
    assert [tile.label for tile in picture.tiles[:5]] == [
        *(f"row 1, column {n}" for n in (1, 2, 3, 4)),
        "row 2, column 1",
    ]
    assert shown[TEXT_ONLY].pictures == ()


def test_idefics3_is_drawn_as_its_model_sees_it(look: Look, shown: dict[int, ShownSample]) -> None:
    config, encoder, survey = look(
        "samples=100", "model.image.layout=idefics3", "model.image.resize_to_max_side_len=true"
    )
    one, row = next(
        chosen for chosen in choose_samples(survey, config) if chosen[1] % 4 == 0 and shown[chosen[1]].turns
    )
    sample = show_sample(one, row, config, encoder)
    [picture] = sample.pictures
    expected = cut_tiles(load_image(rated_rows()[row]["images"][0]["bytes"], "test"), encoder.layout)
    for uri, tile in zip([*(tile.uri for tile in picture.tiles), picture.global_tile], expected, strict=True):
        assert uri
        assert np.abs(decoded(uri).astype(int) - tile).mean() < 4
    assert picture.tiles[4].label == "row 2, column 1"

    text = rated_rows()[row]["texts"][sample.turns[0].number - 1]
    question, answer = sample.turns[0].messages
    assert [token.repeated for token in question.tokens if token.text == "<image>"] == [16] * 13
    assert "".join(token.text for token in question.tokens if not token.special) == f"User:\n\n\n\n{text['user']}\n"
    assert "".join(token.text for token in answer.tokens if token.learnt) == f" {text['assistant']}<end_of_utterance>\n"
    assert [turn.number for turn in sample.turns] == [turn.number for turn in shown[row].turns]


def test_tiles_are_augmented_as_in_training(look: Look) -> None:
    config, encoder, survey = look("dataset.augment.rotation_degrees=180", "filter=default", "samples=100")
    differences = []
    for one, row in choose_samples(survey, config):
        for picture in show_sample(one, row, config, encoder).pictures:
            seen = decoded(picture.global_tile or picture.tiles[0].uri).astype(int)
            plain = Image.fromarray(decoded(picture.uri)).resize((64, 64))
            differences.append(np.abs(seen - np.asarray(plain)).mean())
    assert np.mean(differences) > 20  # turned by up to half a turn


@given(st.text())
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    ids = TOKENIZER.encode_text(text)
    pieces = list(split_tokens(ids, [IGNORED_LABEL] * len(ids), TOKENIZER))
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.joined for piece in pieces) == len(ids)
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece.text for piece in pieces)


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))
