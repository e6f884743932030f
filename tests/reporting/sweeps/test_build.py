"""What a report says of made-up sweeps whose right answer is known, and of what is missing or damaged."""

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.conftest import Held, says
from tests.evaluation.cells_on_disk import done_cell, unfinished_cell
from tests.reporting.sweeps.made_up_sweep import RELEVANCE, VISUAL, MadeUpSweep, run_name
from vlmkit.config import RATING_AXES, ReportConfig
from vlmkit.errors import ConfigError
from vlmkit.evaluation.cells import Aggregation, CellState
from vlmkit.evaluation.merge import merge_subject
from vlmkit.evaluation.samples import Line
from vlmkit.jobs import Job, JobPlace, Launcher, read_manifest, write_manifest
from vlmkit.paths import RunPaths
from vlmkit.reporting.sweeps.build import build_report
from vlmkit.reporting.sweeps.content import Report

SCORE = "easyvqa_exact_match"
MINIMA = [f"filter.{axis}_min_rating" for axis in RATING_AXES]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three thresholds with three seeds; tests do not change it."""
    return MadeUpSweep(steps=(10, 20), with_pictures=False).write(tmp_path_factory.mktemp("sweeps") / "relevance")


@pytest.fixture(scope="module")
def report(sweep: Path) -> Report:
    return build_report(ReportConfig(sweep=str(sweep)), "python -m vlmkit.report")


def report_of(made_up: MadeUpSweep, folder: Path, **asked: object) -> Report:
    return build_report(ReportConfig(sweep=str(made_up.write(folder)), **asked))


def small(**changes: object) -> MadeUpSweep:
    return MadeUpSweep(**{"steps": (10,), "questions": 30, "with_pictures": False} | changes)


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---- the answer ----------------------------------------------------------------------------------------


def test_the_best_variant_is_found_and_told_apart_from_the_baseline(report: Report) -> None:
    assert report.answer.best == 1
    assert report.answer.headline.startswith("relevance_min_rating 3 is best by easyvqa exact_match: 0.")
    assert "against the baseline" in report.answer.headline
    assert any(point.startswith("better than the baseline: relevance_min_rating 3") for point in report.answer.points)
    by_score = [each for each in report.comparisons if each.measure == SCORE]
    assert [(each.variant, each.other, each.seeds, each.questions) for each in by_score] == [
        (1, 0, (3, 3), 120),
        (2, 0, (3, 3), 120),
    ]
    for each in by_score:
        assert each.p is not None
        assert each.p_corrected is not None
        assert each.p <= each.p_corrected < 0.05
        means = [report.variants[number].scores[SCORE].mean for number in (each.variant, each.other)]
        assert each.value == pytest.approx(means[0] - means[1])


def test_what_makes_no_difference_is_not_told_apart(tmp_path: Path) -> None:
    found = report_of(small(axes={RELEVANCE: (1, 2)}, effects={}), tmp_path / "sweep")
    assert found.answer.headline.startswith(("Nothing is told apart", "The baseline is best"))
    assert any(point.startswith("cannot be told from the baseline: ") for point in found.answer.points)
    assert any(point.startswith("may be as good as the best: ") for point in found.answer.points)


def test_a_sweep_of_seeds_alone_is_one_variant(tmp_path: Path) -> None:
    found = report_of(small(axes={}), tmp_path / "sweep")
    assert [(variant.label, len(variant.runs)) for variant in found.variants] == [("all runs", 3)]
    assert found.answer.headline.endswith("; there is no other variant to compare with.")
    assert (found.comparisons, found.flips, found.thresholds, found.varied) == ((), (), (), ())


def test_one_seed_is_compared_by_its_questions_and_the_reader_is_told(tmp_path: Path) -> None:
    found = report_of(small(seeds=(0,), axes={RELEVANCE: (1, 3)}, questions=120), tmp_path / "sweep")
    [by_score, by_loss] = found.comparisons
    assert by_score.p is not None
    assert by_score.note == "1 seed: another seed may differ"
    assert (by_loss.measure, by_loss.p, by_loss.note) == ("val_loss", None, "1 seed: too little to tell")
    assert found.variants[0].scores[SCORE].low is None
    assert any(
        point.startswith("one seed only: baseline (relevance_min_rating 1); relevance_min_rating 3")
        for point in found.answer.points
    )


def test_one_seed_against_several_is_taken_to_vary_as_they_do(tmp_path: Path) -> None:
    alone = [run_name({RELEVANCE: 3}, seed) for seed in (1, 2)]
    made = small(axes={RELEVANCE: (1, 3)}, questions=120, never_begun=alone)
    found = report_of(made, tmp_path / "sweep", samples=0)
    for comparison in found.comparisons:
        assert (comparison.seeds, comparison.note) == ((1, 3), "1 seed on one side: taken to vary as the other's do")
        assert comparison.p is not None
    assert any(point.startswith("one seed only: relevance_min_rating 3") for point in found.answer.points)


def test_without_evaluation_the_validation_loss_decides(tmp_path: Path) -> None:
    made = small(axes={RELEVANCE: (1, 3)})
    nobody = [run_name(settings, seed) for settings in made.variants for seed in made.seeds]
    found = report_of(small(axes={RELEVANCE: (1, 3)}, unevaluated=nobody), tmp_path / "sweep")
    assert [measure.key for measure in found.measures] == ["val_loss"]
    assert found.answer.best == 1  # the lower loss
    assert any(point.startswith("no run was evaluated on a task") for point in found.answer.points)
    assert found.comparisons[0].p_corrected is not None


# ---- what varied, which step ---------------------------------------------------------------------------


def test_settings_steps_shares_and_curves_are_those_of_the_runs(report: Report) -> None:
    assert [(one.key, one.label, one.values) for one in report.varied] == [
        (RELEVANCE, "relevance_min_rating", (1, 3, 5))
    ]
    assert report.step == "each run's last step: step 20"
    assert [variant.kept_turns for variant in report.variants] == [1.0, 0.75, 0.5]
    assert [variant.kept_samples for variant in report.variants] == [1.0, 0.875, 0.75]
    curves = {one.key: one for one in report.curves}
    assert list(curves) == ["batch_loss", "val_loss", SCORE]
    assert [line.steps for line in curves[SCORE].lines] == [(10, 20)] * 3
    last = curves[SCORE].lines[1]
    assert last.low[1] <= last.mean[1] <= last.high[1]
    assert last.mean[1] == pytest.approx(report.variants[1].scores[SCORE].mean)
    [thresholds, _] = report.thresholds
    assert (thresholds.measure, thresholds.lines[0].variants) == (SCORE, (0, 1, 2))
    assert dict(report.shared)["git"].startswith("0123456789")


def test_another_step_can_be_asked_for(sweep: Path) -> None:
    found = build_report(ReportConfig(sweep=str(sweep), step=10, samples=0))
    assert found.step == "step 10, as asked for"
    assert {run.step for variant in found.variants for run in variant.runs} == {10}
    with pytest.raises(ConfigError, match="step=15: must be one that has results: 10, 20"):
        build_report(ReportConfig(sweep=str(sweep), step=15))


def test_a_run_without_a_result_at_the_step_that_was_asked_for_is_a_hole_there(tmp_path: Path) -> None:
    sweep = small(axes={}, steps=(10, 20)).write(tmp_path / "sweep")
    run = sweep / "seed=1"
    shutil.rmtree(run / "evals" / "step_10")
    (run / "evals" / "step_10.json").unlink()
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(rows[:9] + rows[10:]))  # nor was it validated there
    found = build_report(ReportConfig(sweep=str(sweep), step=10, samples=0))
    assert [one.step for one in found.variants[0].runs] == [10, None, 10]
    [hole] = found.holes
    assert (hole.run, hole.what) == ("seed=1", "easyvqa at step 10")
    assert "steps=10" in hole.way_out


def test_if_no_run_was_evaluated_at_its_end_the_last_common_step_counts(tmp_path: Path) -> None:
    sweep = small(axes={}, steps=(10, 20)).write(tmp_path / "sweep")
    for run in sweep.glob("seed=*"):
        shutil.rmtree(run / "evals" / "step_20")
        (run / "evals" / "step_20.json").unlink()
    found = build_report(ReportConfig(sweep=str(sweep)))
    assert found.step.startswith("step 10: no run has results at its end")


def test_the_baseline_is_chosen_by_its_settings(sweep: Path) -> None:
    found = build_report(ReportConfig(sweep=str(sweep), baseline=["relevance_min_rating=5"], samples=0))
    assert [variant.label for variant in found.variants] == [
        "relevance_min_rating 1",
        "relevance_min_rating 3",
        "baseline (relevance_min_rating 5)",
    ]
    assert {each.other for each in found.comparisons} == {2}
    for wanted, told in (
        (f"{RELEVANCE}=2", "fits no variant; there are: relevance_min_rating 1; relevance_min_rating 3; "),
        ("filter.formatting_min_rating=1", "does not differ between the runs; what does: filter.relevance_min_rating"),
    ):
        with pytest.raises(ConfigError, match=told):
            build_report(ReportConfig(sweep=str(sweep), baseline=[wanted]))


def test_two_axes_give_a_heat_map_and_a_line_for_each_value_of_the_other(tmp_path: Path) -> None:
    found = report_of(small(axes={RELEVANCE: (1, 3), VISUAL: (1, 2)}, seeds=(0, 1)), tmp_path / "sweep")
    assert [variant.label for variant in found.variants] == [
        "baseline",
        "visual_dependency_min_rating 2",
        "relevance_min_rating 3",
        "relevance_min_rating 3, visual_dependency_min_rating 2",
    ]
    [heat_map] = found.heat_maps
    assert heat_map.variants == {(1, 1): 0, (1, 2): 1, (3, 1): 2, (3, 2): 3}
    first = found.thresholds[0]
    assert [(line.label, line.variants) for line in first.lines] == [
        ("visual_dependency_min_rating 1", (0, 2)),
        ("visual_dependency_min_rating 2", (1, 3)),
    ]


def of_minima(*minima: int) -> MadeUpSweep:
    """One run through a filter, with minima in the order of RATING_AXES."""
    return small(axes=dict(zip(MINIMA, ((value,) for value in minima), strict=True)), seeds=(0,))


def test_rating_minima_that_have_one_value_are_an_axis_together(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for minima in ((1, 1, 1, 1), (3, 3, 3, 3), (4, 4, 4, 4), (3, 1, 1, 1)):
        of_minima(*minima).write(sweep)
    (sweep / "manifest.json").unlink()
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    labels = {variant.label for variant in found.variants}
    assert labels == {"baseline (all ratings ≥ 1)", "relevance_min_rating 3", "all ratings ≥ 3", "all ratings ≥ 4"}
    together = next(one for one in found.thresholds if one.varied.label == "all ratings")
    assert together.varied.values == (1, 3, 4)
    alone = next(one for one in found.thresholds if one.varied.key == RELEVANCE)
    assert alone.varied.values == (1, 3), "4 is the value of no variant that differs in it alone"
    [line] = together.lines
    assert [found.variants[number].settings["filter.*"] for number in line.variants] == [1, 3, 4]
    assert found.variants[line.variants[0]].is_baseline
    assert found.heat_maps == ()


def test_all_minima_and_another_key_are_told_apart_in_words_and_on_a_map(tmp_path: Path) -> None:
    sweep, rate = tmp_path / "sweep", "optimizer.lr_language"
    for value in (1, 3):
        small(axes={**dict.fromkeys(MINIMA, (value,)), rate: (1e-4, 3e-4)}, seeds=(0,)).write(sweep)
    (sweep / "manifest.json").unlink()
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    assert [variant.differences for variant in found.variants] == [
        (),
        (("lr_language", "0.0003"),),
        (("all ratings", "≥ 3"),),
        (("all ratings", "≥ 3"), ("lr_language", "0.0003")),
    ]
    assert found.variants[3].label == "all ratings ≥ 3, lr_language 0.0003"
    lines = next(one.lines for one in found.thresholds if one.varied.key == rate)
    assert [line.label for line in lines] == ["all ratings ≥ 1", "all ratings ≥ 3"]
    [heat_map] = found.heat_maps
    assert {heat_map.rows.key, heat_map.columns.key} == {rate, "filter.*"}
    assert sorted(heat_map.variants.values()) == [0, 1, 2, 3]


def test_some_keys_that_happen_to_have_one_value_are_not_all(tmp_path: Path) -> None:
    axes = {RELEVANCE: (1, 3), VISUAL: (1, 3), "optimizer.lr_vision": (1e-4,), "optimizer.lr_language": (1e-4,)}
    found = report_of(small(axes=axes, seeds=(0,)), tmp_path / "sweep")
    assert found.variants[3].label == "relevance_min_rating 3, visual_dependency_min_rating 3"
    assert {one.varied.key for one in found.thresholds} == {RELEVANCE, VISUAL}
    assert all(set(variant.settings) == {RELEVANCE, VISUAL} for variant in found.variants)


def test_a_key_that_only_some_options_have_is_an_axis_for_these(tmp_path: Path) -> None:
    sweep = small(axes={"packing.pool_size": (16, 64, None)}, seeds=(0,)).write(tmp_path / "sweep")
    without = RunPaths(sweep / run_name({"packing.pool_size": None}, 0)).config
    greedy = without.read_text().replace("kind: knapsack", "kind: greedy")
    without.write_text(greedy.replace("  pool_size: null\n", "  buffer_packs: 8\n"))
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    assert [(one.key, one.values) for one in found.varied] == [
        ("packing", ("knapsack", "greedy")),
        ("packing.pool_size", (None, 16, 64)),
    ]
    assert found.variants[2].label == "packing greedy"
    assert {(one.varied.values, one.lines[0].variants) for one in found.thresholds} == {((16, 64), (0, 1))}
    assert found.heat_maps == ()  # the two never change alone


def test_packers_are_an_axis_whatever_keys_come_with_them(tmp_path: Path) -> None:
    axes = {"packing.kind": ("knapsack", "bfd"), RELEVANCE: (1, 3)}
    sweep = small(axes=axes, seeds=(0,)).write(tmp_path / "sweep")
    for path in sweep.glob("*packing.kind=bfd*/config.yaml"):
        path.write_text(path.read_text().replace("  pool_size: 64\n", ""))
    found = build_report(ReportConfig(sweep=str(sweep), samples=0, baseline=["packing=bfd", "relevance_min_rating=1"]))
    assert [variant.label for variant in found.variants] == [
        "packing knapsack",
        "relevance_min_rating 3, packing knapsack",
        "baseline",
        "relevance_min_rating 3",
    ]
    assert [one.key for one in found.varied] == [RELEVANCE, "packing"]
    [heat_map] = found.heat_maps
    assert sorted(heat_map.variants.values()) == [0, 1, 2, 3]


def test_a_run_that_does_not_say_which_packer_it_had_is_another_variant_with_a_name(tmp_path: Path) -> None:
    sweep = small(axes={}, seeds=(0, 1)).write(tmp_path / "sweep")
    old = sweep / "seed=1" / "config.yaml"
    old.write_text(old.read_text().replace("  kind: knapsack\n", ""))
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    assert [variant.label for variant in found.variants] == ["baseline (packing knapsack)", "packing null"]


# ---- the baseline --------------------------------------------------------------------------------------


def test_the_baseline_is_of_the_first_job_though_another_seed_of_it_began_first(tmp_path: Path) -> None:
    first = [run_name({RELEVANCE: 1}, seed) for seed in range(2)]
    one = small(axes={RELEVANCE: (1, 3)}, seeds=(0, 1), never_begun=first[:1]).write(tmp_path / "one")
    write_manifest(one, sorted(read_manifest(one), key=lambda job: job.overrides[-1]))  # seed 0 of both, then seed 1
    found = build_report(ReportConfig(sweep=str(one), samples=0))
    assert [(variant.settings[RELEVANCE], variant.is_baseline) for variant in found.variants] == [(3, False), (1, True)]
    assert found.notes == ()
    none = small(axes={RELEVANCE: (1, 3)}, seeds=(0, 1), never_begun=first).write(tmp_path / "none")
    found = build_report(ReportConfig(sweep=str(none), samples=0))
    assert found.notes == (
        "nothing can be read of the first, filter.relevance_min_rating=1 seed=0: the baseline is the variant of "
        "the first that can",
    )
    named = build_report(
        ReportConfig(runs=[str(one / name) for name in (first[0], run_name({RELEVANCE: 3}, 0), first[1])])
    )
    assert next(variant for variant in named.variants if variant.is_baseline).settings[RELEVANCE] == 1


# ---- measures ------------------------------------------------------------------------------------------


def test_the_average_is_over_tasks_that_all_runs_have(tmp_path: Path) -> None:
    sweep = small(axes={RELEVANCE: (1, 3)}, seeds=(0, 1), tasks=("mmstar", "mme")).write(tmp_path / "sweep")
    runs = sorted(sweep.glob("filter*"))
    for run in runs[:3]:  # one has none: it is not averaged
        paths = RunPaths(run)
        done_cell(paths.cells(10), "textvqa_val", [1.0] * 5, step=10, fingerprint=fingerprint(paths))
        merge_subject(paths.cells(10))
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    assert [one.key for one in found.measures] == [
        "average",
        "mmstar_exact_match",
        "mme_exact_match",
        "textvqa_val_exact_match",
        "val_loss",
    ]
    assert "mmstar, mme" in found.measures[0].note
    run = found.variants[0].runs[0]
    assert run.scores["average"] == pytest.approx(
        (run.scores["mmstar_exact_match"] + run.scores["mme_exact_match"]) / 2
    )
    main = found.comparisons[0]
    assert (main.measure, main.questions) == ("average", 60)
    [hole] = [hole for hole in found.holes if hole.what == "textvqa_val at step 10"]
    assert hole.run == "filter.relevance_min_rating=3 seed=1"
    assert "steps=10 'tasks=[textvqa_val]'" in hole.way_out
    estimates = {one.key: [each.name for each in one.estimates] for one in found.measures}
    assert estimates["textvqa_val_exact_match"] == ["LLaVA-1.5", "nanoVLM's goal", "best known"]


def test_limited_results_are_a_measure_of_their_own(tmp_path: Path) -> None:
    sweep = small(axes={RELEVANCE: (1, 3)}, seeds=(0, 1), limit=12).write(tmp_path / "sweep")
    one = RunPaths(sweep / run_name({RELEVANCE: 3}, 1))
    done_cell(one.cells(10), "easyvqa", [1.0] * 30, step=10, fingerprint=fingerprint(one))
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    assert [measure.key for measure in found.measures] == [f"{SCORE}.limit12", SCORE, "val_loss"]
    assert found.measures[0].label == "easyvqa exact_match, first 12"
    assert found.variants[1].scores[f"{SCORE}.limit12"].seeds == 1
    [limited] = [hole for hole in found.holes if hole.what == "easyvqa, beyond its first 12 samples"]
    assert limited.run == "3 runs, the command is for filter.relevance_min_rating=1 seed=0"
    first = sweep / run_name({RELEVANCE: 1}, 0)
    assert limited.way_out == f"python -m vlmkit.eval run={first} steps=10 'tasks=[easyvqa]'"
    shutil.rmtree(RunPaths(first).checkpoint(10))
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    [limited] = [hole for hole in found.holes if hole.what == "easyvqa, beyond its first 12 samples"]
    assert limited.run == "3 runs, the command is for filter.relevance_min_rating=1 seed=1"
    assert f"run={sweep / run_name({RELEVANCE: 1}, 1)} " in limited.way_out


def test_a_limited_task_that_failed_is_one_hole_of_as_many_samples(tmp_path: Path) -> None:
    sweep = small(axes={}, seeds=(0, 1), tasks=("easyvqa", "mmstar"), limit=12).write(tmp_path / "sweep")
    for name, others_have_it in (("seed=1", True), ("seed=0", False)):
        cells = RunPaths(sweep / name).cells(10)
        order = {"step": 10, "limit": 12, "fingerprint": fingerprint(RunPaths(sweep / name))}
        shutil.rmtree(cells / "mmstar.limit12")
        unfinished_cell(cells, "mmstar", CellState.failed, **order)
        merge_subject(cells)
        found = build_report(ReportConfig(sweep=str(sweep), samples=0))
        holes = [hole for hole in found.holes if hole.run == name and hole.what.startswith("mmstar")]
        assert [hole.what for hole in holes] == ["mmstar.limit12 at step 10"], others_have_it
        assert "no such thing" in holes[0].why
        assert "mmstar.limit12" in holes[0].way_out, "the command is for this cell"


def test_mme_counts_by_its_largest_scores_and_is_summed_for_the_estimates(tmp_path: Path) -> None:
    sweep = small(axes={}, seeds=(0, 1), tasks=("mmstar",)).write(tmp_path / "sweep")
    for run in sweep.glob("seed=*"):
        change_json(
            run / "evals" / "step_10.json",
            results={"mmstar_average": 0.5, "mme_mme_perception_score": 1000.0, "mme_mme_cognition_score": 200.0},
            provenance={},
        )
        shutil.rmtree(run / "evals" / "step_10")
    found = build_report(ReportConfig(sweep=str(sweep)))
    scores = found.variants[0].runs[0].scores
    assert scores["average"] == pytest.approx((0.5 + (1000 / 2000 + 200 / 800) / 2) / 2)
    assert scores["mme_total"] == 1200
    assert found.measure("mme_total").estimates[0].name == "InstructBLIP"
    alone = build_report(ReportConfig(sweep=str(sweep), tasks=["mme"]))
    assert alone.measures[0].key == "mme_total"


def test_a_score_of_a_hundred_is_not_averaged_with_shares(tmp_path: Path) -> None:
    sweep = small(axes={}, seeds=(0, 1), tasks=("mmstar",)).write(tmp_path / "sweep")
    results = {"mmstar_average": 0.5, "textvqa_val_exact_match": 0.3, "vstar_bench_exact_match": 45.0}
    for run in sweep.glob("seed=*"):
        change_json(run / "evals" / "step_10.json", results=results, provenance={})
        shutil.rmtree(run / "evals" / "step_10")
    found = build_report(ReportConfig(sweep=str(sweep)))
    assert found.variants[0].scores["average"].mean == pytest.approx(0.4)
    assert found.measures[0].note.endswith("left out, as it is no share: vstar_bench_exact_match")
    assert "from another program" in found.measures[1].note


def test_imported_results_count_by_the_main_metric_of_each_task(tmp_path: Path) -> None:
    sweep = small(axes={}, seeds=(0, 1), tasks=("mmstar",)).write(tmp_path / "sweep")
    wholes = {
        "mmstar_average": 0.5,
        "infovqa_val_anls": 0.3,
        "chartqa_relaxed_overall": 0.4,
        "easyvqa_exact_match": 0.6,
    }
    parts = {"mmstar_coarse perception": 0.9, "chartqa_relaxed_human_split": 0.9, "easyvqa_f1": 0.9}
    for run in sweep.glob("seed=*"):
        change_json(run / "evals" / "step_10.json", results=wholes | parts, provenance={})
        shutil.rmtree(run / "evals" / "step_10")
    found = build_report(ReportConfig(sweep=str(sweep)))
    assert {one.key for one in found.measures} == {"average", *wholes, "val_loss"}
    assert found.variants[0].scores["average"].mean == pytest.approx(0.45)


def test_a_task_of_which_less_is_better_is_in_no_average(tmp_path: Path) -> None:
    sweep = small(axes={}, seeds=(0, 1), tasks=("mmstar", "mme", "perplexing")).write(tmp_path / "sweep")
    for run in sweep.glob("seed=*"):
        cell = run / "evals" / "step_10" / "perplexing" / "cell.json"
        cell.write_text(cell.read_text().replace('"higher_is_better": true', '"higher_is_better": false'))
    found = build_report(ReportConfig(sweep=str(sweep)))
    assert found.measures[0].label == "average of 2 tasks"
    assert not found.measure("perplexing_exact_match").higher_is_better


def test_a_task_that_nobody_answered_is_refused(sweep: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks=mmstar: must be evaluated at .*: easyvqa"):
        build_report(ReportConfig(sweep=str(sweep), tasks=["mmstar"]))


# ---- holes ---------------------------------------------------------------------------------------------


def test_runs_without_an_end_or_a_result_are_holes_with_a_way_out(tmp_path: Path) -> None:
    names = [run_name({RELEVANCE: 3}, seed) for seed in range(4)]
    made = small(
        axes={RELEVANCE: (1, 3)},
        seeds=range(4),
        steps=(10, 20),
        never_begun=names[:1],
        stopped=names[1:2],
        unevaluated=names[2:3],
    )
    sweep = made.write(tmp_path / "sweep")
    (sweep / "log").write_text("== start\nOutOfMemoryError: no room at https://me:pass@host\n")
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    [variant] = [variant for variant in found.variants if not variant.is_baseline]
    assert [run.seed for run in variant.runs] == [1, 2, 3]
    assert [run.state for run in variant.runs] == ["stopped at step 10 of 20", "done", "done"]
    assert variant.scores[SCORE].seeds == 1
    holes = {hole.run.partition(" ")[2]: hole for hole in found.holes}
    assert holes["seed=0"].why.startswith("never begun: job made-up:1 was ended")
    assert holes["seed=1"].why.startswith("stopped at step 10 of 20: job made-up:1 was ended")
    assert holes["seed=1"].why.endswith("its log ends with: OutOfMemoryError: no room at https://***@host")
    assert holes["seed=1"].way_out == "python -m vlmkit.train -m filter.relevance_min_rating=3 seed=1"
    assert (holes["seed=2"].what, holes["seed=2"].why) == (
        "easyvqa at step 20",
        "not planned: due: the run ended before",
    )
    assert holes["seed=2"].way_out.startswith("python -m vlmkit.eval run=")
    assert any(point.startswith("without easyvqa exact_match") for point in found.answer.points)


def test_what_waits_or_is_planned_anyway_has_no_way_out(tmp_path: Path) -> None:
    sweep = small(axes={}, seeds=range(4), never_begun=["seed=1", "seed=2"], unevaluated=["seed=3"]).write(
        tmp_path / "sweep"
    )
    with Held(JobPlace.of_folder(sweep / "seed=1").lock, RunPaths(sweep / "seed=3").lock):
        found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    assert {hole.run: (hole.why, hole.way_out) for hole in found.holes if hole.run != "seed=2"} == {
        "seed=1": ("never begun: waiting", ""),
        "seed=3": ("not planned: due: the run plans it after a step", ""),
    }
    [ended] = [hole for hole in found.holes if hole.run == "seed=2"]
    assert ended.way_out == "python -m vlmkit.train -m seed=2"


def test_a_way_out_answers_as_the_suite_of_the_run_does(tmp_path: Path) -> None:
    sweep = small(axes={}, seeds=(0, 1, 2), unevaluated=["seed=1"]).write(tmp_path / "sweep")
    own = {"temperature": 0.0, "max_new_tokens": 8, "local_data": "/eval data", "max_errors": 3}
    for run in sweep.glob("seed=*"):
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["eval_suite"] |= own
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    other = RunPaths(sweep / "seed=0")
    done_cell(other.cells(10), "mmstar", [1.0] * 5, step=10, fingerprint=fingerprint(other))
    change_json(other.cells(10) / "easyvqa" / "cell.json", errors=2)
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    asked = ["eval_suite.max_new_tokens=8", "eval_suite.temperature=0.0"]
    local, errors = "eval_suite.local_data=/eval data", "eval_suite.max_errors=3"
    ways_out = {(hole.run, hole.what): shlex.split(hole.way_out)[3:] for hole in found.holes}
    assert ways_out == {
        ("seed=1", "easyvqa at step 10"):
            [f"run={sweep}/seed=1", "steps=10", "tasks=[easyvqa]", *asked, errors, local],
        ("seed=1", "mmstar at step 10"): [f"run={sweep}/seed=1", "steps=10", "tasks=[mmstar]", *asked, errors, local],
        ("seed=2", "mmstar at step 10"): [f"run={sweep}/seed=2", "steps=10", "tasks=[mmstar]", *asked, errors, local],
        # With the errors that the suite allows it would be done already.
        ("seed=0", "easyvqa, 2 of its samples"): [f"run={sweep}/seed=0", "steps=10", "tasks=[easyvqa]", *asked, local],
    }  # fmt: skip


def test_slurm_is_asked_once_for_the_jobs_of_all_holes(tmp_path: Path, no_slurm: Path) -> None:
    sweep = small(axes={}, seeds=range(4), unevaluated=["seed=1", "seed=2", "seed=3"]).write(tmp_path / "sweep")
    cells = [
        ("seed=1", CellState.failed, "FAILED"),
        ("seed=2", CellState.planned, "RUNNING"),
        ("seed=3", CellState.planned, "TIMEOUT"),
    ]
    queue = ""
    for number, (run, state, word) in enumerate(cells):
        cell = unfinished_cell(RunPaths(sweep / run).cells(10), "easyvqa", state, step=10)
        job = Job(Launcher.slurm, f"12_{number}", ["true"], str(cell.folder), "/logs/log.out", 1.0)
        job.write(JobPlace.of_cell(cell.folder))
        queue += f"12_{number}|{word}|None|/logs/job.sh\n"
    replace(job, job_id="13").write(JobPlace.of_cell(RunPaths(sweep / "seed=1").cells(5) / "easyvqa"))
    says(no_slurm, "squeue", queue)
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    holes = {hole.run: hole for hole in found.holes}
    assert holes["seed=1"].why == "failed: ValueError: no such thing"
    assert holes["seed=2"].why.startswith("planned: job 12_1 runs since ")
    assert holes["seed=3"].why.startswith("planned: job 12_2 was ended (TIMEOUT)")
    assert [run for run, hole in holes.items() if not hole.way_out] == ["seed=2"]
    [asked] = (no_slurm / "asked").read_text().splitlines()
    assert "--jobs=12 " in asked  # not of a step that nobody looks at


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", "{"),
        ("config.yaml", "seed: 0"),
        ("config.yaml", "- a list"),
        ("metrics.jsonl", "not json\n[1]\n"),
        ("provenance.json", "[]"),
        ("evals/step_10.json", "{"),
        ("evals/step_10/easyvqa/cell.json", "{}"),
        ("evals/step_10/easyvqa/samples.jsonl", '{"index": 0}\n'),
    ],
)
def test_what_is_damaged_is_a_hole_and_never_the_end(tmp_path: Path, file: str, content: str) -> None:
    sweep = small(axes={RELEVANCE: (1, 3)}, seeds=(0, 1)).write(tmp_path / "sweep")
    damaged = sweep / run_name({RELEVANCE: 3}, 1) / file
    damaged.write_text(content)
    found = build_report(ReportConfig(sweep=str(sweep), samples=0))
    assert found.answer.best is not None
    whole = [run for variant in found.variants for run in variant.runs if SCORE in run.scores]
    assert len(whole) >= 3
    if file == "config.yaml":
        assert [hole.run for hole in found.holes] == ["filter.relevance_min_rating=3 seed=1"]


def test_a_sweep_of_which_no_run_has_begun_is_refused(tmp_path: Path) -> None:
    names = [run_name({}, seed) for seed in range(3)]
    sweep = small(axes={}, never_begun=names).write(tmp_path / "sweep")
    with pytest.raises(ConfigError, match="no run has begun that can be read; seed=0: never begun: "):
        build_report(ReportConfig(sweep=str(sweep)))


def test_runs_can_be_named_and_the_same_run_twice_is_told(tmp_path: Path) -> None:
    sweep = small(axes={}, seeds=(0, 1)).write(tmp_path / "sweep")
    runs = [str(run) for run in sorted(sweep.glob("seed=*"))]
    shutil.copytree(runs[1], tmp_path / "copy")
    found = build_report(ReportConfig(runs=[*runs, str(tmp_path / "copy")], samples=0))
    assert found.title == "3 runs"
    assert [note.partition(":")[0] for note in found.notes] == ["copy is left out"]
    assert len(found.variants[0].runs) == found.variants[0].scores[SCORE].seeds == 2
    shutil.rmtree(Path(runs[1]) / "evals")
    found = build_report(ReportConfig(runs=[*runs, str(tmp_path / "copy")], samples=0))
    assert found.notes[0].startswith("seed=1 is left out"), "the other one has results"
    with pytest.raises(ConfigError, match=r"runs=.*seed=0: must be named once"):
        build_report(ReportConfig(runs=[runs[0], f"{runs[0]}/"]))
    (tmp_path / "link").symlink_to(runs[0])
    with pytest.raises(ConfigError, match=r"runs=.*link: must be named once"):
        build_report(ReportConfig(runs=[f"{runs[1]}/../seed=0", str(tmp_path / "link")]))


def test_a_sweep_is_named_as_a_person_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(axes={}, seeds=(0,), unevaluated=["seed=0"]).write(tmp_path / "sweep")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "sweep" / "seed=0")
    for name in ("~/sweep/", "..", "../../sweep"):
        found = build_report(ReportConfig(sweep=name, samples=0))
        assert found.title == "sweep"
        assert found.variants[0].runs[0].folder == str(tmp_path / "sweep" / "seed=0")


# ---- questions that changed ----------------------------------------------------------------------------


def test_flips_are_the_questions_whose_mean_score_changes_most(report: Report) -> None:
    [flips] = report.flips
    assert (flips.other, flips.measure, flips.questions, flips.note) == (1, SCORE, 120, "")
    assert len(flips.gained) == 6
    assert flips.num_gained > 6
    gains = [flip.scores[1] - flip.scores[0] for flip in flips.gained]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] == 1.0
    first = flips.gained[0]
    assert first.answers == (("maybe",) * 3, (first.target,) * 3)
    assert first.prompt == f"Is shape {first.doc_id} blue?"


def test_a_question_that_one_run_was_asked_otherwise_is_no_flip(tmp_path: Path) -> None:
    sweep = small(axes={RELEVANCE: (1, 3)}, seeds=(0, 1)).write(tmp_path / "sweep")
    samples = sweep / run_name({RELEVANCE: 3}, 1) / "evals" / "step_10" / "easyvqa" / "samples.jsonl"
    samples.write_text(samples.read_text().replace("Is shape 7 blue?", "Is shape 7 red?"))
    found = build_report(ReportConfig(sweep=str(sweep), samples=30))
    [flips] = found.flips
    assert flips.questions == found.comparisons[0].questions == 29
    assert 7 not in {flip.doc_id for flip in (*flips.gained, *flips.lost)}


def test_of_equal_changes_each_question_is_shown_once_before_any_twice(tmp_path: Path) -> None:
    sweep = small(axes={RELEVANCE: (1, 3)}, seeds=(0,), effects={(RELEVANCE, 3): 0.5}).write(tmp_path / "sweep")
    for path in sweep.glob("*/evals/step_10/easyvqa/samples.jsonl"):  # of the last 10 questions each has its own prompt
        path.write_text(re.sub(r"Is shape [01]?\d blue", "Is it blue", path.read_text()))
    [flips] = build_report(ReportConfig(sweep=str(sweep), samples=30)).flips
    prompts = [flip.prompt for flip in flips.gained]
    assert prompts.count("Is it blue?") > 3
    different = len(set(prompts))
    assert different > 3
    assert len(set(prompts[:different])) == different


def test_of_a_pair_of_mme_one_question_is_shown(tmp_path: Path) -> None:
    sweep = small(axes={RELEVANCE: (1, 3)}, seeds=(0,)).write(tmp_path / "sweep")
    how = Aggregation.sum_of_strata
    lines: list[Line] = [{"pictures": []}] * 8
    clusters = [f"picture {number // 2}" for number in range(8)]
    for run, scores in zip(sorted(sweep.glob("filter*")), ([0.0] * 8, [0.0, 0.0] + [200.0] * 6), strict=True):
        cells = RunPaths(run).cells(10)
        order = {"step": 10, "fingerprint": fingerprint(RunPaths(run))}
        shutil.rmtree(cells / "easyvqa")
        done_cell(cells, "mme", scores, "mme_perception_score", how, clusters=clusters, lines=lines, **order)
        merge_subject(cells)
    [flips] = build_report(ReportConfig(sweep=str(sweep))).flips
    assert (flips.questions, flips.num_gained, flips.num_lost) == (4, 3, 0)
    assert [flip.doc_id for flip in flips.gained] == [2, 4, 6]


@pytest.mark.slow
def test_thumbnails_are_shown_if_they_are_what_was_asked_about(tmp_path: Path) -> None:
    tasks = pytest.importorskip("vlmkit.evaluation.tasks")
    from vlmkit.processing.images import digest_picture, to_rgb

    sweep = small(axes={RELEVANCE: (1, 3)}, seeds=(0,), questions=9, with_pictures=True).write(tmp_path / "sweep")
    loaded = tasks.load_task("easyvqa", None)
    for path in sweep.glob("*/evals/step_10/easyvqa/samples.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines[:5]:  # the others are about pictures that easy-VQA does not have
            line["pictures"] = [digest_picture(to_rgb(picture)) for picture in loaded.pictures(line["doc_id"])]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [flips] = build_report(ReportConfig(sweep=str(sweep), samples=9)).flips
    shown: Sequence[bool] = [bool(flip.pictures) for flip in (*flips.gained, *flips.lost)]
    assert shown == [flip.doc_id < 5 for flip in (*flips.gained, *flips.lost)]
    assert all(uri.startswith("data:image/webp;base64,") for flip in flips.gained for uri in flip.pictures)
    assert flips.note.endswith("questions have other pictures here")


def fingerprint(paths: RunPaths) -> str:
    """Of the checkpoint that the cells of a made-up run are of."""
    cell = next(paths.cells(10).glob("*/cell.json"))
    return str(json.loads(cell.read_text())["order"]["fingerprint"])
