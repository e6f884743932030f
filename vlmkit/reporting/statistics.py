"""The figures of a survey: arithmetic on the columns of its indexes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmkit.config import RATING_AXES, InspectConfig
from vlmkit.data.index import NO_RATING
from vlmkit.data.packing import Size
from vlmkit.data.plan import Pack
from vlmkit.data.ratings import FilterCounts
from vlmkit.processing.images import ImageLayout
from vlmkit.reporting.survey import Survey, SurveyedSource

RATINGS = (1, 2, 3, 4, 5)
MOST_COMMON = 8  # entries of a list that could be long
NUM_BINS = 16  # at most, of a histogram
PACKS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Bin:
    """How many values lie between two bounds."""

    start: int
    stop: int | None  # the first value above it; None: all that follow
    count: int


@dataclass(frozen=True, slots=True)
class Distribution:
    """Whole numbers, in short; all 0 if there are none."""

    count: int
    minimum: int
    median: float
    mean: float
    p95: float
    maximum: int
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class AxisRatings:
    """The ratings of one axis, and what each minimum would keep if it were the only one."""

    axis: str
    minimum: int  # of the configured filter
    counts: tuple[int, ...]  # turns rated 1, 2, 3, 4, 5
    unrated: int  # turns
    outside: int  # turns with a rating that is none of these
    kept_turns: tuple[float, ...]  # share, for the minima 1, 2, 3, 4, 5
    kept_samples: tuple[float, ...]  # share of the samples with a turn that is kept


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """What one source holds."""

    name: str
    rows: int
    samples: int  # rows that can be read
    turns: int
    pictures: int
    trained: int  # samples
    epochs: float  # how often it is gone through in one epoch of the run
    skipped: tuple[str, ...]  # files that cannot be read


@dataclass(frozen=True, slots=True)
class BadRows:
    """Rows that cannot be read, for one reason."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A sample in a pack."""

    name: str
    size: Size


@dataclass(frozen=True, slots=True)
class ShownPack:
    """A pack to be drawn."""

    segments: tuple[Segment, ...]
    size: Size


@dataclass(frozen=True, slots=True)
class PackFigures:
    """The packs of the first epoch; of a large one, the first packs."""

    counted: int  # packs that the figures are of
    in_an_epoch: int  # estimated if more than were counted
    seq_length: int  # tokens
    utilisation: float  # share of the tokens
    samples: Distribution  # in a pack, and so on
    pictures: Distribution
    tiles: Distribution
    lateness: int  # places, of the most delayed sample
    shown: tuple[ShownPack, ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """All figures."""

    sources: tuple[SourceCounts, ...]
    streamed: bool
    bad: tuple[BadRows, ...]
    axes: tuple[AxisRatings, ...]
    filter: FilterCounts
    left_out: tuple[tuple[str, int], ...]  # reason → readable samples
    samples_in_an_epoch: int
    tokens_in_an_epoch: int
    picture_token_share: float
    max_sample_length: int
    lengths: Distribution  # tokens of the samples that the filter keeps, limits aside
    pictures_of_samples: Distribution  # of all readable samples, as the following
    tiles_of_samples: Distribution
    tiles_of_pictures: Distribution
    grids: tuple[tuple[tuple[int, int], int], ...]  # most common (rows, columns) → pictures
    picture_sizes: tuple[tuple[tuple[int, int], int], ...]  # most common (width, height) → pictures
    long_sides: Distribution  # pixels
    packs: PackFigures | None  # None: there is nothing to pack

    @property
    def rows(self) -> int:
        """Of all sources."""
        return sum(source.rows for source in self.sources)

    @property
    def samples(self) -> int:
        """Rows that can be read."""
        return sum(source.samples for source in self.sources)

    @property
    def turns(self) -> int:
        """Of all readable samples."""
        return sum(source.turns for source in self.sources)

    @property
    def pictures(self) -> int:
        """Of all readable samples."""
        return sum(source.pictures for source in self.sources)

    @property
    def trained(self) -> int:
        """Samples that neither the filter nor the limits leave out."""
        return sum(source.trained for source in self.sources)

    @property
    def rated(self) -> bool:
        """Whether any turn has a rating."""
        return any(axis.unrated < self.turns for axis in self.axes)


def compute_statistics(survey: Survey, config: InspectConfig, layout: ImageLayout) -> Statistics:
    """All figures of a survey."""
    columns = [_Columns(one) for one in survey.sources]
    ratings, turns = (np.concatenate([getattr(c, name) for c in columns]) for name in ("ratings", "turns"))
    sizes, pictures = (np.concatenate([getattr(c, name) for c in columns]) for name in ("sizes", "pictures"))
    unique, of_picture, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    grids = [layout.grid(width, height) for width, height in unique.tolist()]
    tiles = np.array([grid.num_tiles for grid in grids], np.int64)[of_picture.reshape(-1)]
    grid_counts: Counter[tuple[int, int]] = Counter()
    for grid, count in zip(grids, counts.tolist(), strict=True):
        grid_counts[grid.rows, grid.cols] += count
    size_counts = Counter({(w, h): n for (w, h), n in zip(unique.tolist(), counts.tolist(), strict=True)})

    epochs = survey.plan.epochs_of_sources
    totals = [one.trained_sizes.sum(axis=0) * laps for one, laps in zip(survey.sources, epochs, strict=True)]
    tokens, _, trained_tiles = np.sum(totals, axis=0).tolist()
    counted = FilterCounts()
    for one in survey.sources:
        counted.merge(one.trained.counts)
    bad = Counter(error.reason for one in survey.sources for error in one.trained.bad)
    return Statistics(
        sources=tuple(c.counts(laps) for c, laps in zip(columns, epochs, strict=True)),
        streamed=survey.streamed,
        bad=tuple(BadRows(reason, count, _example(survey.sources, reason)) for reason, count in bad.most_common()),
        axes=tuple(
            _axis(axis, minimum, ratings[:, number], turns)
            for number, (axis, minimum) in enumerate(zip(RATING_AXES, config.filter.minima, strict=True))
        ),
        filter=counted,
        left_out=tuple((survey.plan.left_out - bad).most_common()),
        samples_in_an_epoch=len(survey.plan),
        tokens_in_an_epoch=round(tokens),
        picture_token_share=trained_tiles * layout.tokens_per_tile / max(tokens, 1),
        max_sample_length=config.max_sample_length,
        lengths=distribution(np.concatenate([one.sizes[:, 0] for one in survey.sources])),
        pictures_of_samples=distribution(pictures),
        tiles_of_samples=distribution(_sums(tiles, pictures)),
        tiles_of_pictures=distribution(tiles),
        grids=tuple(grid_counts.most_common(MOST_COMMON)),
        picture_sizes=tuple(size_counts.most_common(MOST_COMMON)),
        long_sides=distribution(sizes.max(axis=1, initial=0)),
        packs=_packs(survey) if len(survey.plan) else None,
    )


class _Columns:
    """The columns of one source's index, without the rows that are not looked at."""

    def __init__(self, one: SurveyedSource) -> None:
        index = one.index
        inside = one.part[index.rows]
        turns, pictures = np.diff(index.turn_ends, prepend=0), np.diff(index.picture_ends, prepend=0)
        self._surveyed = one
        self.turns = turns[inside]  # of each sample
        self.pictures = pictures[inside]
        self.ratings = index.ratings[np.repeat(inside, turns)]  # [turns, 4]
        self.sizes = index.picture_sizes[np.repeat(inside, pictures)]  # [pictures, 2]

    def counts(self, epochs: float) -> SourceCounts:
        one = self._surveyed
        return SourceCounts(
            name=one.source.name,
            rows=int(one.part.sum()),
            samples=len(self.turns),
            turns=len(self.ratings),
            pictures=len(self.sizes),
            trained=len(one.trained),
            epochs=epochs,
            skipped=one.source.skipped,
        )


def distribution(values: NDArray[np.integer]) -> Distribution:
    """Key figures and a histogram of whole numbers from 0 on.

    The histogram has bins of a round width up to the 95th percentile at least, and one for all that follow.
    """
    if not len(values):
        return Distribution(0, 0, 0.0, 0.0, 0.0, 0, ())
    low, high = int(values.min()), int(values.max())
    width = _round_width((int(np.percentile(values, 95)) - low + 1) / (NUM_BINS - 1))
    start = low // width * width
    number = np.minimum((values - start) // width, NUM_BINS - 1)
    counts = np.bincount(number).tolist()
    is_open = high >= start + NUM_BINS * width
    bins = [Bin(start + n * width, start + (n + 1) * width, count) for n, count in enumerate(counts)]
    if is_open:
        bins[-1] = Bin(bins[-1].start, None, bins[-1].count)
    return Distribution(
        count=len(values),
        minimum=low,
        median=float(np.median(values)),
        mean=float(values.mean()),
        p95=float(np.percentile(values, 95)),
        maximum=high,
        bins=tuple(bins),
    )


def _round_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, … that is not below."""
    width, steps = 1, (2, 2.5, 2)
    for place in range(100):
        if width >= least:
            break
        width = int(width * steps[place % 3])
    return width


def _axis(axis: str, minimum: int, ratings: NDArray[np.int8], turns: NDArray[np.int64]) -> AxisRatings:
    counts = tuple(int((ratings == rating).sum()) for rating in RATINGS)
    unrated = int((ratings == NO_RATING).sum())
    passing = [(ratings == NO_RATING) | (ratings >= rating) for rating in RATINGS]
    return AxisRatings(
        axis=axis,
        minimum=minimum,
        counts=counts,
        unrated=unrated,
        outside=len(ratings) - unrated - sum(counts),
        kept_turns=tuple(float(kept.mean()) if len(kept) else 0.0 for kept in passing),
        kept_samples=tuple(float((_sums(kept, turns) > 0).mean()) if len(turns) else 0.0 for kept in passing),
    )


def _sums(values: NDArray[np.generic], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of each run of values, given the lengths of the runs."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(counts)
    return total[ends] - total[ends - counts]


def _example(sources: Iterable[SurveyedSource], wanted: str) -> str:
    """The first row that is bad for this reason, and more about it."""
    for one in sources:
        for row, error in zip(one.index.bad_rows.tolist(), one.index.bad, strict=True):
            if one.part[row] and error.reason == wanted:
                return f"{one.name(row)}: {error.detail}" if error.detail else one.name(row)
    raise AssertionError("reasons are counted from the same rows")


def _packs(survey: Survey) -> PackFigures:
    plan = survey.plan
    packs = plan.first_packs
    sizes = np.array([pack.size for pack in packs])
    samples = np.array([len(pack.visits) for pack in packs])
    return PackFigures(
        counted=len(packs),
        in_an_epoch=round(len(packs) * len(plan) / samples.sum()),
        seq_length=plan.seq_length,
        utilisation=float(sizes[:, 0].mean()) / plan.seq_length,
        samples=distribution(samples),
        pictures=distribution(sizes[:, 1]),
        tiles=distribution(sizes[:, 2]),
        lateness=max(pack.lateness for pack in packs),
        shown=tuple(_shown(pack, survey.sources) for pack in packs[:PACKS_SHOWN]),
    )


def _shown(pack: Pack, sources: Sequence[SurveyedSource]) -> ShownPack:
    segments = []
    for visit in pack.visits:
        one = sources[visit.source]
        found = one.first_visit(visit.row)
        assert found is not None  # what is packed has passed the filter
        segments.append(Segment(one.name(visit.row), found[1]))
    return ShownPack(tuple(segments), pack.size)
