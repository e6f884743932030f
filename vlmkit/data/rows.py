"""Rows in FineVision's schema, and the one door from a row to a sample.

A row is ``{"images": [...], "texts": [{"user": …, "assistant": …}, …]}`` with, optionally, one list of ratings for
each axis (``relevance_ratings``, …), an entry per turn. A picture is an encoded file: bytes, a path, or the
``{"bytes": …, "path": …}`` of a parquet file. Data from outside are odd: what cannot be learnt from is a
``BadSampleError`` with a reason that can be counted.
"""

from collections.abc import Callable, Mapping
from math import isnan
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from vlmkit.config import RATING_AXES
from vlmkit.errors import BadSampleError
from vlmkit.types import Ratings, Sample, Turn

Row = Mapping[str, Any]

RATING_COLUMNS = tuple(f"{axis}_ratings" for axis in RATING_AXES)


def read_row(read: Callable[[int], Row], number: int, name: str) -> Row:
    """``read(number)``: a row, or some of its columns, from a file that may be damaged anywhere.

    Raises:
        BadSampleError: It cannot be read.
    """
    try:
        return read(number)
    except Exception as error:  # bytes that are not what they should be make a decoder raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadSampleError("row cannot be read", name, reason) from error


def sample_from_row(row: Row, name: str, folder: Path | None = None) -> Sample:
    """A sample of a row.

    A list of pictures that are all None is a text without pictures. One None among pictures is a picture that was
    lost: the questions may be about it, and an answer to what cannot be seen teaches guessing. So that is a bad sample.

    Args:
        row: The row; keys of no meaning here are ignored.
        name: "source/row", for messages.
        folder: Where the paths of pictures lead from; without one, only pictures that are in the row are taken.

    Raises:
        BadSampleError: The row has no turn that can be learnt from, lacks a picture, or contradicts itself.
    """
    images = row.get("images")
    images = images if isinstance(images, list | tuple) else [images]
    if all(image is None for image in images):
        images = []
    texts = row.get("texts")
    if not isinstance(texts, list | tuple) or not texts:
        raise BadSampleError("no texts", name)
    all_ratings = turn_ratings(row, len(texts), name)
    turns = [_turn(text, ratings, name) for text, ratings in zip(texts, all_ratings, strict=True)]
    turns = [turn for turn in turns if turn.assistant.strip()]  # an empty answer teaches to say nothing
    if not turns:
        raise BadSampleError("every answer is empty", name)
    return Sample(name, tuple(_picture(image, name, folder) for image in images), tuple(turns))


def turn_ratings(row: Row, num_turns: int, name: str) -> list[Ratings]:
    """Ratings of each turn; those that are missing, as a list or singly, are None.

    Raises:
        BadSampleError: A list has another number of entries than there are turns, or an entry is no rating.
    """
    axes: list[list[int | None]] = []
    for column in RATING_COLUMNS:
        values = row.get(column)
        if values is None:
            axes.append([None] * num_turns)
            continue
        if not isinstance(values, list | tuple) or len(values) != num_turns:
            detail = f"{column} for {num_turns} turns: {shortened(values)}"
            raise BadSampleError("ratings do not fit the turns", name, detail)
        axes.append([_rating(value, column, name) for value in values])
    return list(zip(*axes, strict=True))


def _rating(value: Any, column: str, name: str) -> int | None:
    """A rating; NaN is None, as pandas writes it. What is beyond 1 to 5 is below or above every minimum."""
    if value is None or (isinstance(value, float) and isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
        raise BadSampleError("rating is no whole number", name, f"{column} has {shortened(value)}")
    return int(value)


def _turn(text: Any, ratings: Ratings, name: str) -> Turn:
    if not isinstance(text, Mapping):
        raise BadSampleError("turn is not a user and an assistant text", name)
    user, assistant = text.get("user"), text.get("assistant")
    if not isinstance(user, str) or not isinstance(assistant, str):
        raise BadSampleError("turn is not a user and an assistant text", name)
    if not _is_unicode(user + assistant):
        raise BadSampleError("text is not Unicode", name)
    return Turn(user, assistant, ratings)


def _is_unicode(text: str) -> bool:
    """Whether no half of a surrogate pair is in it, as JSON can spell and tokenizers cannot take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _picture(image: Any, name: str, folder: Path | None) -> Path | bytes:
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    match image:
        case bytes():
            return image
        case Path():
            return image  # made by a source, not read from data
        case str() if folder is not None:
            return _inside(folder, image, name)
        case _:
            raise BadSampleError("picture is missing", name)


def _inside(folder: Path, path: str, name: str) -> Path:
    """Where a path of the data leads, links followed: data from outside may not show us other files."""
    try:
        found = (folder / path).resolve()
        inside = found.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, links in a circle
        raise BadSampleError("picture is missing", name, repr(path[:200])) from error
    if not inside:
        raise BadSampleError("picture lies outside the dataset's folder", name, repr(path[:200]))
    return found
