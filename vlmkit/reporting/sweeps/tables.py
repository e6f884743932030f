"""The numbers of a report as tables, in full, for the page and as CSV."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlmkit.reporting.sweeps.content import Curves, HeatMap, Report, Thresholds, Value, Variant
from vlmkit.reporting.sweeps.wording import is_told_apart, tag

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run
EXCERPT = 8  # steps


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under names of columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    def only(self, *columns: str) -> "Table":
        """These columns alone."""
        places = [self.columns.index(name) for name in columns]
        return Table(columns, tuple(tuple(row[place] for place in places) for row in self.rows))


def build_tables(report: Report) -> dict[str, Table]:
    """File name without its ending → table; those without rows are left out."""
    tables = {
        "final": final_table(report),
        "runs": runs_table(report),
        "comparisons": comparisons_table(report),
        "against_best": comparisons_table(report, against_best=True),
        "curves": curves_table(report),
        "thresholds": thresholds_table(report),
        "heat_maps": heat_maps_table(report),
        "flips": flips_table(report),
        "holes": holes_table(report),
    }
    return {name: table for name, table in tables.items() if table.rows}


def write_csv(table: Table, path: Path) -> None:
    """Write it as RFC 4180 has it; no text becomes a formula where the file is opened."""
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(_cell, table.columns))
        writer.writerows([_cell(value) for value in row] for row in table.rows)


def _cell(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def final_table(report: Report) -> Table:
    """A row for each variant: its settings, and mean and interval of each measure."""
    scores = [f"{measure.label}, {what}" for measure in report.measures for what in ("mean", "low", "high", "seeds")]

    def rows() -> Iterator[tuple[Value, ...]]:
        for variant in report.variants:
            numbers: list[Value] = []
            for measure in report.measures:
                spread = variant.scores.get(measure.key)
                numbers += [spread.mean, spread.low, spread.high, spread.seeds] if spread else [None, None, None, 0]
            yield (
                *_named(variant),
                *(variant.settings.get(each.key) for each in report.varied),
                len(variant.runs), variant.kept_turns, variant.kept_samples, *numbers,
            )  # fmt: skip

    keys = [each.key for each in report.varied]
    return Table(("number", "variant", *keys, "runs", "turns kept", "samples kept", *scores), tuple(rows()))


def runs_table(report: Report) -> Table:
    """A row for each run, with what it shares with all others."""
    runs = [(variant, run, dict((*run.facts, *report.shared))) for variant in report.variants for run in variant.runs]
    names = list(dict.fromkeys(name for *_, facts in runs for name in facts))
    labels = [measure.label for measure in report.measures]
    rows = tuple(
        (
            *_named(variant), run.name, run.folder, run.seed, run.state, run.step,
            *(run.scores.get(measure.key) for measure in report.measures),
            *map(facts.get, names),
        )
        for variant, run, facts in runs
    )  # fmt: skip
    return Table(("number", "variant", "run", "folder", "seed", "state", "step", *labels, *names), rows)


def comparisons_table(report: Report, measure: str | None = None, against_best: bool = False) -> Table:
    """A row for each comparison with the baseline, or of the best variant with the others.

    Args:
        report: What was compared.
        measure: Key of the only one to show; None: all.
        against_best: Which comparisons.
    """
    labels = {each.key: each.label for each in report.measures}
    rows = tuple(
        (
            *_named(report.variants[each.variant]), report.variants[each.other].label, labels[each.measure],
            each.value, each.low, each.high, each.p, each.p_corrected, is_told_apart(each, report.confidence),
            *each.seeds, each.questions, each.note,
        )
        for each in (report.against_best if against_best else report.comparisons)
        if measure in (None, each.measure)
    )  # fmt: skip
    columns = (
        "number", "variant", "other", "measure", "difference", "low", "high", "p", "p corrected", "told apart",
        "seeds", "seeds of other", "questions", "note",
    )  # fmt: skip
    return Table(columns, rows)


def curves_table(report: Report, curves: Curves | None = None) -> Table:
    """A row for each point of each line, of one number or of all."""
    rows = tuple(
        (*_named(report.variants[line.variant]), each.label, *point, line.seeds)
        for each in ([curves] if curves else report.curves)
        for line in each.lines
        for point in zip(line.steps, line.mean, line.low, line.high, strict=True)
    )
    return Table(("number", "variant", "curve", "step", "mean", "lowest", "highest", "seeds"), rows)


def curve_excerpt(report: Report, curves: Curves) -> Table:
    """A row for each line of one number, with its mean at a few of the steps."""
    steps = sorted({step for line in curves.lines for step in line.steps})
    last = len(steps) - 1
    chosen = sorted({steps[round(last * part / (EXCERPT - 1))] for part in range(EXCERPT)}) if steps else []
    rows = tuple(
        (*_named(report.variants[line.variant]), *map(dict(zip(line.steps, line.mean, strict=True)).get, chosen))
        for line in curves.lines
    )
    return Table(("number", "variant", *(f"step {step}" for step in chosen)), rows)


def thresholds_table(report: Report, thresholds: Thresholds | None = None) -> Table:
    """A row for each value on each line, of one figure or of all."""

    def rows() -> Iterator[tuple[Value, ...]]:
        for each in [thresholds] if thresholds else report.thresholds:
            label = report.measure(each.measure).label
            for line in each.lines:
                for variant in map(report.variants.__getitem__, line.variants):
                    spread = variant.scores.get(each.measure)
                    numbers = (spread.mean, spread.low, spread.high, spread.seeds) if spread else (None, None, None, 0)
                    value = variant.settings.get(each.varied.key)
                    yield (each.varied.key, value, line.label, int(tag(variant)), label, *numbers, variant.kept_turns)

    columns = ("key", "value", "line", "number", "measure", "mean", "low", "high", "seeds", "turns kept")
    return Table(columns, tuple(rows()))


def heat_maps_table(report: Report, heat_map: HeatMap | None = None) -> Table:
    """A row for each pair of values, of one figure or of all; holes are there without a number."""

    def rows() -> Iterator[tuple[Value, ...]]:
        for each in [heat_map] if heat_map else report.heat_maps:
            label = report.measure(each.measure).label
            for row in each.rows.values:
                for column in each.columns.values:
                    number = each.variants.get((row, column))
                    spread = None if number is None else report.variants[number].scores.get(each.measure)
                    yield (each.rows.key, row, each.columns.key, column, label, spread.mean if spread else None)

    columns = ("key of rows", "row", "key of columns", "column", "measure", "mean")
    return Table(columns, tuple(rows()))


def kept_table(report: Report, measure: str) -> Table:
    """What each variant keeps of the data, and a measure of it."""
    label = report.measure(measure).label
    rows = tuple(
        (*_named(each), each.kept_turns, each.kept_samples, each.scores[measure].mean)
        for each in report.variants
        if each.kept_turns is not None and measure in each.scores
    )
    return Table(("number", "variant", "turns kept", "samples kept", f"{label}, mean"), rows)


def flips_table(report: Report) -> Table:
    """A row for each question that the page shows."""
    rows = tuple(
        (
            *_named(report.variants[flips.other]), what, flip.task, flip.doc_id, flip.prompt, flip.target,
            *(" | ".join(answers) for answers in flip.answers), *flip.scores,
        )
        for flips in report.flips
        for what, chosen in (("gained", flips.gained), ("lost", flips.lost))
        for flip in chosen
    )  # fmt: skip
    columns = (
        "number", "variant", "what", "task", "doc_id", "prompt", "target", "answers of the baseline", "answers",
        "score of the baseline", "score",
    )  # fmt: skip
    return Table(columns, rows)


def holes_table(report: Report) -> Table:
    """A row for each result that is missing."""
    return Table(
        ("run", "what", "why", "way out"), tuple((each.run, each.what, each.why, each.way_out) for each in report.holes)
    )


def _named(variant: Variant) -> tuple[Value, Value]:
    return int(tag(variant)), variant.label
