from hypothesis import given
from hypothesis import strategies as st

from vlmkit.config import RATING_AXES, FilterConfig
from vlmkit.data.ratings import kept_turns
from vlmkit.types import Turn

ratings = st.tuples(*[st.none() | st.integers(1, 5)] * len(RATING_AXES))
minima = st.fixed_dictionaries({f"{axis}_min_rating": st.integers(1, 5) for axis in RATING_AXES})


@given(all_ratings=st.lists(ratings, max_size=8), minima=minima)
def test_a_turn_is_dropped_exactly_if_a_rating_is_below_its_minimum(
    all_ratings: list[tuple[int | None, ...]], minima: dict[str, int]
) -> None:
    turns = tuple(Turn("q", "a", turn_ratings) for turn_ratings in all_ratings)
    expected = []
    for number, turn_ratings in enumerate(all_ratings):
        dropped = False
        for axis, rating in zip(RATING_AXES, turn_ratings, strict=True):
            if rating is not None and rating < minima[f"{axis}_min_rating"]:
                dropped = True
        if not dropped:
            expected.append(number)
    assert list(kept_turns(turns, FilterConfig(**minima))) == expected
