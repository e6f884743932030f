"""What the figures of a report show, and that they can be read."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from tests.reporting.sweeps.made_up_report import EVIL, FEW, LARGE, RELEVANCE, TWO_AXES, made_up_report
from vlmkit.reporting.sweeps.content import Estimate, Report
from vlmkit.reporting.sweeps.figures import (
    TEXT,
    WIDTH,
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
from vlmkit.reporting.sweeps.wording import tag

DRAWN: dict[str, Callable[[Report], Figure]] = {
    "differences": lambda report: draw_differences(report, report.measures[0]),
    "curves": lambda report: draw_curves(report, report.curves[1]),
    "thresholds": lambda report: draw_thresholds(report, report.thresholds[0]),
    "heat map": lambda report: draw_heat_map(report, report.heat_maps[0]),
    "kept": lambda report: draw_kept(report, report.measures[0]),
}


@pytest.fixture(scope="module")
def evil() -> Report:
    """Two axes, a hole, and names that want to be markup, mathematics and control characters."""
    return made_up_report(FEW, 2, tasks=(), without=[(4, 0, 0), (4, 1, 0)], text=EVIL)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_figure_is_small_enough_for_a_phone_and_takes_its_colours_from_the_page(
    evil: Report, draw: Callable[[Report], Figure], tmp_path: Path
) -> None:
    figure = draw(evil)
    save_png(figure, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width == 2 * WIDTH
    svg = as_svg(figure, "one", f"title {EVIL}", "what it shows")
    root = ET.fromstring(svg)  # neither markup nor control characters of a name break it
    assert root.get("width") == str(WIDTH)
    assert root.get("role") == "img"
    assert [child.tag.rpartition("}")[2] for child in root][:2] == ["title", "desc"]
    assert not re.findall(r"#[0-9a-f]{6}", svg)
    assert "var(--ink)" in svg
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
    assert sizes
    assert min(sizes) >= 11
    assert "<script" not in svg


def test_identifiers_of_two_figures_do_not_clash(evil: Report) -> None:
    figure = draw_heat_map(evil, evil.heat_maps[0])
    one, other = (set(re.findall(r'\bid="([^"]+)"', as_svg(figure, name, "", ""))) for name in ("one", "other"))
    assert one
    assert not one & other
    referred = re.findall(r'(?:url\(#|href="#)([^")]+)', as_svg(figure, "one", "", ""))
    assert set(referred) <= one


def test_what_is_told_apart_has_another_shape_not_just_another_colour() -> None:
    report = made_up_report(RELEVANCE)
    key = report.measures[0].key
    sure, unsure = (replace(each, p_corrected=p) for each, p in zip(report.comparisons, (0.01, 0.2), strict=False))
    worse = replace(sure, variant=3, value=-0.1)
    report = replace(report, comparisons=(sure, unsure, worse))
    assert {each.measure for each in report.comparisons} == {key}
    [axes] = draw_differences(report, report.measures[0]).axes
    shapes = {line.get_xdata()[0]: line.get_marker() for line in axes.lines if line.get_marker() != "None"}
    assert shapes == {sure.value: ">", unsure.value: "o", worse.value: "<"}


def test_differences_are_grouped_by_the_keys_that_differ() -> None:
    report = made_up_report(TWO_AXES, 1)
    shown = texts(draw_differences(report, report.measures[0]))
    titles = ["relevance_min_rating", "visual_dependency_min_rating", "relevance_min_rating \u00d7"]
    places = [shown.index(title) for title in titles]
    assert places == sorted(places)
    [row] = [text for text in shown if text.endswith(": 5 \u00d7 3")]
    assert shown.index(row) > places[-1]


def test_the_axis_of_many_differences_stands_above_them_where_it_is_seen_first() -> None:
    report = made_up_report(LARGE, 1, tasks=())
    [axes] = draw_differences(report, report.measures[0]).axes
    assert axes.xaxis.get_ticks_position() == "top"
    [better] = [text for text in axes.texts if "better" in text.get_text()]
    assert better.xy[1] == 1


def test_points_of_many_variants_are_drawn_though_the_baseline_has_none() -> None:
    report = made_up_report({"filter.relevance_min_rating": tuple(range(1, 12))}, 1)
    baseline, *others = report.variants
    report = replace(report, variants=(replace(baseline, scores={}), *others))
    shown = texts(draw_kept(report, report.measures[0]))
    assert tag(report.variants[report.answer.best or 0]) in shown


def test_a_cell_that_is_as_good_as_the_baseline_is_not_called_so() -> None:
    report = made_up_report(TWO_AXES, 1)
    key = report.heat_maps[0].measure
    baseline, *others = report.variants
    report = replace(
        report, variants=(baseline, *(replace(one, scores={**one.scores, key: baseline.scores[key]}) for one in others))
    )
    shown = texts(draw_heat_map(report, report.heat_maps[0]))
    assert shown.count("+0.0000") == len(report.heat_maps[0].variants) - 1
    assert shown.count("baseline") == 1


def test_worse_and_better_change_sides_where_less_is_better() -> None:
    report = made_up_report(RELEVANCE, 1)
    assert {"\u2190 worse", "better \u2192"} <= set(texts(draw_differences(report, report.measures[0])))
    assert {"\u2190 better", "worse \u2192"} <= set(texts(draw_differences(report, report.measure("val_loss"))))


def test_of_many_lines_the_baseline_and_the_best_and_those_next_to_it_are_in_colour() -> None:
    report = made_up_report(LARGE, 1, tasks=())
    styles = line_styles(report)
    assert len(styles) == 10
    assert len(set(styles.values())) == 10
    assert styles[0].colour == "ink"
    best = report.answer.best
    assert best is not None
    assert styles[best].colour == "series-1"
    key = report.measures[0].key
    least = min(report.variants[number].scores[key].mean for number in styles if number)
    assert all(report.variants[number].scores[key].mean <= least for number in set(range(66)) - set(styles))


def test_names_at_the_ends_of_lines_do_not_hide_each_other() -> None:
    report = made_up_report(TWO_AXES, 1)
    [axes] = draw_curves(report, report.curves[0]).axes
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert len(heights) == 10
    assert all(upper - lower >= TEXT - 0.01 for lower, upper in pairwise(heights))
    assert heights[0] >= 0


def test_an_estimate_is_marked_as_one_and_a_far_one_does_not_flatten_the_lines() -> None:
    report = made_up_report(RELEVANCE, 1)
    near, far = Estimate("near", 0.8), Estimate("far", 12.0)
    report = replace(report, measures=(replace(report.measures[0], estimates=(near, far)), *report.measures[1:]))
    [axes] = draw_curves(report, report.curves[1]).axes
    assert {"near 0.8, estimate", "far 12, estimate \u2191"} <= set(texts(axes.figure))
    assert axes.get_ylim()[1] < 1.2


def test_a_number_of_one_step_alone_is_a_point_with_the_spread_of_its_seeds() -> None:
    report = made_up_report(RELEVANCE, 2)
    score = report.curves[1]
    last = [replace(line, steps=line.steps[-1:], mean=line.mean[-1:], low=line.low[-1:], high=line.high[-1:])
            for line in score.lines]  # fmt: skip
    [axes] = draw_curves(report, replace(score, lines=tuple(last))).axes
    spreads = {tuple(path.vertices[:, 1]) for each in axes.collections for path in each.get_paths() if len(path) == 2}
    assert {(line.low[0], line.high[0]) for line in last} <= spreads
    assert sum(line.get_marker() == "o" for line in axes.lines) == len(last)


def test_the_first_steps_of_a_loss_are_cut_off_but_not_those_of_a_score() -> None:
    report = made_up_report(RELEVANCE, 1)
    loss, score = report.curves[:2]
    assert curve_range(loss)[1] < max(loss.lines[0].high)
    assert curve_range(score)[0] < min(score.lines[0].low)


def test_a_hole_of_a_heat_map_is_hatched_and_has_no_number(evil: Report) -> None:
    [axes] = draw_heat_map(evil, evil.heat_maps[0]).axes
    assert [patch.get_hatch() for patch in axes.patches].count("////") == 1
    numbers = [text for text in texts(axes.figure) if re.fullmatch(r"[+\u2212]\d\.\d{4}", text)]
    assert len(numbers) == 4  # of 6 cells one is a hole, one the baseline


@pytest.mark.parametrize("values", [(1, 2, 3, 4, 5), tuple(1e-5 * (1 + number / 8) for number in range(9))])
def test_names_of_values_do_not_hide_each_other(values: tuple[float, ...]) -> None:
    report = made_up_report({"optimizer.lr_projector": values}, 1)
    figure = draw_thresholds(report, report.thresholds[0])
    FigureCanvasAgg(figure).draw()
    labels = figure.axes[-1].get_xticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert all(right.x0 > left.x1 for left, right in pairwise(boxes)) or {one.get_rotation() for one in labels} == {45}
    assert min(box.y0 for box in boxes) > figure.axes[-1].xaxis.label.get_window_extent().y1 >= 0


def test_thresholds_show_what_is_kept_on_the_same_axis_if_it_is_known() -> None:
    report = made_up_report(RELEVANCE, 1)
    above, below = draw_thresholds(report, report.thresholds[0]).axes
    assert above.get_xlim() == below.get_xlim()
    assert [label.get_text() for label in below.get_xticklabels()] == ["1", "2", "3", "4", "5"]
    unknown = replace(report, variants=tuple(replace(each, kept_turns=None) for each in report.variants))
    assert len(draw_thresholds(unknown, report.thresholds[0]).axes) == 1
