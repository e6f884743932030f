import easy_vqa
import pytest

from vlmkit.config import RATING_AXES, EasyVQAConfig
from vlmkit.data.sources import build_dataset, sample_from_row
from vlmkit.errors import ConfigError


def test_easyvqa_holds_every_training_question_once_and_no_test_picture() -> None:
    dataset = build_dataset(EasyVQAConfig(val_size=200), seed=0)
    samples = [*dataset.train, *dataset.val]
    asked = sorted((sample.images[0].stem, turn.user, turn.assistant) for sample in samples for turn in sample.turns)
    questions, answers, pictures = easy_vqa.get_train_questions()
    assert asked == sorted(zip(map(str, pictures), questions, answers, strict=True))
    test_paths = set(easy_vqa.get_test_image_paths().values())
    assert not test_paths & {str(image) for sample in samples for image in sample.images}
    assert {str(question.image) for question in dataset.test} <= test_paths
    assert len(dataset.test) == 9673


def test_held_out_samples_are_never_trained_on() -> None:
    dataset = build_dataset(EasyVQAConfig(val_size=200), seed=3)
    assert (len(dataset.train), len(dataset.val)) == (3800, 200)
    assert not {sample.name for sample in dataset.train} & {sample.name for sample in dataset.val}


def test_more_held_out_than_there_is_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.val_size=4000: must be below the 4000 samples"):
        build_dataset(EasyVQAConfig(val_size=4000), seed=0)


def test_a_row_with_and_without_ratings() -> None:
    texts = [{"user": "q", "assistant": "a"}, {"user": "r", "assistant": "b"}]
    row = {"images": None, "texts": texts, "relevance_ratings": [1, None], "formatting_ratings": None}
    sample = sample_from_row(row, "test/0")
    assert sample.images == ()
    assert [turn.ratings for turn in sample.turns] == [(1, None, None, None), (None,) * len(RATING_AXES)]
