"""The figures and some samples as one HTML file that needs nothing else: no network, no script."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vlmkit.config import InspectConfig
from vlmkit.reporting.html import write_html
from vlmkit.reporting.samples import ShownSample
from vlmkit.reporting.statistics import RATINGS, AxisRatings, Distribution, Statistics
from vlmkit.reporting.text import bin_name
from vlmkit.reporting.words import count_of, share

Entries = list[tuple[str, int, str]]  # of a table of bars: label, count, and what kind of bar it is


def write_page(
    path: Path,
    title: str,
    command: str,
    statistics: Statistics,
    samples: Sequence[ShownSample],
    config: InspectConfig,
) -> None:
    """Write the page; all text that comes from data is escaped."""
    functions: dict[str, Callable[..., object]] = {
        "number": "{:,}".format,
        "share": share,
        "words": lambda name: name.replace("_", " "),
        "bin_entries": _bin_entries,
        "pair_entries": _pair_entries,
        "rating_entries": _rating_entries,
        "most_turns": lambda axes: max(max(*axis.counts, axis.unrated) for axis in axes),
        "count_of": count_of,
        "bin_name": bin_name,
    }
    write_html(
        path,
        "inspect.html",
        functions,
        title=title,
        command=command,
        statistics=statistics,
        samples=samples,
        config=config,
        ratings=RATINGS,
    )


def _bin_entries(values: Distribution) -> Entries:
    return [(bin_name(one.start, one.stop), one.count, "") for one in values.bins]


def _pair_entries(counts: Sequence[tuple[tuple[int, int], int]]) -> Entries:
    return [(f"{first:,} \u00d7 {second:,}", count, "") for (first, second), count in counts]


def _rating_entries(axis: AxisRatings) -> Entries:
    rated = zip(RATINGS, axis.counts, strict=True)
    entries = [(str(rating), count, "dropped" if rating < axis.minimum else "") for rating, count in rated]
    other = [("other", axis.outside, "")] if axis.outside else []
    return [*entries, ("none", axis.unrated, "unrated"), *other]
