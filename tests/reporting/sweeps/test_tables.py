"""What a spreadsheet finds beside the page."""

import csv
import io
from dataclasses import replace
from pathlib import Path

from tests.reporting.sweeps.made_up_report import FORMULA, RELEVANCE, TWO_AXES, made_up_report
from tests.reporting.sweeps.made_up_sweep import MadeUpSweep
from vlmkit.config import ReportConfig
from vlmkit.reporting.sweeps.build import build_report
from vlmkit.reporting.sweeps.tables import Table, build_tables, curve_excerpt, write_csv


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def test_no_text_becomes_a_formula_and_numbers_stay_numbers(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    texts = (FORMULA, "+1", "-1", "@SUM(A1)", "\tx", "a=b", 'say "x",\nplease', "half\ud83d")
    write_csv(Table(("=name", "value"), tuple((text, -0.5) for text in texts)), path)
    rows = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert rows[0] == ["'=name", "value"]
    assert [row[0] for row in rows[1:]] == [f"'{text}" for text in texts[:5]] + [*texts[5:7], "half?"]
    assert {row[1] for row in rows[1:]} == {"-0.5"}
    assert b'"say ""x"",\nplease",-0.5\r\n' in path.read_bytes()


def test_the_final_table_has_every_number_in_full_and_nothing_where_a_result_is_missing(tmp_path: Path) -> None:
    report = made_up_report(without=[(1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 2, 0)])
    path = tmp_path / "final.csv"
    write_csv(build_tables(report)["final"], path)
    rows = read(path)
    label = report.measures[0].label
    assert [row["variant"] for row in rows] == [variant.label for variant in report.variants]
    assert [row["filter.relevance_min_rating"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert float(rows[0][f"{label}, mean"]) == report.variants[0].scores[report.measures[0].key].mean
    assert [row[f"{label}, seeds"] for row in rows] == ["3", "2", "0", "3", "3"]
    assert rows[2][f"{label}, mean"] == ""


def test_each_table_has_a_row_for_each_thing() -> None:
    report = made_up_report(TWO_AXES, seeds=2, without=[(3, 0, 0)])
    tables = build_tables(report)
    assert len(tables["runs"].rows) == 30
    assert len(tables["comparisons"].rows) == len(report.comparisons)
    assert len(tables["curves"].rows) == sum(len(line.steps) for curves in report.curves for line in curves.lines)
    assert len(tables["heat_maps"].rows) == 15 * len(report.heat_maps)
    assert len(tables["holes"].rows) == 1
    assert set(tables) == {"final", "runs", "comparisons", "against_best", "curves", "thresholds", "heat_maps",
                           "flips", "holes"}  # fmt: skip
    assert all(len(row) == len(table.columns) for table in tables.values() for row in table.rows)


def test_the_table_of_runs_has_each_column_once_and_also_what_all_runs_share(tmp_path: Path) -> None:
    made_up = MadeUpSweep(seeds=(0, 1), steps=(10,), questions=30, with_pictures=False)
    report = build_report(ReportConfig(sweep=str(made_up.write(tmp_path / "sweep")), samples=0))
    table = build_tables(report)["runs"]
    assert len(set(table.columns)) == len(table.columns)
    assert "command" in table.columns
    assert "git" in dict(report.shared)
    for name, text in report.shared:
        assert table.only(name).rows == ((text,),) * 6


def test_a_table_without_rows_is_left_out() -> None:
    assert {"thresholds", "heat_maps", "holes", "comparisons"} & set(build_tables(made_up_report({}, 1))) == set()


def test_the_excerpt_of_a_curve_has_its_first_and_its_last_step_and_gaps_where_a_line_has_none() -> None:
    report = made_up_report(RELEVANCE, 1)
    first, *others = report.curves[0].lines
    short = replace(first, steps=first.steps[:10], mean=first.mean[:10])
    curves = replace(report.curves[0], lines=(short, *others))
    table = curve_excerpt(report, curves)
    assert table.columns[2] == "step 6"
    assert table.columns[-1] == "step 900"
    assert len(table.columns) == 10
    assert table.rows[0][-1] is None
    assert table.rows[1][-1] == others[0].mean[-1]
