"""Numbers as a report shows them, and what may be said of them."""

from vlmkit.reporting.sweeps.content import Comparison, Measure, Report, Spread, Value, Variant

MINUS = "\u2212"
NOTHING = "\u2013"  # where a number is missing


def show_value(value: Value) -> str:
    """As it is written on the command line; numbers short."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def value_text(value: float, digits: int) -> str:
    """A value with so many digits after the point."""
    return f"{value:.{digits}f}".replace("-", MINUS)


def difference_text(value: float, digits: int) -> str:
    """A difference, with its sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def half_width(spread: Spread) -> float | None:
    """Half the width of the interval; None: one seed has none."""
    if spread.low is None or spread.high is None:
        return None
    return (spread.high - spread.low) / 2


def spread_text(spread: Spread, measure: Measure) -> str:
    """The mean, half the width of its interval, and of how many seeds."""
    mean, seeds = value_text(spread.mean, measure.digits), "1 seed" if spread.seeds == 1 else f"{spread.seeds} seeds"
    half = half_width(spread)
    return f"{mean} ({seeds})" if half is None else f"{mean} ± {value_text(half, measure.digits)} ({seeds})"


def p_text(p: float | None) -> str:
    """A p-value; below a ten-thousandth only that it is."""
    if p is None:
        return NOTHING
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def one_line(text: str, characters: int) -> str:
    """Text in one line of at most so many characters, without what cannot be drawn."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return line if len(line) <= characters else line[: characters - 1] + "\u2026"


def is_told_apart(comparison: Comparison, confidence: float) -> bool:
    """Whether the two differ by more than chance explains; corrected for the number of comparisons where p is."""
    p = comparison.p if comparison.p_corrected is None else comparison.p_corrected
    return p is not None and p < 1 - confidence


def is_better(comparison: Comparison, measure: Measure) -> bool:
    """Whether the variant is better than the other, told apart or not."""
    return comparison.value > 0 if measure.higher_is_better else comparison.value < 0


def baseline_of(report: Report) -> Variant | None:
    """The variant that the others are compared with."""
    return next((variant for variant in report.variants if variant.is_baseline), None)


def tag(variant: Variant) -> str:
    """What figures and tables call a variant where its label has no room."""
    return str(variant.number + 1)


def best_of(report: Report, measure: Measure) -> float | None:
    """The best mean of all variants."""
    means = [variant.scores[measure.key].mean for variant in report.variants if measure.key in variant.scores]
    return (max if measure.higher_is_better else min)(means, default=None)
