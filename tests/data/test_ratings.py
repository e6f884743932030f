"""The rating filter and its counts, against loops that are plainly right."""

from hypothesis import given
from hypothesis import strategies as st

from vlmkit.config import RATING_AXES, FilterConfig
from vlmkit.data.ratings import FilterCounts, kept_turns
from vlmkit.types import Ratings

ratings = st.tuples(*[st.none() | st.integers(-1, 7)] * len(RATING_AXES))
minima = st.fixed_dictionaries({f"{axis}_min_rating": st.integers(1, 5) for axis in RATING_AXES})


@given(all_ratings=st.lists(ratings, max_size=8), minima=minima)
def test_a_turn_is_dropped_exactly_if_a_rating_is_below_its_minimum(
    all_ratings: list[Ratings], minima: dict[str, int]
) -> None:
    expected = []
    for number, turn_ratings in enumerate(all_ratings):
        dropped = False
        for axis, rating in zip(RATING_AXES, turn_ratings, strict=True):
            if rating is not None and rating < minima[f"{axis}_min_rating"]:
                dropped = True
        if not dropped:
            expected.append(number)
    assert list(kept_turns(all_ratings, FilterConfig(**minima).minima)) == expected


@given(samples=st.lists(st.lists(ratings, min_size=1, max_size=4), max_size=5), minima=minima, cut=st.integers(0, 5))
def test_counts_of_parts_add_up_to_the_counts_of_all(
    samples: list[list[Ratings]], minima: dict[str, int], cut: int
) -> None:
    limits = FilterConfig(**minima).minima
    parts = FilterCounts(), FilterCounts()
    for number, sample in enumerate(samples):
        parts[number >= cut].add(sample, limits, kept_turns(sample, limits))
    parts[0].merge(parts[1])
    turns = [turn for sample in samples for turn in sample]
    below = [[rating is not None and rating < limit for rating, limit in zip(t, limits, strict=True)] for t in turns]
    assert parts[0] == FilterCounts(
        turns=len(turns),
        kept_turns=sum(not any(row) for row in below),
        below=[sum(row[axis] for row in below) for axis in range(len(RATING_AXES))],
        samples=len(samples),
        kept_samples=sum(bool(kept_turns(sample, limits)) for sample in samples),
    )


def test_the_line_for_a_person_names_the_axes_that_dropped_something() -> None:
    counts = FilterCounts()
    counts.add([(1, None, 5, 5), (3, 3, 3, 1), (3, 3, 3, 3)], (2, 2, 2, 2), [2])
    assert counts.describe() == "filter keeps 1 of 3 turns (below the minimum: relevance 1, formatting 1)"
    assert FilterCounts(turns=3, kept_turns=3).describe() == ""
