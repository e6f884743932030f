"""What is trained on and what it takes up: the columns of the index and the stream, against plain loops.

``reference`` below says what must come out, row by row, without an index and without numpy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import as_idefics3
from tests.data.datasets import picture, row, turn, write_parquet, write_saved, write_tar
from tests.data.test_files import damage
from vlmkit.config import RATING_AXES, KnapsackConfig, Layout
from vlmkit.data.files import ArrowFile, ParquetFile, RowFile, RowsFile, TarFile
from vlmkit.data.index import SampleIndex, load_or_build_index
from vlmkit.data.lanes import Selection, _Found
from vlmkit.data.plan import (
    ALL_TURNS_DROPPED,
    TOO_LONG,
    TOO_MANY_IMAGES,
    TOO_MANY_TILES,
    Candidates,
    Limits,
    Plan,
)
from vlmkit.data.ratings import FilterCounts
from vlmkit.data.rows import RATING_COLUMNS
from vlmkit.data.sources import Source
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout, image_size
from vlmkit.processing.tokenizer import load_tokenizer
from vlmkit.types import Turn

NO_LIMITS = Limits(10**6, 100, 100, None)
NOWHERE = Path("/proc/nothing-can-be-made-here")
SIZES = [(8, 8), (300, 40), (40, 300), (1, 999), (130, 130)]
PICTURES = [picture(*size) for size in SIZES]
SIZE_OF = dict(zip(PICTURES, SIZES, strict=True))

texts = st.text(max_size=12) | st.sampled_from(
    ["\n", "\n\nq", "\n\n\n", " q", "你好🙂", "<|image|>", "a<|im_end|>\n", "<|global_image|><row_1_col_1>", "a" * 99]
)
answers = texts.filter(lambda text: bool(text.strip()))


SMOLLM2 = str(Path(__file__).parents[1] / "golden" / "tokenizer")


@pytest.fixture(scope="module")
def encoder(layout: ImageLayout) -> ChatEncoder:
    """With SmolLM2's tokenizer: unlike the tiny one it joins the newline after ``user`` with what follows."""
    return ChatEncoder(load_tokenizer(SMOLLM2), layout)


@pytest.fixture(scope="module", params=Layout, ids=lambda layout: layout.value)
def any_encoder(request: Any, encoder: ChatEncoder, layout: ImageLayout) -> ChatEncoder:
    """The same, in each layout."""
    if request.param is Layout.nanovlm:
        return encoder
    return ChatEncoder(load_tokenizer(SMOLLM2, Layout.idefics3), as_idefics3(layout))


@st.composite
def rated_rows(draw: st.DrawFn, contradict: bool = False) -> dict[str, Any]:
    """A row with ratings of all kinds; if asked for, its lists may have any length and its answers may be blank."""
    turns = draw(st.integers(1, 4))
    made: dict[str, Any] = {
        "images": draw(st.lists(st.sampled_from(PICTURES), max_size=3)),
        "texts": [turn(draw(texts), draw(texts if contradict else answers)) for _ in range(turns)],
    }
    for column in RATING_COLUMNS:
        length = draw(st.integers(0, 4)) if contradict and draw(st.integers(0, 5)) == 0 else turns
        values = st.lists(st.none() | st.integers(0, 6), min_size=length, max_size=length)
        rated = draw(st.none() | values | values)
        if rated is not None or draw(st.booleans()):
            made[column] = rated
    return made


many_rows = st.lists(rated_rows(), max_size=6)
odd_rows = st.lists(rated_rows(contradict=True), min_size=1, max_size=6)
all_minima = st.tuples(*[st.integers(1, 5)] * len(RATING_AXES)) | st.just((1,) * len(RATING_AXES))
all_limits = st.builds(
    Limits,
    tokens=st.just(10**6) | st.integers(20, 300),
    images=st.integers(1, 3),
    pack_images=st.integers(1, 3),
    pack_tiles=st.none() | st.integers(1, 20),
)


@dataclass
class Expected:
    """What the filter and the limits make of some rows."""

    kept: dict[int, list[int]] = field(default_factory=dict)  # row → its turns
    counts: FilterCounts = field(default_factory=FilterCounts)
    left_out: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)


def reference(
    rows: Sequence[Mapping[str, Any]],
    minima: Sequence[int],
    limits: Limits,
    encoder: ChatEncoder,
    ratings_first: bool = False,
) -> Expected:
    """All turns of each sample are visited. ``ratings_first``: a row is judged by its ratings if these suffice."""
    expected = Expected()
    for number, made in enumerate(rows):
        lists = [made[column] for column in RATING_COLUMNS if made.get(column) is not None]
        turns = list(range(len(made["texts"])))
        fits = all(len(each) == len(turns) for each in lists)
        if ratings_first and lists and lists[0]:
            if any(len(each) != len(lists[0]) for each in lists):
                expected.bad["ratings do not fit the turns"] += 1
                continue
            if not count(made, list(range(len(lists[0]))), minima, FilterCounts()):
                count(made, list(range(len(lists[0]))), minima, expected.counts)
                expected.left_out[ALL_TURNS_DROPPED] += 1
                continue
        if not fits:
            expected.bad["ratings do not fit the turns"] += 1
            continue
        turns = [turn for turn in turns if made["texts"][turn]["assistant"].strip()]
        if not turns:
            expected.bad["every answer is empty"] += 1
            continue
        kept = count(made, turns, minima, expected.counts)
        if reason := why_left_out(made, kept, limits, encoder):
            expected.left_out[reason] += 1
        else:
            expected.kept[number] = kept
    return expected


def count(made: Mapping[str, Any], turns: Sequence[int], minima: Sequence[int], counts: FilterCounts) -> list[int]:
    """Turns that pass, and the counts of one sample."""
    kept = []
    for number in turns:
        passes = True
        for axis, (column, minimum) in enumerate(zip(RATING_COLUMNS, minima, strict=True)):
            values = made.get(column)
            if values is not None and values[number] is not None and values[number] < minimum:
                counts.below[axis] += 1
                passes = False
        counts.turns += 1
        counts.kept_turns += passes
        if passes:
            kept.append(number)
    counts.samples += 1
    counts.kept_samples += bool(kept)
    return kept


def why_left_out(made: Mapping[str, Any], kept: Sequence[int], limits: Limits, encoder: ChatEncoder) -> str | None:
    if not kept:
        return ALL_TURNS_DROPPED
    if len(made["images"]) > limits.images:
        return TOO_MANY_IMAGES
    tokens, tiles = taken_up(made, kept, encoder)
    if tokens > limits.tokens:
        return TOO_LONG
    if len(made["images"]) > limits.pack_images or (limits.pack_tiles is not None and tiles > limits.pack_tiles):
        return TOO_MANY_TILES
    return None


def taken_up(made: Mapping[str, Any], turns: Sequence[int], encoder: ChatEncoder) -> tuple[int, int]:
    """Tokens and tiles of a visit of these turns, in this order."""
    grids = [encoder.layout.grid(*SIZE_OF[image]) for image in made["images"]]
    visited = [Turn(made["texts"][number]["user"], made["texts"][number]["assistant"]) for number in turns]
    return len(encoder.encode_sample(visited, grids).input_ids), sum(grid.num_tiles for grid in grids)


def indexed(rows: Sequence[Mapping[str, Any]], encoder: ChatEncoder) -> SampleIndex:
    return load_or_build_index(Source("rows", rows), encoder, NOWHERE, lambda starts: starts)


def candidates(
    rows: Sequence[Mapping[str, Any]],
    encoder: ChatEncoder,
    minima: Sequence[int] = (1, 1, 1, 1),
    limits: Limits = NO_LIMITS,
    turns_per_visit: int | None = None,
    part: Sequence[int] | None = None,
) -> Candidates:
    inside = np.ones(len(rows), bool)
    if part is not None:
        inside[:] = False
        inside[list(part)] = True
    return Candidates(indexed(rows, encoder), inside, encoder, minima, limits, turns_per_visit)


def visited(found: Candidates, seed: int = 0, epoch: int = 0) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Row → its turns and what they take up, of one epoch."""
    sizes, visit = found.visits(seed, epoch, 0)
    return {visit(n).row: (visit(n).turns, tuple(sizes[n].tolist())) for n in range(len(found))}


# ---- by number -----------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(rows=odd_rows, minima=all_minima, limits=all_limits)
def test_filter_and_limits_are_those_of_plain_loops(
    encoder: ChatEncoder, rows: list[dict[str, Any]], minima: tuple[int, ...], limits: Limits
) -> None:
    expected = reference(rows, minima, limits, encoder)
    found = candidates(rows, encoder, minima, limits)
    answered = {number: blanks_left_out(rows[number]) for number in range(len(rows))}
    of_row = {row: [answered[row][turn] for turn in turns] for row, (turns, _) in visited(found).items()}
    assert of_row == expected.kept
    assert found.counts == expected.counts
    assert found.left_out == expected.left_out + expected.bad
    assert Counter(error.reason for error in found.bad) == expected.bad


def blanks_left_out(made: Mapping[str, Any]) -> list[int]:
    """Numbers of the turns with an answer: a visit counts these alone."""
    return [number for number, each in enumerate(made["texts"]) if each["assistant"].strip()]


@settings(max_examples=30)
@given(rows=many_rows, minima=all_minima, turns=st.sampled_from([None, 1, 2]), epoch=st.integers(0, 2))
def test_what_a_visit_takes_up_is_what_its_encoding_has(
    any_encoder: ChatEncoder, rows: list[dict[str, Any]], minima: tuple[int, ...], turns: int | None, epoch: int
) -> None:
    found = visited(candidates(rows, any_encoder, minima, turns_per_visit=turns), seed=epoch, epoch=epoch)
    kept = reference(rows, minima, NO_LIMITS, any_encoder).kept
    assert found.keys() == kept.keys()
    for number, (drawn, (tokens, images, tiles)) in found.items():
        assert len(drawn) == min(turns or 99, len(kept[number]))
        assert set(drawn) <= set(kept[number])
        assert len(set(drawn)) == len(drawn)
        assert (tokens, tiles) == taken_up(rows[number], drawn, any_encoder)
        assert images == len(rows[number]["images"])


@settings(max_examples=20)
@given(rows=many_rows, turns=st.sampled_from([1, 2]), limit=st.integers(10, 120))
def test_no_visit_that_may_be_drawn_is_longer_than_the_limit(
    encoder: ChatEncoder, rows: list[dict[str, Any]], turns: int, limit: int
) -> None:
    found = candidates(rows, encoder, limits=Limits(limit, 100, 100, None), turns_per_visit=turns)
    for number in visited(found):
        possible = count(rows[number], range(len(rows[number]["texts"])), (1, 1, 1, 1), FilterCounts())
        drawn = permutations(possible, min(turns, len(possible)))
        assert max(taken_up(rows[number], order, encoder)[0] for order in drawn) <= limit


@settings(max_examples=15)
@given(rows=many_rows, part=st.sets(st.integers(0, 5)))
def test_a_part_is_its_own_rows(encoder: ChatEncoder, rows: list[dict[str, Any]], part: set[int]) -> None:
    inside = sorted(part & set(range(len(rows))))
    found = candidates(rows, encoder, (3, 1, 2, 1), part=inside)
    alone = reference([rows[number] for number in inside], (3, 1, 2, 1), NO_LIMITS, encoder)
    assert sorted(visited(found)) == [inside[number] for number in alone.kept]
    assert (found.counts, found.left_out) == (alone.counts, alone.left_out)


def test_the_tokenizer_of_these_tests_joins_across_the_seam(encoder: ChatEncoder) -> None:
    later, first = encoder.turn_lengths(Turn("\n\nq", "a"))
    assert later < first


@pytest.mark.parametrize("turns_per_visit", [None, 1])
def test_a_sample_of_exactly_the_limit_is_kept_and_a_longer_one_is_not(
    any_encoder: ChatEncoder, turns_per_visit: int | None
) -> None:
    """So no sample is left out by number that a stream keeps."""
    for images in ([], [PICTURES[0]], [PICTURES[1], PICTURES[2]]):
        texts = [turn("\n\nq"), turn("\n\n\n"), turn("q")][:turns_per_visit]
        made = {"images": images, "texts": texts}
        tokens, _ = taken_up(made, range(len(texts)), any_encoder)
        limits = [Limits(limit, 9, 9, None) for limit in (tokens, tokens - 1)]
        found = [candidates([made], any_encoder, limits=limit, turns_per_visit=turns_per_visit) for limit in limits]
        assert list(map(len, found)) == [1, 0]


def test_many_pictures_are_numbered_with_longer_numbers(any_encoder: ChatEncoder) -> None:
    rows = [row([PICTURES[0]] * count, 2) for count in (1, 2, 10, 11, 12)]
    for number, (turns, (tokens, images, tiles)) in visited(candidates(rows, any_encoder)).items():
        assert (tokens, tiles) == taken_up(rows[number], turns, any_encoder)
        assert images == len(rows[number]["images"])


def test_the_turns_of_an_epoch_are_the_same_every_time_and_differ_between_epochs(encoder: ChatEncoder) -> None:
    rows = [row([], 9) for _ in range(5)]
    drawn = [visited(candidates(rows, encoder, turns_per_visit=3), 7, epoch) for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_text_alone_and_no_rows_at_all_are_indexed(encoder: ChatEncoder) -> None:
    assert len(candidates([row(None)] * 3, encoder)) == 3
    empty = candidates([], encoder)
    assert (len(empty), empty.counts) == (0, FilterCounts())
    assert visited(empty) == {}


def test_shares_and_epochs_of_a_mixture_are_those_of_the_weights(encoder: ChatEncoder) -> None:
    parts = [candidates([row()] * count, encoder) for count in (30, 10)]
    plan = Plan(parts, KnapsackConfig(), seed=0, weights=[1, 3])
    assert plan.shares_of_sources == [0.25, 0.75]
    assert plan.epochs_of_sources == pytest.approx([10 / 30, 30 / 10])


# ---- streamed ------------------------------------------------------------------------------------------


def selection(encoder: ChatEncoder, minima: Sequence[int], limits: Limits = NO_LIMITS) -> Selection:
    return Selection(encoder, tuple(minima), limits, None, seed=0)


def look_at_all(file: RowFile, chosen: Selection) -> tuple[list[_Found], Expected]:
    """Every row of a file, and what came of it."""
    opened = file.open()
    seen, met = [], Expected()
    for number, size in enumerate(opened.group_sizes):
        group = opened.group(number)
        for place in range(size):
            found = chosen.look_at(group, place, "source/7", None, (0,), _Found(*[(0, 0, 0)] * 2))  # type: ignore[arg-type]
            if found.ratings:
                met.counts.add(found.ratings, chosen.minima, found.kept)
            if found.loaded:
                met.kept[len(seen)] = list(found.kept)
            met.left_out.update([found.left_out] if found.left_out else [])
            met.bad.update([found.bad.reason] if found.bad else [])
            seen.append(found)
    return seen, met


@pytest.mark.parametrize("kind", ["parquet", "tar", "saved", "memory"])
@settings(max_examples=25)
@given(rows=odd_rows, minima=all_minima, limits=all_limits)
def test_the_stream_filters_and_limits_as_plain_loops_do(
    encoder: ChatEncoder,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    rows: list[dict[str, Any]],
    minima: tuple[int, ...],
    limits: Limits,
) -> None:
    folder = tmp_path_factory.mktemp(kind)
    if kind == "tar":  # an empty list of pictures and none at all are the same there
        rows = [{**each, "images": each["images"] or []} for each in rows]
    file: RowFile
    match kind:
        case "parquet":
            file = ParquetFile(str(write_parquet(folder / "a.parquet", rows, row_group_size=2)))
        case "tar":
            file = TarFile(write_tar(folder / "a.tar", rows))
        case "saved":
            file = ArrowFile(write_saved(folder / "a", rows))
        case _:
            file = RowsFile("a", rows)
    expected = reference(rows, minima, limits, encoder, ratings_first=kind != "memory")
    seen, met = look_at_all(file, selection(encoder, minima, limits))
    answered = [blanks_left_out(each) for each in rows]
    met.kept = {number: [answered[number][turn] for turn in turns] for number, turns in met.kept.items()}
    assert met == expected
    for number, turns in expected.kept.items():
        assert seen[number].size[::2] == taken_up(rows[number], turns, encoder)


def test_by_number_and_streamed_keep_the_same(encoder: ChatEncoder) -> None:
    rows = [row([PICTURES[n % 5]] * (n % 4), 1 + n % 3, relevance=[1 + (n + t) % 5 for t in range(1 + n % 3)])
            for n in range(40)]  # fmt: skip
    limits = Limits(180, 2, 2, 3)
    found = candidates(rows, encoder, (3, 1, 1, 1), limits)
    _, met = look_at_all(RowsFile("a", rows), selection(encoder, (3, 1, 1, 1), limits))
    assert {number: list(turns) for number, (turns, _) in visited(found).items()} == met.kept
    assert (found.counts, found.left_out) == (met.counts, met.left_out)
    assert set(found.left_out) == {ALL_TURNS_DROPPED, TOO_LONG, TOO_MANY_IMAGES, TOO_MANY_TILES}


# ---- nothing is read for nothing -----------------------------------------------------------------------


class Watched:
    """A group that knows which whole rows were asked for."""

    def __init__(self, group: Any) -> None:
        self.ratings = group.ratings
        self._row = group.row
        self.read: list[int] = []

    def row(self, number: int) -> Mapping[str, Any]:
        self.read.append(number)
        return self._row(number)


@pytest.mark.parametrize("kind", ["parquet", "tar", "saved"])
def test_of_a_row_that_cannot_pass_only_the_ratings_are_read(encoder: ChatEncoder, tmp_path: Path, kind: str) -> None:
    rows = [row([PICTURES[0]], 2, relevance=values) for values in ([1, 2], [1, 4], [None, 1], [2, 2], [3, 3])]
    files: dict[str, RowFile] = {
        "parquet": ParquetFile(str(write_parquet(tmp_path / "a.parquet", rows, row_group_size=5))),
        "tar": TarFile(write_tar(tmp_path / "a.tar", rows)),
        "saved": ArrowFile(write_saved(tmp_path / "a", rows)),
    }
    group = Watched(files[kind].open().group(0))
    at = _Found(*[(0, 0, 0)] * 2)  # type: ignore[arg-type]
    for number in range(5):
        selection(encoder, (3, 1, 1, 1)).look_at(group, number, "", None, (0,), at)
    assert group.read == [1, 2, 4]


def test_damage_in_what_is_filtered_out_is_never_met(encoder: ChatEncoder, tmp_path: Path) -> None:
    rows = [row([PICTURES[0]], relevance=[1]) for _ in range(6)]
    path = write_parquet(tmp_path / "a.parquet", rows, row_group_size=3)
    damage(damage(path, "images"), "texts")
    damage(path, "images", group=1)
    _, met = look_at_all(ParquetFile(str(path)), selection(encoder, (2, 1, 1, 1)))
    assert (met.bad, met.left_out) == (Counter(), Counter({ALL_TURNS_DROPPED: 6}))
    _, met = look_at_all(ParquetFile(str(path)), selection(encoder, (1, 1, 1, 1)))
    assert met.bad == {"row cannot be read": 6}


def test_the_sizes_in_these_tests_are_those_of_the_pictures() -> None:
    assert [image_size(image, "") for image in PICTURES] == SIZES
