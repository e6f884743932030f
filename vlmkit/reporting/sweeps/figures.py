"""The figures of a report, narrow enough for a phone. The only use of matplotlib.

Each ``draw_`` function makes a figure of a report's nouns and keeps nothing: it can be shown in a notebook, saved by
``save_png`` or put into a page by ``as_svg``. Its colours are those of the page in its light form.
"""

import io
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vlmkit.reporting.sweeps.content import (
    Comparison,
    Curves,
    HeatMap,
    Line,
    Measure,
    Report,
    ThresholdLine,
    Thresholds,
    Variant,
)
from vlmkit.reporting.sweeps.svg import inline_svg
from vlmkit.reporting.sweeps.wording import (
    baseline_of,
    difference_text,
    is_better,
    is_told_apart,
    one_line,
    show_value,
    tag,
    value_text,
)
from vlmkit.reporting.words import count_of

Drawn: TypeAlias = Figure  # what the others call it, as matplotlib is used here alone

COLOURS = {  # name of the page's variable → its value where that is light; told apart by who sees few colours, too
    "card": "#ffffff",
    "ink": "#1a1d21",
    "faint": "#565e69",
    "line": "#dddfe3",
    "series-1": "#1e3ce5",
    "series-2": "#9d6b00",
    "series-3": "#267c65",
    "series-4": "#b23cad",
    "series-5": "#4c3101",
}
CARD, INK, FAINT, LINE = COLOURS["card"], COLOURS["ink"], COLOURS["faint"], COLOURS["line"]
BETTER, WORSE = COLOURS["series-1"], COLOURS["series-2"]
WIDTH = 316  # pixels, as all lengths here; what a phone of 360 shows inside a page's frames
TEXT = 11
PLOT = 190  # height
LEGEND_LINES = 3  # of an entry at most
PNG_SCALE = 2
MAX_COLOURED = 10
FEW_COLOURED = 5
LABEL_CHARACTERS = 40  # that fit into a line of a legend
PERCENT = FuncFormatter(lambda value, _: f"{value:.0f}%")
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib; a page shows its own instead, which is not wider
    "font.size": TEXT,
    "text.color": INK,
    "text.parse_math": False,  # a $ of a name is a $
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.titlelocation": "left",
    "axes.titlesize": TEXT,
    "axes.titlecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "lines.linewidth": 1.5,
    "hatch.color": FAINT,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.labelspacing": 0.35,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "vlmkit",  # the same figure is the same file
}


@dataclass(frozen=True, slots=True)
class LineStyle:
    """How a line is told from others: by its colour, its dashes and the tag at its end."""

    colour: str  # a name of COLOURS
    dashes: tuple[float, ...] = ()  # on, off in pixels; (): solid

    @property
    def of_line(self) -> dict[str, Any]:
        """As matplotlib wants it."""
        return {"color": COLOURS[self.colour], "linestyle": (0, self.dashes) if self.dashes else "-"}


LINE_STYLES = (
    *(LineStyle(f"series-{number}") for number in range(1, 6)),
    *(LineStyle(f"series-{number}", (4, 2)) for number in range(1, 6)),
)


# ---- what comes of a figure ----------------------------------------------------------------------------


def as_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an element of a page that has the variables of COLOURS.

    Args:
        figure: One of this module's.
        name: Unique within the page.
        title: What it is, for who cannot see it.
        description: What it shows.
    """
    drawn = io.StringIO()
    with _style():
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return inline_svg(drawn.getvalue(), name, title, description, COLOURS)


def save_png(figure: Figure, path: Path) -> None:
    """Save the figure on white."""
    with _style():
        figure.savefig(path, format="png", dpi=72 * PNG_SCALE, facecolor=CARD, metadata={"Software": None})


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A name may have letters that the font lacks: a browser shows them, a PNG has boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def line_styles(report: Report) -> dict[int, LineStyle]:
    """Variant → its style: the baseline, the best one and those next to it; all others are grey."""
    main = report.measures[0] if report.measures else None

    def rank(variant: Variant) -> tuple[bool, float]:
        spread = variant.scores.get(main.key) if main else None
        if spread is None or main is None:
            return True, 0.0
        return False, -spread.mean if main.higher_is_better else spread.mean

    baseline = baseline_of(report)
    others = sorted((one for one in report.variants if one is not baseline), key=rank)
    if report.answer.best is not None:
        others.sort(key=lambda one: one.number != report.answer.best)
    chosen = others[: MAX_COLOURED - 1]
    of_others = {one.number: style for one, style in zip(chosen, LINE_STYLES, strict=False)}
    return ({baseline.number: LineStyle("ink")} if baseline else {}) | of_others


# ---- differences from the baseline ---------------------------------------------------------------------

ROW = 21
FOREST_VALUES = 58  # width of the numbers on the right
MIN_LABELS, MAX_LABELS = 40, 130  # width of the labels on the left
CHARACTER = 6.9  # mean width


def draw_differences(report: Report, measure: Measure) -> Figure:
    """Each variant against the baseline in one measure, with its interval, in groups by what differs."""
    comparisons = {each.variant: each for each in report.comparisons if each.measure == measure.key}
    rows = list(_forest_rows(report, comparisons))
    labels = max((len(text) for text, compared in rows if compared), default=0) * CHARACTER + 12
    left = min(max(labels, MIN_LABELS), MAX_LABELS)
    with _style():
        figure, axes = _one_axes(len(rows) * ROW, left, FOREST_VALUES, top=72, bottom=4)
        axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=[], xlim=_forest_range(comparisons.values()))
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.spines["top"].set_visible(True)
        axes.xaxis.tick_top()  # where it is seen before many rows are scrolled
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.grid(axis="x")
        about = f"{one_line(measure.label, LABEL_CHARACTERS)}\ndifference from the baseline"
        _beside(axes, -left, about, above_px=42)
        for place, (text, compared) in enumerate(rows):
            if compared:
                _at_row(axes, -left, place, one_line(text, int(left / CHARACTER)))
                _draw_difference(axes, place, compared, measure, report.confidence)
            else:  # over the line at zero
                box = {"facecolor": CARD, "linewidth": 0, "pad": 0.5}
                _at_row(axes, -left, place, one_line(text, LABEL_CHARACTERS), weight="bold", bbox=box)
        worse, better = ("worse", "better") if measure.higher_is_better else ("better", "worse")
        _beside(axes, 0, f"\u2190 {worse}", above_px=22)
        _beside(axes, _plot_width(axes), f"{better} \u2192", above_px=22, ha="right")
    return figure


def _forest_rows(report: Report, comparisons: Mapping[int, Comparison]) -> Iterator[tuple[str, Comparison | None]]:
    """Text and comparison of each row; a row without a comparison names what differs in those below it."""

    def names(variant: Variant) -> tuple[str, ...]:
        return tuple(name for name, _ in variant.differences)

    compared = [each for each in report.variants if each.number in comparisons]
    compared.sort(key=lambda each: (len(each.differences), names(each)))  # of the same keys in the report's order
    for differing, group in groupby(compared, key=names):
        for name in differing:
            yield name + ("" if name is differing[-1] else " \u00d7"), None
        for variant in group:
            values = " \u00d7 ".join(value for _, value in variant.differences)
            yield f"{tag(variant)}: {values}", comparisons[variant.number]


def _forest_range(comparisons: Iterable[Comparison]) -> tuple[float, float]:
    ends = [0.0]
    for each in comparisons:
        ends += [end for end in (each.value, each.low, each.high) if end is not None]
    return _with_margin(min(ends), max(ends), 0.06)


def _draw_difference(axes: Axes, place: int, compared: Comparison, measure: Measure, confidence: float) -> None:
    told, better = is_told_apart(compared, confidence), is_better(compared, measure)
    colour = (BETTER if better else WORSE) if told else FAINT
    if compared.low is not None and compared.high is not None:
        axes.plot([compared.low, compared.high], [place, place], color=colour, solid_capstyle="butt")
    up = compared.value > 0
    axes.plot(
        compared.value, place, marker=(">" if up else "<") if told else "o", markersize=7 if told else 6,
        color=colour, markerfacecolor=colour if told else CARD, markeredgewidth=1.2,
    )  # fmt: skip
    weight = "bold" if told else "normal"
    shown = difference_text(compared.value, measure.digits)
    _at_row(axes, _plot_width(axes) + FOREST_VALUES - 4, place, shown, ha="right", weight=weight)


def _at_row(axes: Axes, x_px: float, row: int, text: str, **looks: Any) -> None:
    """Text at a row of a forest plot, so many pixels right of the plot's left edge."""
    place = (x_px / _plot_width(axes), row)
    axes.text(*place, text, transform=axes.get_yaxis_transform(), va="center_baseline", **looks)


# ---- curves --------------------------------------------------------------------------------------------


def draw_curves(report: Report, curves: Curves, legend: bool = True) -> Figure:
    """One number over the steps: mean over the seeds, and a band from the lowest to the highest."""
    styles = line_styles(report)
    coloured = [line for line in curves.lines if line.variant in styles]
    num_grey = len(curves.lines) - len(coloured)
    measure = next((each for each in report.measures if each.key == curves.key), None)
    entries = _curve_legend(report, coloured, styles, num_grey) if legend else []
    with _style():
        figure, axes = _one_axes(PLOT, 50, 22, top=22, bottom=38 + _legend_height(entries))
        axes.set_title(one_line(curves.label, LABEL_CHARACTERS), x=-50 / _plot_width(axes))
        axes.set_xlabel("step")
        axes.grid(axis="y")
        for line in sorted(curves.lines, key=lambda line: line.variant in styles):
            _draw_line(axes, line, styles.get(line.variant))
        low, high = curve_range(curves)
        axes.set_ylim(*_with_estimates(axes, measure, low, high))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_step_text))
        _name_ends(axes, report, coloured, styles)
        _draw_legend(figure, entries)
    return figure


def curve_range(curves: Curves) -> tuple[float, float]:
    """Lowest and highest value to show; a loss without its first tenth, beside which all else would be flat."""
    last = max((line.steps[-1] for line in curves.lines if line.steps), default=0)
    first = 0 if curves.higher_is_better else last / 10
    shown = [
        (low, high)
        for line in curves.lines
        for step, low, high in zip(line.steps, line.low, line.high, strict=True)
        if step > first
    ]
    if not shown:
        return 0.0, 1.0
    return _with_margin(min(low for low, _ in shown), max(high for _, high in shown), 0.05)


def _draw_line(axes: Axes, line: Line, style: LineStyle | None) -> None:
    if style is None:
        axes.plot(line.steps, line.mean, color=FAINT, alpha=0.35, linewidth=0.7)
        return
    if line.seeds > 1:
        axes.fill_between(line.steps, line.low, line.high, color=COLOURS[style.colour], alpha=0.15, linewidth=0)
    axes.plot(line.steps, line.mean, **style.of_line)
    if len(line.steps) == 1:  # neither a line nor a band is to be seen
        axes.plot(line.steps, line.mean, marker="o", markersize=4, color=COLOURS[style.colour])
        axes.vlines(line.steps, line.low, line.high, color=COLOURS[style.colour], linewidth=1.2)


def _with_estimates(axes: Axes, measure: Measure | None, low: float, high: float) -> tuple[float, float]:
    """Draw estimates that leave the lines a third of the height, name those beyond; give the range to show."""
    beyond = []
    span = (high - low) * 3
    for estimate in sorted(measure.estimates if measure else (), key=lambda one: one.value):
        name = f"{one_line(estimate.name, 20)} {estimate.value:g}, estimate"
        lowest, highest = min(low, estimate.value), max(high, estimate.value)
        if highest - lowest > span:
            beyond.append(name + (" \u2191" if estimate.value > high else " \u2193"))
            continue
        low, high = lowest, max(high, estimate.value + (highest - lowest) * 0.1)
        axes.axhline(estimate.value, color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate(
            name, (0, estimate.value), (4, 3), ("axes fraction", "data"), "offset points", color=FAINT,
            bbox={"facecolor": CARD, "alpha": 0.75, "linewidth": 0, "pad": 0.5},
        )  # fmt: skip
    if beyond:
        axes.text(1, 1.01, "\n".join(beyond), transform=axes.transAxes, ha="right", va="top", color=FAINT)
    return low, high


def _name_ends(axes: Axes, report: Report, lines: Sequence[Line], styles: Mapping[int, LineStyle]) -> None:
    """The tag of each line at its end, moved apart where ends meet."""
    low, high = axes.get_ylim()
    last = max((line.steps[-1] for line in lines), default=0)
    ending = [line for line in lines if line.steps[-1] == last]
    heights = [(line.mean[-1] - low) / (high - low) * PLOT for line in ending]
    tags = {variant.number: tag(variant) for variant in report.variants}
    for line, height in zip(ending, _moved_apart(heights, TEXT, PLOT), strict=True):
        axes.annotate(
            tags[line.variant], (1, 0), (4, height), "axes fraction", "offset points", va="center",
            color=COLOURS[styles[line.variant].colour],
        )  # fmt: skip


def _moved_apart(places: Sequence[float], gap: float, room: float) -> list[float]:
    """The places in their order, between 0 and ``room``, at least a gap from each other, about where they were."""
    runs: list[tuple[float, list[int]]] = []  # of those that touch, from below: centre, numbers of places
    for number in sorted(range(len(places)), key=lambda number: places[number]):
        centre, run = _inside(places[number], 1, gap, room), [number]
        while runs and centre - runs[-1][0] < gap * (len(run) + len(runs[-1][1])) / 2:
            below, lower = runs.pop()
            mean = (centre * len(run) + below * len(lower)) / (len(run) + len(lower))
            run = lower + run
            centre = _inside(mean, len(run), gap, room)
        runs.append((centre, run))
    moved = {
        number: centre + (place - (len(run) - 1) / 2) * gap for centre, run in runs for place, number in enumerate(run)
    }
    return [moved[number] for number in range(len(places))]


def _inside(centre: float, count: int, gap: float, room: float) -> float:
    half = (count - 1) * gap / 2
    return min(max(centre, half), max(room - half, half))


def _curve_legend(
    report: Report, lines: Sequence[Line], styles: Mapping[int, LineStyle], num_grey: int
) -> list[tuple[Line2D, str]]:
    variants = {variant.number: variant for variant in report.variants}
    drawn = [
        (
            Line2D([], [], **styles[line.variant].of_line),
            f"{tag(variants[line.variant])}: {variants[line.variant].label}",
        )
        for line in lines
    ]
    others = [(Line2D([], [], color=FAINT, alpha=0.35, linewidth=0.7), count_of(num_grey, "other"))] if num_grey else []
    return drawn + others


def _step_text(value: float, _: object) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


# ---- thresholds ----------------------------------------------------------------------------------------


VALUE_CHARACTERS = 12  # of a value
SLANT: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "ha": "right"}  # if they would meet otherwise


def draw_thresholds(report: Report, thresholds: Thresholds) -> Figure:
    """A measure along the values of one key, and below it the share of turns that is kept."""
    measure = report.measure(thresholds.measure)
    coloured = min(len(thresholds.lines), FEW_COLOURED)
    entries = _threshold_legend(thresholds.lines, coloured)
    knows_kept = any(
        report.variants[number].kept_turns is not None for line in thresholds.lines for number in line.variants
    )
    names = [one_line(show_value(value), VALUE_CHARACTERS) for value in thresholds.varied.values]
    is_crowded = sum(len(name) * CHARACTER + 3 for name in names) > WIDTH - 68
    slanted = max(map(len, names)) * CHARACTER * 0.71 - TEXT if is_crowded else 0  # height besides
    below = (112 if knows_kept else 40) + slanted
    with _style():
        figure, axes = _one_axes(150, 56, 12, top=22, bottom=below + _legend_height(entries))
        axes.set_title(one_line(measure.label, LABEL_CHARACTERS), x=-56 / _plot_width(axes))
        _draw_measured(axes, report, thresholds, coloured)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        lowest = axes
        if knows_kept:
            axes.tick_params(labelbottom=False)
            lowest = _axes_below(figure, axes, gap=30, height=44)
            _draw_kept_along(lowest, report, thresholds, coloured)
        lowest.set_xticks(range(len(names)), names, **(SLANT if is_crowded else {}))
        lowest.set_xlabel(one_line(thresholds.varied.label, LABEL_CHARACTERS))
        _draw_legend(figure, entries)
    return figure


def _threshold_legend(lines: Sequence[ThresholdLine], coloured: int) -> list[tuple[Line2D, str]]:
    if len(lines) == 1:
        return []
    entries = [
        (Line2D([], [], marker="o", markersize=4, **style.of_line), line.label)
        for style, line in zip(LINE_STYLES, lines[:coloured], strict=False)
    ]
    grey = Line2D([], [], color=FAINT, alpha=0.4, linewidth=0.7)
    return [*entries, (grey, count_of(len(lines) - coloured, "other"))] if len(lines) > coloured else entries


def _draw_measured(axes: Axes, report: Report, thresholds: Thresholds, coloured: int) -> None:
    axes.grid(axis="y")
    axes.set_xlim(-0.4, len(thresholds.varied.values) - 0.6)
    for number, line in reversed(list(enumerate(thresholds.lines))):
        points = [
            (place, variant.scores[thresholds.measure])
            for place, variant in _along(report, thresholds, line)
            if thresholds.measure in variant.scores
        ]
        offset = (number - (coloured - 1) / 2) * 0.09 if number < coloured else 0  # or intervals hide each other
        places, means = [place + offset for place, _ in points], [spread.mean for _, spread in points]
        if number >= coloured:
            axes.plot(places, means, color=FAINT, alpha=0.4, linewidth=0.7)
            continue
        style = LINE_STYLES[number]
        axes.plot(places, means, marker="o", markersize=5, **style.of_line)
        for place, (_, spread) in zip(places, points, strict=True):
            if spread.low is not None and spread.high is not None:
                axes.plot([place, place], [spread.low, spread.high], color=COLOURS[style.colour], linewidth=1.2)


def _draw_kept_along(axes: Axes, report: Report, thresholds: Thresholds, coloured: int) -> None:
    axes.set_title("turns kept", x=-56 / _plot_width(axes))
    axes.set(ylim=(0, 105), yticks=[0, 50, 100])
    axes.yaxis.set_major_formatter(PERCENT)
    axes.grid(axis="y")
    for number, line in reversed(list(enumerate(thresholds.lines[:coloured]))):
        points = [
            (place, 100 * variant.kept_turns)
            for place, variant in _along(report, thresholds, line)
            if variant.kept_turns is not None
        ]
        axes.plot(*zip(*points, strict=True), marker="s", markersize=3.5, **LINE_STYLES[number].of_line)


def _along(report: Report, thresholds: Thresholds, line: ThresholdLine) -> Iterator[tuple[int, Variant]]:
    """Place of each variant on the axis. Values are equally far apart: ratings are ranks, rates go by factors."""
    for number in line.variants:
        variant = report.variants[number]
        yield thresholds.varied.values.index(variant.settings[thresholds.varied.key]), variant


# ---- two keys ------------------------------------------------------------------------------------------

CELL_WIDTH, CELL_HEIGHT = 56, 34
STRONGEST = 0.5  # opacity; text on it stays readable, light or dark


def draw_heat_map(report: Report, heat_map: HeatMap) -> Figure:
    """A measure for each pair of values: its difference from the baseline, or its value where that has none."""
    measure = report.measure(heat_map.measure)
    baseline = baseline_of(report)
    base = baseline.scores.get(measure.key) if baseline else None
    means = {
        pair: report.variants[number].scores[measure.key].mean
        for pair, number in heat_map.variants.items()
        if measure.key in report.variants[number].scores
    }
    rows, columns = heat_map.rows.values, heat_map.columns.values
    row_labels = [one_line(show_value(value), 10) for value in rows]
    left = max(len(text) for text in row_labels) * CHARACTER + 12
    width = max(WIDTH, left + len(columns) * CELL_WIDTH + 2)
    with _style():
        figure, axes = _one_axes(len(rows) * CELL_HEIGHT, left, width - left - len(columns) * CELL_WIDTH,
                                 top=86, bottom=6, width=width)  # fmt: skip
        axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        axes.set_xticks(
            [place + 0.5 for place in range(len(columns))], [one_line(show_value(each), 7) for each in columns]
        )
        axes.set_yticks([place + 0.5 for place in range(len(rows))], row_labels)
        axes.tick_params(length=0, labeltop=True, labelbottom=False, colors=INK)
        axes.spines[:].set_visible(False)
        names = [measure.label, f"\u2193 {heat_map.rows.label}", f"\u2192 {heat_map.columns.label}"]
        names[1:1] = ["difference from the baseline"] if base else []
        lines = "\n".join(one_line(name, LABEL_CHARACTERS) for name in names)
        _beside(axes, -left, lines, above_px=20)
        furthest = max((abs(mean - base.mean) for mean in means.values()), default=0) if base else 0
        for row, row_value in enumerate(rows):
            for column, column_value in enumerate(columns):
                place, pair = (column, row), (row_value, column_value)
                mean = means.get(pair)
                if mean is None or base is None:
                    _draw_cell(axes, place, None if mean is None else value_text(mean, measure.digits))
                elif report.variants[heat_map.variants[pair]].is_baseline:
                    _draw_cell(axes, place, "baseline")
                else:
                    gain = (mean - base.mean) * (1 if measure.higher_is_better else -1) / (furthest or 1)
                    _draw_cell(axes, place, difference_text(mean - base.mean, measure.digits), gain)
        _frame_baseline(axes, heat_map, baseline)
    return figure


def _frame_baseline(axes: Axes, heat_map: HeatMap, baseline: Variant | None) -> None:
    for (row, column), number in heat_map.variants.items():
        if baseline and number == baseline.number:
            corner = (heat_map.columns.values.index(column) + 0.03, heat_map.rows.values.index(row) + 0.05)
            axes.add_patch(Rectangle(corner, 0.94, 0.9, fill=False, edgecolor=INK, linewidth=1.5))


def _draw_cell(axes: Axes, place: tuple[int, int], text: str | None, gain: float = 0.0) -> None:
    """A cell; None: hatched. ``gain`` is -1 to 1, as much as it is better than the baseline."""
    column, row = place
    box: dict[str, Any] = {"xy": (column + 0.03, row + 0.05), "width": 0.94, "height": 0.9, "linewidth": 0}
    if text is None:
        axes.add_patch(Rectangle(**box, facecolor="none", edgecolor=FAINT, hatch="////"))
        return
    axes.add_patch(Rectangle(**box, facecolor=BETTER if gain > 0 else WORSE, alpha=STRONGEST * abs(gain)))
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center_baseline", size=TEXT)


# ---- what is paid --------------------------------------------------------------------------------------


def draw_kept(report: Report, measure: Measure) -> Figure:
    """A measure against the share of turns that is kept, a point for each variant."""
    styles = line_styles(report)
    points = [one for one in report.variants if one.kept_turns is not None and measure.key in one.scores]
    with _style():
        figure, axes = _one_axes(PLOT, 56, 16, top=22, bottom=38)
        axes.set_title(one_line(measure.label, LABEL_CHARACTERS), x=-56 / _plot_width(axes))
        axes.set_xlabel("turns kept by the filter")
        axes.xaxis.set_major_formatter(PERCENT)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid()
        for variant in sorted(points, key=lambda one: one.number in styles):
            _draw_point(axes, variant, measure, styles.get(variant.number))
        for variant in _worth_a_name(report, points):
            spread = variant.scores[measure.key]
            axes.annotate(tag(variant), (100 * (variant.kept_turns or 0), spread.mean), (5, 4), "data", "offset points",
                          color=COLOURS[styles[variant.number].colour])  # fmt: skip
        axes.margins(0.08, 0.12)
    return figure


def _worth_a_name(report: Report, points: Sequence[Variant]) -> list[Variant]:
    """All of few variants, else the baseline and the best one, as names would hide each other."""
    if len(report.variants) <= MAX_COLOURED:
        return list(points)
    return [one for one in points if one.is_baseline or one.number == report.answer.best]


def _draw_point(axes: Axes, variant: Variant, measure: Measure, style: LineStyle | None) -> None:
    assert variant.kept_turns is not None
    kept, spread = 100 * variant.kept_turns, variant.scores[measure.key]
    if style is None:
        axes.plot(kept, spread.mean, marker="o", markersize=4, color=FAINT, alpha=0.35, markeredgewidth=0)
        return
    colour = COLOURS[style.colour]
    if spread.low is not None and spread.high is not None:
        axes.plot([kept, kept], [spread.low, spread.high], color=colour, linewidth=1.2)
    axes.plot(kept, spread.mean, marker="s" if variant.is_baseline else "o", markersize=5, color=colour)


# ---- what all have in common ---------------------------------------------------------------------------


def _one_axes(
    height: float, left: float, right: float, top: float, bottom: float, width: float = WIDTH
) -> tuple[Figure, Axes]:
    """A figure with one plot of so many pixels' height, and margins around it."""
    total = height + top + bottom
    figure = Figure(figsize=(width / 72, total / 72), dpi=72)
    axes = figure.add_axes((left / width, bottom / total, (width - left - right) / width, height / total))
    axes.tick_params(length=3)
    return figure, axes


def _axes_below(figure: Figure, axes: Axes, gap: float, height: float) -> Axes:
    """A second plot below the first one, with the same horizontal axis."""
    box = axes.get_position()
    total = figure.get_figheight() * 72
    lower: Axes = figure.add_axes((box.x0, box.y0 - (gap + height) / total, box.width, height / total), sharex=axes)
    lower.tick_params(length=3)
    return lower


def _plot_width(axes: Axes) -> float:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return axes.get_position().width * figure.get_figwidth() * 72


def _beside(axes: Axes, x_px: float, text: str, above_px: float, ha: str = "left") -> None:
    """Text above the plot, from (or, with ``ha="right"``, to) so many pixels right of its left edge."""
    axes.annotate(text, (0, 1), (x_px, above_px), "axes fraction", "offset points", color=FAINT, va="bottom", ha=ha)


def _legend_text(label: str) -> str:
    """In a few lines, as what tells labels apart often stands at their end."""
    text = one_line(label, LEGEND_LINES * LABEL_CHARACTERS)
    return "\n".join(textwrap.wrap(text, LABEL_CHARACTERS, max_lines=LEGEND_LINES, placeholder=" \u2026"))


def _legend_height(entries: Sequence[tuple[Line2D, str]]) -> float:
    lines = sum(_legend_text(label).count("\n") + 1 for _, label in entries)
    return lines * TEXT * 1.2 + len(entries) * 4 + 4 if entries else 0


def _draw_legend(figure: Figure, entries: Sequence[tuple[Line2D, str]]) -> None:
    """Below all plots."""
    if entries:
        handles, labels = zip(*entries, strict=True)
        texts = list(map(_legend_text, labels))
        figure.legend(handles, texts, loc="lower left", handlelength=2, borderaxespad=0.2, labelcolor=INK)


def _with_margin(low: float, high: float, share: float) -> tuple[float, float]:
    """The range with some room at both ends; never empty."""
    room = (high - low) * share or abs(high) * share or share
    return low - room, high + room
