"""easy-VQA with known faults, and ratings that tell of them, though not always: what a filter should do is known.

Each axis of the ratings has one kind of fault:

    relevance             the answer is wrong: no for yes, always the same other shape or colour
    image_correspondence  the picture is another row's
    visual_dependency     the question needs no picture; its answer is right
    formatting            the answer stands in left-over markup

A turn may have several. A picture is its row's, so all turns of a row have that fault or none. All chance is a hash of
keys (``order.py``): the rows are the same on every machine.

Each row tells the truth in a column of its own, TRUTH, which nothing reads that trains: see ``describe_filter``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmkit.config import RATING_AXES, EasyVQARatedConfig
from vlmkit.data.order import keyed_hash, keyed_permutation
from vlmkit.data.ratings import passes
from vlmkit.data.rows import RATING_COLUMNS, Row, turn_ratings

TRUTH = "faults"  # for each turn, the axes that it is faulty on
GOOD, FAULTY = 4.25, 1.75  # ratings before noise: a minimum of 3 is between them, one of 5 drops most of the good
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
KINDS_OF_ANSWERS = (("yes", "no"), COLOURS, SHAPES, ("three", "four"))
WRONG = {answer: kind[place - 1] for kind in KINDS_OF_ANSWERS for place, answer in enumerate(kind)}
NO_PICTURE_NEEDED = (
    ("how many sides has a triangle?", "three"),
    ("how many sides has a rectangle?", "four"),
    *((f"is {colour} a color?", "yes") for colour in COLOURS),
    *((f"is {colour} a shape?", "no") for colour in COLOURS),
    *((f"is a {shape} a shape?", "yes") for shape in SHAPES),
    *((f"is a {shape} a color?", "no") for shape in SHAPES),
)
GARBLED = "**{}**"
FAULTS, QUESTIONS, NOISE = range(3)  # what is drawn: part of the key


@dataclass(frozen=True, slots=True)
class FilterEffect:
    """What rating minima do to rows whose truth is known."""

    kept: float  # share of all turns
    faulty: dict[str, float]  # axis → share of the kept turns that are faulty on it


def describe_filter(rows: Sequence[Row], minima: Sequence[int]) -> FilterEffect:
    """What a filter keeps of rated rows. For analysis alone: only here is the truth known.

    Args:
        rows: As ``rated_rows`` makes them.
        minima: In the order of RATING_AXES, as ``FilterConfig.minima``.
    """
    truths = [
        truth
        for row in rows
        for truth, ratings in zip(row[TRUTH], turn_ratings(row, len(row["texts"]), ""), strict=True)
        if passes(ratings, minima)
    ]
    num_turns = sum(len(row["texts"]) for row in rows)
    faulty = {axis: sum(axis in truth for truth in truths) / max(len(truths), 1) for axis in RATING_AXES}
    return FilterEffect(len(truths) / max(num_turns, 1), faulty)


def rated_rows(rows: Sequence[Row], config: EasyVQARatedConfig) -> list[Row]:
    """Rows of easy-VQA, one picture each, with faults, ratings and the truth.

    The configured shares hold exactly, rounded to whole turns; of pictures, to whole rows.
    """
    lengths = [len(row["texts"]) for row in rows]
    pictures = _swapped_pictures(len(rows), config)
    faults = _draw_faults(pictures, lengths, config)
    ratings = _rate(faults, config)
    questions = keyed_hash(np.arange(len(faults), dtype=np.uint64), config.fault_seed, QUESTIONS)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    of_rows = (np.split(of_turns, starts)[1:] for of_turns in (faults, ratings, questions))
    return [
        _rated_row(row["texts"], rows[picture]["images"], *drawn)
        for row, picture, *drawn in zip(rows, pictures.tolist(), *of_rows, strict=True)
    ]


def _rated_row(
    texts: Sequence[Any],
    images: Sequence[Any],
    faults: NDArray[np.bool_],
    ratings: NDArray[np.int64],
    questions: NDArray[np.uint64],
) -> Row:
    """One row, of its T turns: faults and ratings [T, 4], questions [T] that say which no-picture question comes in."""
    truth = [[axis for axis, faulty in zip(RATING_AXES, turn, strict=True) if faulty] for turn in faults.tolist()]
    turns = [
        _turn(text, faulty, NO_PICTURE_NEEDED[question % len(NO_PICTURE_NEEDED)])
        for text, faulty, question in zip(texts, truth, questions.tolist(), strict=True)
    ]
    columns = dict(zip(RATING_COLUMNS, ratings.T.tolist(), strict=True))
    return {"images": images, "texts": turns, **columns, TRUTH: truth}


def _turn(text: Any, faulty: Sequence[str], no_picture_needed: tuple[str, str]) -> dict[str, str]:
    """A turn with its faults, but for the picture."""
    question, answer = text["user"], text["assistant"]
    if "visual_dependency" in faulty:
        question, answer = no_picture_needed
    if "relevance" in faulty:
        answer = WRONG[answer]
    if "formatting" in faulty:
        answer = GARBLED.format(answer)
    return {"user": question, "assistant": answer}


def _swapped_pictures(num_rows: int, config: EasyVQARatedConfig) -> NDArray[np.int64]:
    """Whose picture each row has, int64 [rows]: its own, or that of the next of those that are swapped."""
    pictures = np.arange(num_rows)
    axis = RATING_AXES.index("image_correspondence")
    swapped = _drawn(num_rows, config.swapped_pictures, config, axis)
    pictures[swapped] = np.roll(swapped, 1)
    return pictures


def _draw_faults(pictures: NDArray[np.int64], lengths: Sequence[int], config: EasyVQARatedConfig) -> NDArray[np.bool_]:
    """Which turns are faulty on which axis: bool [turns, 4].

    Args:
        pictures: Whose picture each row has.
        lengths: Turns of each row.
        config: The shares.
    """
    swapped = np.repeat(pictures != np.arange(len(pictures)), np.array(lengths, np.int64))
    faults = np.zeros((len(swapped), len(RATING_AXES)), bool)
    faults[:, RATING_AXES.index("image_correspondence")] = swapped
    shares = {
        "relevance": config.wrong_answers,
        "visual_dependency": config.no_picture_needed,
        "formatting": config.garbled_answers,
    }
    for name, share in shares.items():
        axis = RATING_AXES.index(name)
        faults[_drawn(len(faults), share, config, axis), axis] = True
    return faults


def _drawn(count: int, share: float, config: EasyVQARatedConfig, axis: int) -> NDArray[np.int64]:
    """So large a share of the numbers below ``count``."""
    return keyed_permutation(count, config.fault_seed, FAULTS, axis)[: round(share * count)]


def _rate(faults: NDArray[np.bool_], config: EasyVQARatedConfig) -> NDArray[np.int64]:
    """Ratings 1 to 5: int64 [turns, 4].

    Noise is the sum of three uniform numbers, scaled: bell-shaped, at most three standard deviations, and made by
    additions and multiplications alone, which come to the same everywhere.
    """
    cells = np.arange(faults.size, dtype=np.uint64).reshape(faults.shape)
    uniform = [(keyed_hash(cells, config.fault_seed, NOISE, draw) >> np.uint64(11)) * 2.0**-53 for draw in range(3)]
    noise = 2 * config.rating_noise * (sum(uniform) - 1.5)  # the sum of three has a standard deviation of 1/2
    ratings: NDArray[np.int64] = np.clip(np.rint(np.where(faults, FAULTY, GOOD) + noise), 1, 5).astype(np.int64)
    return ratings
