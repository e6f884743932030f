"""A report as one page that needs nothing else, with its figures as PNG and its tables as CSV beside it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from vlmkit.paths import whole_file
from vlmkit.reporting.html import write_html
from vlmkit.reporting.sweeps.content import (
    MOST_FLIP_TASKS,
    Comparison,
    Curves,
    HeatMap,
    Measure,
    Report,
    Thresholds,
    Value,
)
from vlmkit.reporting.sweeps.figures import (
    Drawn,
    as_svg,
    curve_range,
    draw_curves,
    draw_differences,
    draw_heat_map,
    draw_kept,
    draw_thresholds,
    line_styles,
    save_png,
)
from vlmkit.reporting.sweeps.tables import (
    Table,
    build_tables,
    comparisons_table,
    curve_excerpt,
    heat_maps_table,
    kept_table,
    thresholds_table,
    write_csv,
)
from vlmkit.reporting.sweeps.wording import (
    MINUS,
    NOTHING,
    best_of,
    difference_text,
    half_width,
    is_told_apart,
    p_text,
    tag,
    value_text,
)
from vlmkit.reporting.words import count_of, share

OfMeasure = TypeVar("OfMeasure", Thresholds, HeatMap)

PAGE = "index.html"
FIGURES, TABLES = "figures", "tables"
WRITTEN = ".written"  # the names of what the last report put beside the page
SHOWN = 6  # figures of a section that are open at once
MANY = 30  # rows from which on a table scrolls
AS_GOOD = 8  # variants that are named


@dataclass(frozen=True, slots=True)
class ShownFigure:
    """A figure with all that stands around it."""

    name: str  # of its file
    svg: str
    caption: str
    table: Table  # its numbers
    csv: str  # name of the table that has them in full


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Saves figures under names of their own."""

    folder: Path
    names: list[str] = field(default_factory=list)

    def show(
        self, name: str, figure: Drawn, title: str, caption: str, table: Table, csv: str, on_page: Drawn | None = None
    ) -> ShownFigure:
        """Save it; ``on_page`` is what the page shows of it, if that is another drawing."""
        free = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
        while free in self.names:  # names that differ in odd letters alone
            free += "_"
        self.names.append(free)
        with whole_file(self.folder / f"{free}.png") as temporary:
            save_png(figure, temporary)
        return ShownFigure(free, as_svg(on_page or figure, free, title, caption), caption, table, csv)


def write_report(report: Report, folder: Path) -> Path:
    """Write the report into a folder, over an older one if there is one, and give the path of the page.

    Other files in the folder stay as they are.

    Raises:
        OSError: It cannot be written.
    """
    drawing = _Drawing(folder / FIGURES)
    figures = {
        "differences": list(_differences(report, drawing)),
        "thresholds": list(_thresholds(report, drawing)),
        "heat_maps": list(_heat_maps(report, drawing)),
        "curves": list(_curves(report, drawing)),
        "kept": list(_kept(report, drawing)),
    }
    tables = build_tables(report)
    for name, table in tables.items():
        with whole_file(folder / TABLES / f"{name}.csv") as temporary:
            write_csv(table, temporary)
    page = folder / PAGE
    _write_page(page, report, figures, tables)
    pictures = [f"{FIGURES}/{name}.png" for name in drawing.names]
    _forget_older(folder, [*pictures, *(f"{TABLES}/{name}.csv" for name in tables)])
    return page


def _forget_older(folder: Path, written: Sequence[str]) -> None:
    """Remove what an older report wrote and this one did not."""
    listed = folder / WRITTEN
    older = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else []
    for name in set(older) - set(written):
        if re.fullmatch(rf"({FIGURES}|{TABLES})/[\w.-]+\.(png|csv)", name):  # whoever wrote the list
            (folder / name).unlink(missing_ok=True)
    with whole_file(listed) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in written), encoding="utf-8")


# ---- figures -------------------------------------------------------------------------------------------


def _differences(report: Report, drawing: _Drawing) -> Iterator[ShownFigure]:
    columns = ("number", "variant", "difference", "low", "high", "p", "p corrected", "told apart")
    for measure in report.measures:
        compared = [each for each in report.comparisons if each.measure == measure.key]
        if not compared:
            continue
        told = sum(is_told_apart(each, report.confidence) for each in compared)
        yield drawing.show(
            f"differences_{measure.key}",
            draw_differences(report, measure),
            f"Differences from the baseline in {measure.label}",
            f"{measure.label}: {told} of {count_of(len(compared), 'variant')} told apart from the baseline.",
            comparisons_table(report, measure.key).only(*columns),
            "comparisons",
        )


def _thresholds(report: Report, drawing: _Drawing) -> Iterator[ShownFigure]:
    for each in _in_order(report, report.thresholds):
        label = report.measure(each.measure).label
        yield drawing.show(
            f"threshold_{each.varied.label}_{each.measure}",
            draw_thresholds(report, each),
            f"{label} along {each.varied.label}",
            f"{label} along {each.varied.label}.",
            thresholds_table(report, each).only("value", "number", "mean", "low", "high", "seeds", "turns kept"),
            "thresholds",
        )


def _heat_maps(report: Report, drawing: _Drawing) -> Iterator[ShownFigure]:
    for each in _in_order(report, report.heat_maps):
        label = report.measure(each.measure).label
        yield drawing.show(
            f"heat_map_{each.rows.label}_{each.columns.label}_{each.measure}",
            draw_heat_map(report, each),
            f"{label} for each pair of {each.rows.label} and {each.columns.label}",
            f"{label} for each pair of {each.rows.label} and {each.columns.label}.",
            heat_maps_table(report, each).only("row", "column", "mean"),
            "heat_maps",
        )


def _curves(report: Report, drawing: _Drawing) -> Iterator[ShownFigure]:
    for each in report.curves:
        yield drawing.show(
            f"curve_{each.key}",
            draw_curves(report, each),
            f"{each.label} over the steps",
            _curve_caption(each),
            curve_excerpt(report, each),
            "curves",
            on_page=draw_curves(report, each, legend=False),  # the page has one legend for all of them
        )


def _curve_caption(curves: Curves) -> str:
    _, highest = curve_range(curves)
    cut = any(high > highest for line in curves.lines for high in line.high)
    parts = [curves.label, curves.note, "its start lies above the picture" if cut else ""]
    return "; ".join(filter(None, parts)) + "."


def _kept(report: Report, drawing: _Drawing) -> Iterator[ShownFigure]:
    shares = {variant.kept_turns for variant in report.variants} - {None}
    if len(shares) < 2 or not report.measures:
        return
    measure = report.measures[0]
    yield drawing.show(
        f"kept_{measure.key}",
        draw_kept(report, measure),
        f"{measure.label} against the share of turns kept",
        f"{measure.label} against the share of the dataset's turns that pass the filter.",
        kept_table(report, measure.key),
        "final",
    )


def _in_order(report: Report, figures: Sequence[OfMeasure]) -> list[OfMeasure]:
    """The figures of the main measure first."""
    keys = [measure.key for measure in report.measures]
    return sorted(figures, key=lambda one: keys.index(one.measure))


# ---- the page ------------------------------------------------------------------------------------------


def _write_page(
    path: Path, report: Report, figures: Mapping[str, Sequence[ShownFigure]], tables: Mapping[str, Table]
) -> None:
    functions: dict[str, Callable[..., object]] = {
        "number": "{:,}".format,
        "share": share,
        "count_of": count_of,
        "value_text": value_text,
        "difference_text": difference_text,
        "half_width": half_width,
        "p_text": p_text,
        "tag": tag,
        "cell": _cell,
        "told_apart": lambda comparison: is_told_apart(comparison, report.confidence),
    }
    drawn = {line.variant for curves in report.curves for line in curves.lines}
    styles = {number: style for number, style in sorted(line_styles(report).items()) if number in drawn}
    write_html(
        path,
        "report.html",
        functions,
        report=report,
        figures=figures,
        tables=tables,
        styles=styles,
        num_grey=len(drawn) - len(styles),
        best={measure.key: best_of(report, measure) for measure in report.measures},
        comparisons=_by_measure(report),
        as_good=[each for each in report.against_best if not is_told_apart(each, report.confidence)],
        sections=_sections(report, figures),
        shown=SHOWN,
        most_tasks=MOST_FLIP_TASKS,
        max_as_good=AS_GOOD,
        many=MANY,
        nothing=NOTHING,
    )


def _by_measure(report: Report) -> list[tuple[Measure, list[Comparison]]]:
    found = [
        (measure, [each for each in report.comparisons if each.measure == measure.key]) for measure in report.measures
    ]
    return [(measure, compared) for measure, compared in found if compared]


def _sections(report: Report, figures: Mapping[str, Sequence[ShownFigure]]) -> list[tuple[str, str]]:
    """Name and title of the page's parts, in their order."""
    parts: list[tuple[str, str, object]] = [
        ("answer", "Answer", True),
        ("differences", "Differences", figures["differences"]),
        ("results", "Results", report.variants),
        ("thresholds", "Thresholds", figures["thresholds"]),
        ("heat_maps", "Two keys", figures["heat_maps"]),
        ("curves", "Curves", figures["curves"]),
        ("kept", "Data kept", figures["kept"]),
        ("comparisons", "Comparisons", report.comparisons or report.against_best),
        ("flips", "Changed answers", report.flips),
        ("holes", "Holes", report.holes),
        ("runs", "Runs", report.variants),
        ("reading", "How to read this", True),
    ]
    return [(name, title) for name, title, content in parts if content]


def _cell(value: Value) -> str:
    """A value of a table, short."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return re.sub("^-", MINUS, f"{value:.4g}" if isinstance(value, float) else str(value))
    return value
