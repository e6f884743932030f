"""The rating filter: which turns of a sample are good enough to learn from."""

from vlmkit.config import FilterConfig
from vlmkit.types import Turn


def passes(turn: Turn, minima: tuple[int, ...]) -> bool:
    """Whether no rating of the turn is below its axis's minimum; a missing rating passes."""
    return all(rating is None or rating >= minimum for rating, minimum in zip(turn.ratings, minima, strict=True))


def kept_turns(turns: tuple[Turn, ...], config: FilterConfig) -> tuple[int, ...]:
    """Numbers of the turns that pass, in order; empty: the sample is dropped."""
    minima = config.minima
    return tuple(number for number, turn in enumerate(turns) if passes(turn, minima))
