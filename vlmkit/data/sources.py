"""Datasets, each read into the one sample schema of FineVision.

A row is ``{"images": [...], "texts": [{"user": …, "assistant": …}, …]}`` with, optionally, one list of ratings for
each axis (``relevance_ratings``, …), an entry per turn. ``sample_from_row`` is the only door from rows to samples.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmkit.config import RATING_AXES, DatasetConfig, EasyVQAConfig
from vlmkit.data.order import keyed_permutation
from vlmkit.errors import ConfigError
from vlmkit.types import Sample, Turn


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a test part, with the answers that count as right."""

    image: Path | bytes
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples to train on, samples held out of training, and, if the dataset has one, its test."""

    name: str
    train: Sequence[Sample]
    val: Sequence[Sample]
    test: Sequence[Question] = ()


def build_dataset(config: DatasetConfig, seed: int) -> Dataset:
    """Read the dataset that the config names.

    Raises:
        ConfigError: More samples are to be held out than there are.
    """
    match config:
        case EasyVQAConfig():
            name, samples, test = "easyvqa", read_easyvqa("train"), read_easyvqa_test()
        case _:
            raise AssertionError(f"no reader for {type(config).__name__}")
    if config.val_size >= len(samples):
        raise ConfigError(f"dataset.val_size={config.val_size}: must be below the {len(samples)} samples of {name}")
    order = keyed_permutation(len(samples), seed)
    train, val = order[config.val_size :], order[: config.val_size]
    return Dataset(name, [samples[i] for i in sorted(train)], [samples[i] for i in sorted(val)], test)


def sample_from_row(row: dict[str, Any], name: str) -> Sample:
    """A sample of a row in FineVision's schema; ratings that are missing, as a list or singly, are None."""
    unrated = [None] * len(row["texts"])
    ratings = zip(*(row.get(f"{axis}_ratings") or unrated for axis in RATING_AXES), strict=True)
    turns = (
        Turn(text["user"], text["assistant"], of_turn) for text, of_turn in zip(row["texts"], ratings, strict=True)
    )
    return Sample(name, tuple(row["images"] or ()), tuple(turns))


def read_easyvqa(part: str) -> list[Sample]:
    """One sample per picture of the PyPI package easy-vqa, its questions as turns; part is train or test."""
    rows: dict[int, dict[str, Any]] = defaultdict(lambda: {"images": [], "texts": []})
    for picture, path, question, answer in _easyvqa_questions(part):
        rows[picture]["images"] = [path]
        rows[picture]["texts"].append({"user": question, "assistant": answer})
    return [sample_from_row(rows[picture], f"easyvqa-{part}/{picture}") for picture in sorted(rows)]


def read_easyvqa_test() -> list[Question]:
    """The test questions of the package, as they stand there."""
    return [Question(path, question, (answer,)) for _, path, question, answer in _easyvqa_questions("test")]


def _easyvqa_questions(part: str) -> list[tuple[int, Path, str, str]]:
    """(picture number, picture file, question, answer) of each question of a part."""
    import easy_vqa

    questions = easy_vqa.get_train_questions() if part == "train" else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if part == "train" else easy_vqa.get_test_image_paths()
    return [(picture, Path(paths[picture]), text, answer) for text, answer, picture in zip(*questions, strict=True)]
