"""The figures as text for a terminal."""

from collections.abc import Iterator, Sequence

from vlmkit.config import RATING_AXES, InspectConfig
from vlmkit.reporting.statistics import RATINGS, AxisRatings, Distribution, PackFigures, Statistics
from vlmkit.reporting.words import count_of, share

LABEL = 14  # characters before each line's figures
BAR = 40  # characters of the longest bar
EIGHTHS = " ▏▎▍▌▋▊▉█"


def format_statistics(statistics: Statistics, config: InspectConfig) -> str:
    """All figures, a paragraph for each question."""
    paragraphs = [
        _counts(statistics),
        _ratings(statistics.axes) if statistics.rated else [_line("ratings", "no turn has any")],
        _kept(statistics, config),
        _lengths(statistics),
        _pictures(statistics),
        _packs(statistics.packs) if statistics.packs else [_line("packs", "none: no sample is left to train on")],
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs)


def _line(label: str, text: str) -> str:
    return f"{label:{LABEL}}{text}".rstrip()


def _counts(statistics: Statistics) -> Iterator[str]:
    for source in statistics.sources:
        rows = f"{source.rows:,} rows" + (" read of a stream" if statistics.streamed else "")
        counts = f"{source.samples:,} samples, {source.turns:,} turns, {source.pictures:,} pictures"
        more = "" if len(statistics.sources) == 1 else f"; gone through {source.epochs:.2f} times in an epoch"
        yield _line(source.name, f"{rows}: {counts}{more}")
        for skipped in source.skipped:
            yield _line("", f"skipped: {skipped}")
    for bad in statistics.bad:
        yield _line("bad", f"{bad.count:,} {bad.reason}, as {bad.example}")


def _ratings(axes: Sequence[AxisRatings]) -> Iterator[str]:
    width = max(map(len, RATING_AXES))
    outside = any(axis.outside for axis in axes)
    names = [*map(str, RATINGS), "none", *(["other"] if outside else [])]
    yield _line("ratings", f"{'turns rated':{width}}" + "".join(f"{name:>11}" for name in names))
    for axis in axes:
        counts = [*axis.counts, axis.unrated, *([axis.outside] if outside else [])]
        yield _line("", f"{axis.axis:{width}}" + "".join(f"{count:>11,}" for count in counts))
    yield ""
    yield _line("thresholds", f"{'turns / samples kept':{width}}" + "".join(f"{f'>= {r}':>15}" for r in RATINGS))
    for axis in axes:
        pairs = zip(axis.kept_turns, axis.kept_samples, strict=True)
        yield _line("", f"{axis.axis:{width}}" + "".join(f"{f'{share(t)} / {share(s)}':>15}" for t, s in pairs))


def _kept(statistics: Statistics, config: InspectConfig) -> Iterator[str]:
    counts = statistics.filter
    minima = ", ".join(f"{axis} >= {low}" for axis, low in zip(RATING_AXES, config.filter.minima, strict=True))
    yield _line("filter", minima)
    yield _line("", f"keeps {_part(counts.kept_turns, counts.turns, 'turns')}, "
                    f"{_part(counts.kept_samples, counts.samples, 'samples')}")  # fmt: skip
    for reason, count in statistics.left_out:
        yield _line("left out", f"{count_of(count, 'sample')}: {reason}")
    yield _line("trained on", _part(statistics.trained, statistics.rows, "rows"))


def _part(count: int, total: int, noun: str) -> str:
    return f"{count:,} of {total:,} {noun} ({share(count / max(total, 1))})"


def _lengths(statistics: Statistics) -> Iterator[str]:
    yield _line("tokens", f"{_figures(statistics.lengths)}; limit {statistics.max_sample_length:,}")
    yield from _histogram(statistics.lengths)
    yield _line("", f"{statistics.tokens_in_an_epoch:,} in an epoch of {statistics.samples_in_an_epoch:,} samples, "
                    f"{share(statistics.picture_token_share)} of them stand for pictures")  # fmt: skip


def _figures(values: Distribution) -> str:
    if not values.count:
        return "none"
    if values.minimum == values.maximum:
        return f"always {values.maximum:,}"
    return (
        f"min {values.minimum:,}, median {values.median:,.0f}, mean {values.mean:,.1f}, "
        f"p95 {values.p95:,.0f}, max {values.maximum:,}"
    )


def _histogram(values: Distribution) -> Iterator[str]:
    most = max((one.count for one in values.bins), default=0)
    for one in values.bins:
        yield _line("", f"{bin_name(one.start, one.stop):>15} {one.count:>10,} {_bar(one.count / most)}")


def bin_name(start: int, stop: int | None) -> str:
    """The values of a bin."""
    if stop is None:
        return f"{start:,} and more"
    return f"{start:,}" if stop == start + 1 else f"{start:,} to {stop - 1:,}"


def _bar(part: float) -> str:
    whole, eighth = divmod(round(part * BAR * 8), 8)
    return (EIGHTHS[8] * whole + EIGHTHS[eighth]).rstrip()


def _pictures(statistics: Statistics) -> Iterator[str]:
    if not statistics.pictures:
        yield _line("pictures", "none")
        return
    pictures, tiles = statistics.pictures_of_samples, statistics.tiles_of_samples
    yield _line("pictures", f"of a sample: {_figures(pictures)}")
    yield _line("tiles", f"of a picture: {_figures(statistics.tiles_of_pictures)}")
    yield _line("", f"of a sample: {_figures(tiles)}")
    grids = ", ".join(f"{rows} x {cols}: {count:,}" for (rows, cols), count in statistics.grids)
    yield _line("", f"most common grids, rows x columns: {grids}")
    yield _line("pixels", f"of the long side: {_figures(statistics.long_sides)}")
    sizes = ", ".join(f"{width} x {height}: {count:,}" for (width, height), count in statistics.picture_sizes)
    yield _line("", f"most common, width x height: {sizes}")


def _packs(packs: PackFigures) -> Iterator[str]:
    exact = packs.counted == packs.in_an_epoch
    number = f"{packs.in_an_epoch:,} in an epoch" if exact else f"about {packs.in_an_epoch:,} in an epoch"
    yield _line("packs", f"{number} of up to {packs.seq_length:,} tokens, {share(packs.utilisation)} full"
                + ("" if exact else f" (measured on the first {packs.counted:,})"))  # fmt: skip
    yield _line("", f"samples: {_figures(packs.samples)}; the latest comes {packs.lateness:,} places after its turn")
    yield _line("", f"pictures: {_figures(packs.pictures)}")
    yield _line("", f"tiles: {_figures(packs.tiles)}")
