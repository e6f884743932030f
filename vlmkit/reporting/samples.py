"""A few samples as a person wants to see them: pictures, tiles, every token, what is learnt and what is dropped."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise, zip_longest

import numpy as np
from PIL import Image

from vlmkit.config import RATING_AXES, InspectConfig
from vlmkit.data.index import build_index
from vlmkit.data.order import keyed_permutation
from vlmkit.data.packing import Size
from vlmkit.data.pipeline import augmentation_of, limits_of
from vlmkit.data.plan import Candidates
from vlmkit.data.ratings import kept_turns
from vlmkit.errors import BadSampleError
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import TileGrid, cut_tiles, load_image
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.reporting.pictures import picture_uri
from vlmkit.reporting.survey import Survey, SurveyedSource
from vlmkit.types import IGNORED_LABEL, Encoded, Ratings, Sample

PICTURE_SIDE = 768  # pixels; the pictures of a sample share a square of this side
MAX_PICTURES = 9  # of a sample
MAX_TOKENS = 3000  # shown of a sample; a run of image tokens counts as one
MAX_CHARACTERS = 1500  # of a text that is not tokenised
MAX_TOKENS_OF_A_CHARACTER = 4  # as it has at most so many bytes
REPLACEMENT = "\ufffd"  # what bytes that are no whole character decode to


@dataclass(frozen=True, slots=True)
class Badge:
    """One rating of a turn."""

    axis: str
    rating: int | None
    minimum: int  # of the filter

    @property
    def below(self) -> bool:
        """Whether it drops the turn."""
        return self.rating is not None and self.rating < self.minimum


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text between two token boundaries, or a run of image tokens."""

    text: str
    learnt: bool = False
    special: bool = False
    repeated: int = 1
    joined: int = 1  # more than 1: so many tokens make up one character


@dataclass(frozen=True, slots=True)
class Message:
    """One message as the model gets it."""

    role: str
    tokens: tuple[Token, ...]
    hidden: int  # tokens that are not shown


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """A turn of the first epoch's visit."""

    number: int  # in the row, from 1
    badges: tuple[Badge, ...]
    messages: tuple[Message, Message]


@dataclass(frozen=True, slots=True)
class UnusedTurn:
    """A turn that is not part of the first epoch's visit."""

    number: int  # in the row, from 1
    badges: tuple[Badge, ...]
    user: str
    assistant: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile as the model sees it."""

    label: str
    uri: str


@dataclass(frozen=True, slots=True)
class ShownPicture:
    """A picture and its tiles."""

    uri: str  # "data:…", as all of them
    width: int
    height: int
    grid: TileGrid
    global_tile: str | None  # data URI; None: there is one tile only
    tiles: tuple[Tile, ...]  # row by row


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample to be drawn."""

    name: str
    fault: str | None  # why it is not trained on
    size: Size | None  # of the visit; None: no turn is left, or it cannot be decoded
    learnt: int  # tokens
    pictures: tuple[ShownPicture, ...] = ()
    hidden_pictures: int = 0
    turns: tuple[ShownTurn, ...] = ()
    dropped: tuple[UnusedTurn, ...] = ()  # below the filter
    waiting: tuple[UnusedTurn, ...] = ()  # for other epochs


def choose_samples(survey: Survey, config: InspectConfig) -> list[tuple[SurveyedSource, int]]:
    """Readable rows by chance, from all sources in turns, whether or not they are trained on."""
    rows = []
    for number, one in enumerate(survey.sources):
        readable = one.index.rows[one.part[one.index.rows]]
        chosen = keyed_permutation(len(readable), config.seed, number)[: config.samples]
        rows.append([(one, row) for row in readable[chosen].tolist()])
    in_turns = (choice for choices in zip_longest(*rows) for choice in choices if choice)
    return list(islice(in_turns, config.samples))


def show_sample(one: SurveyedSource, row: int, config: InspectConfig, encoder: ChatEncoder) -> ShownSample:
    """Decode, tile and encode a row as the first epoch has it."""
    try:
        return _show(one, row, config, encoder)
    except BadSampleError as error:  # its header could be read, its pixels cannot
        return ShownSample(one.name(row), f"{error.reason}: {error.detail}", None, 0)


def _show(one: SurveyedSource, row: int, config: InspectConfig, encoder: ChatEncoder) -> ShownSample:
    sample = one.sample(row)
    images = [load_image(image, sample.name) for image in sample.images]
    visit, size = one.first_visit(row) or (None, None)
    visited = visit.turns if visit else ()
    grids = [encoder.layout.grid(*image.size) for image in images]
    encoded = encoder.encode_sample([sample.turns[number] for number in visited], grids)
    kept = kept_turns([turn.ratings for turn in sample.turns], config.filter.minima)
    shown = images[:MAX_PICTURES]
    seen = shown
    if visit and (augmentation := augmentation_of(config)):
        key = (visit.epoch, visit.source, visit.row)
        seen = [augmentation.apply(image, key, number) for number, image in enumerate(shown)]
    side = PICTURE_SIDE // math.ceil(math.sqrt(max(len(shown), 1)))
    return ShownSample(
        name=sample.name,
        fault=_fault(one, row, config, encoder),
        size=size,
        learnt=sum(label != IGNORED_LABEL for label in encoded.labels),
        pictures=tuple(_show_picture(*pair, side, encoder) for pair in zip(shown, seen, strict=True)),
        hidden_pictures=len(images) - len(shown),
        turns=_shown_turns(sample, visited, encoded, config, encoder.tokenizer),
        dropped=_unused(sample, set(range(len(sample.turns))) - set(kept), config),
        waiting=_unused(sample, set(kept) - set(visited), config),
    )


def _fault(one: SurveyedSource, row: int, config: InspectConfig, encoder: ChatEncoder) -> str | None:
    """Why a row is left out, if it is: what is counted if it is the only one there."""
    assert one.source.rows is not None
    index = build_index(replace(one.source, rows=[one.source.rows[row]]), encoder, iter)
    alone = Candidates(
        index, np.ones(1, bool), encoder, config.filter.minima, limits_of(config), config.dataset.turns_per_visit
    )
    return next(iter(alone.left_out), None)


# ---- turns and tokens ----------------------------------------------------------------------------------


def _shown_turns(
    sample: Sample, visited: Sequence[int], encoded: Encoded, config: InspectConfig, tokenizer: ChatTokenizer
) -> tuple[ShownTurn, ...]:
    messages = list(_messages(encoded, tokenizer))
    return tuple(
        ShownTurn(number + 1, _badges(sample.turns[number].ratings, config), (question, answer))
        for number, question, answer in zip(visited, messages[::2], messages[1::2], strict=True)
    )


def _unused(sample: Sample, numbers: Iterable[int], config: InspectConfig) -> tuple[UnusedTurn, ...]:
    turns = [(number, sample.turns[number]) for number in sorted(numbers)]
    return tuple(
        UnusedTurn(number + 1, _badges(turn.ratings, config), _shortened(turn.user), _shortened(turn.assistant))
        for number, turn in turns
    )


def _badges(ratings: Ratings, config: InspectConfig) -> tuple[Badge, ...]:
    return tuple(map(Badge, RATING_AXES, ratings, config.filter.minima))


def _shortened(text: str) -> str:
    more = len(text) - MAX_CHARACTERS
    return f"{text[:MAX_CHARACTERS]} … ({more:,} more characters)" if more > 0 else text


def _messages(encoded: Encoded, tokenizer: ChatTokenizer) -> Iterator[Message]:
    """The messages of an encoded conversation, questions and answers in turns."""
    newline = len(tokenizer.encode_text("\n"))  # stands behind the end of every message
    ends = [place + 1 + newline for place, token in enumerate(encoded.input_ids) if token == tokenizer.turn_end_id]
    left = MAX_TOKENS
    for number, (start, end) in enumerate(pairwise([0, *ends])):
        tokens = list(split_tokens(encoded.input_ids[start:end], encoded.labels[start:end], tokenizer))
        yield Message("assistant" if number % 2 else "user", tuple(tokens[:left]), max(len(tokens) - left, 0))
        left = max(left - len(tokens), 0)


def split_tokens(ids: Sequence[int], labels: Sequence[int], tokenizer: ChatTokenizer) -> Iterator[Token]:
    """The text of every token; those that make up one character together, and runs of image tokens, as one."""
    special = set(tokenizer.special_ids.values())
    pending: list[int] = []
    for token, run in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[0]):
        of_run = list(run)
        if token == tokenizer.image_id:
            yield Token(tokenizer.image_token, special=True, repeated=len(of_run))
            continue
        for _, label in of_run:
            pending.append(token)
            text = tokenizer.hf.decode(pending, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if text.endswith(REPLACEMENT) and len(pending) < MAX_TOKENS_OF_A_CHARACTER:
                continue
            yield Token(text, label != IGNORED_LABEL, token in special, joined=len(pending))
            pending = []


# ---- pictures ------------------------------------------------------------------------------------------


def _show_picture(picture: Image.Image, seen: Image.Image, side: int, encoder: ChatEncoder) -> ShownPicture:
    """A picture up to so many pixels a side, and the tiles of it as it is seen in training."""
    grid = encoder.layout.grid(*picture.size)
    tile_side = max(side // max(grid.rows, grid.cols), 16)
    global_tile, tiles = encoder.layout.split(cut_tiles(seen, encoder.layout))
    places = [f"row {row}, column {col}" for row in range(1, grid.rows + 1) for col in range(1, grid.cols + 1)]
    return ShownPicture(
        uri=picture_uri(picture, side),
        width=picture.width,
        height=picture.height,
        grid=grid,
        global_tile=None if global_tile is None else picture_uri(Image.fromarray(global_tile), tile_side),
        tiles=tuple(
            Tile(place, picture_uri(Image.fromarray(tile), tile_side))
            for place, tile in zip(places, tiles, strict=True)
        ),
    )
