"""The rating filter: which turns of a sample are good enough to learn from.

FineVision's columns of minima over a row (``relevance_min``, …) are not used. Beside the ratings of turns they add
nothing; without these they say that some turn is low, not which, and a filter for turns would have to drop them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vlmkit.config import RATING_AXES
from vlmkit.types import Ratings


@dataclass(slots=True)
class FilterCounts:
    """What the filter kept and dropped."""

    turns: int = 0
    kept_turns: int = 0
    below: list[int] = field(default_factory=lambda: [0] * len(RATING_AXES))  # turns below each axis's minimum
    samples: int = 0
    kept_samples: int = 0

    def add(self, ratings: Sequence[Ratings], minima: Sequence[int], kept: Sequence[int]) -> None:
        """Count one sample."""
        self.turns += len(ratings)
        self.kept_turns += len(kept)
        self.samples += 1
        self.kept_samples += bool(kept)
        for axis, minimum in enumerate(minima):
            self.below[axis] += sum(rated[axis] is not None and rated[axis] < minimum for rated in ratings)  # type: ignore[operator]

    def merge(self, other: "FilterCounts") -> None:
        """Add the counts of another part of the data."""
        self.turns += other.turns
        self.kept_turns += other.kept_turns
        self.below = [a + b for a, b in zip(self.below, other.below, strict=True)]
        self.samples += other.samples
        self.kept_samples += other.kept_samples

    def describe(self) -> str:
        """One line, for a person; empty if nothing was dropped."""
        if self.kept_turns == self.turns:
            return ""
        axes = ", ".join(f"{axis} {count:,}" for axis, count in zip(RATING_AXES, self.below, strict=True) if count)
        return f"filter keeps {self.kept_turns:,} of {self.turns:,} turns (below the minimum: {axes})"


def passes(ratings: Ratings, minima: Sequence[int]) -> bool:
    """Whether no rating of a turn is below its axis's minimum; a missing rating passes."""
    return all(rating is None or rating >= minimum for rating, minimum in zip(ratings, minima, strict=True))


def kept_turns(ratings: Sequence[Ratings], minima: Sequence[int]) -> tuple[int, ...]:
    """Numbers of the turns that pass, in order; empty: the sample is dropped."""
    return tuple(number for number, rated in enumerate(ratings) if passes(rated, minima))
