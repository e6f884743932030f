"""The index: what every sample will take up in a pack, measured once, so that planning is arithmetic.

Building it tokenises every text and reads the size, not the pixels, of every picture.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vlmkit.config import FilterConfig
from vlmkit.data.packing import Size
from vlmkit.data.ratings import kept_turns
from vlmkit.errors import DataError
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import TileGrid, image_size
from vlmkit.types import Sample

TOO_LONG = "longer than dataset.max_sample_length"
TOO_MANY_IMAGES = "more pictures than dataset.max_images_per_example"
TOO_MANY_TILES = "more pictures or tiles than a pack holds"
BAD_IMAGE = "picture cannot be read"
ALL_TURNS_DROPPED = "every turn is rated below the filter"


@dataclass(frozen=True, slots=True)
class IndexedSample:
    """A sample that can be trained on: its kept turns and their lengths in tokens."""

    number: int  # in its dataset
    turns: tuple[int, ...]  # those that pass the rating filter
    later_lengths: tuple[int, ...]  # of each kept turn, when another one comes before it
    first_lengths: tuple[int, ...]  # of each kept turn, when it comes first, after the pictures
    picture_length: int
    images: int
    tiles: int

    def size(self, places: Sequence[int]) -> Size:
        """What the sample takes up with the kept turns at these places, in this order."""
        first, *later = places
        tokens = self.picture_length + self.first_lengths[first] + sum(self.later_lengths[p] for p in later)
        return Size(tokens, self.images, self.tiles)


@dataclass(slots=True)
class SampleIndex:
    """The samples to train on, and what was left out and why."""

    samples: list[IndexedSample] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # samples, by reason

    def __len__(self) -> int:
        return len(self.samples)


def build_index(
    samples: Iterable[Sample], encoder: ChatEncoder, filter_config: FilterConfig, max_images: int
) -> SampleIndex:
    """Measure every sample; what cannot be trained on is left out and counted."""
    index = SampleIndex()
    for number, sample in enumerate(samples):
        turns = kept_turns(sample.turns, filter_config)
        reason = ALL_TURNS_DROPPED if not turns else TOO_MANY_IMAGES if len(sample.images) > max_images else None
        if reason is None:
            try:
                index.samples.append(_measure(number, sample, turns, encoder))
                continue
            except DataError:
                reason = BAD_IMAGE
        index.left_out[reason] += 1
    return index


def picture_grids(sample: Sample, encoder: ChatEncoder) -> list[TileGrid]:
    """Tile grids of a sample's pictures.

    Raises:
        DataError: A picture cannot be opened.
    """
    return [encoder.layout.grid(*image_size(image, sample.name)) for image in sample.images]


def _measure(number: int, sample: Sample, turns: tuple[int, ...], encoder: ChatEncoder) -> IndexedSample:
    grids = picture_grids(sample, encoder)
    later, after_pictures = zip(*(encoder.turn_lengths(sample.turns[turn]) for turn in turns), strict=True)
    return IndexedSample(
        number=number,
        turns=turns,
        later_lengths=later,
        first_lengths=after_pictures if grids else later,
        picture_length=encoder.picture_length(grids),
        images=len(grids),
        tiles=sum(grid.num_tiles for grid in grids),
    )
