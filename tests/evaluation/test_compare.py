"""Two checkpoints on the same questions: what counts, what is left out, what is told."""

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.cells_on_disk import done_cell, say_checkpoint, unfinished_cell
from vlmkit.errors import ConfigError
from vlmkit.evaluation.cells import Aggregation, CellState, Metric
from vlmkit.evaluation.compare import TaskComparison, compare_sides
from vlmkit.evaluation.samples import read_samples, rewrite
from vlmkit.evaluation.sides import find_sides
from vlmkit.evaluation.statistics import compare_scores, holm


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return tmp_path / "a" / "evals" / "step_500"


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return tmp_path / "b" / "evals" / "step_500"


def compared(a: Path, b: Path, tasks: list[str] | None = None) -> dict[str, TaskComparison]:
    sides = find_sides(str(a), str(b))
    return {one.task: one for one in compare_sides(*sides, tasks, 0.95)}


def test_a_comparison_is_the_paired_test_of_the_scores(a: Path, b: Path) -> None:
    rng = random.Random(0)
    scores = [[float(rng.random() < p) for _ in range(60)] for p in (0.7, 0.4)]
    parts = {"strata": [f"part {i % 3}" for i in range(60)], "clusters": [str(i // 2) for i in range(60)]}
    how = Aggregation.mean_of_strata
    for folder, own in zip((a, b), scores, strict=True):
        done_cell(folder, "mmstar", own, "average", how, **parts, fingerprint=folder.parents[1].name)
    found = compared(a, b)["mmstar"]
    [metric] = found.metrics
    assert metric.difference == compare_scores(*scores, parts["strata"], parts["clusters"], how, 0.95)
    assert metric.difference.value == pytest.approx(metric.a - metric.b)
    assert (metric.name, metric.n, metric.difference.clusters, found.notes) == ("average", 60, 30, [])
    gains = [x - y for x, y in zip(*scores, strict=True)]
    assert (metric.a_better, metric.b_better, metric.same) == (gains.count(1), gains.count(-1), gains.count(0))
    assert [unit.samples[0].doc_id for unit in found.changed] == [number for number, gain in enumerate(gains) if gain]


def test_exchanging_a_and_b_turns_the_sign(a: Path, b: Path) -> None:
    done_cell(a, "t", [1, 1, 0, 1, 0], fingerprint="a")
    done_cell(b, "t", [1, 0, 0, 0, 1], fingerprint="b")
    [there], [back] = compared(a, b)["t"].metrics, compared(b, a)["t"].metrics
    assert there.difference.value == -back.difference.value
    assert (there.difference.low, there.difference.p) == (-back.difference.high, back.difference.p)
    assert (there.a_better, there.b_better) == (back.b_better, back.a_better) == (2, 1)


def test_p_is_corrected_over_tasks_by_their_main_metrics(a: Path, b: Path) -> None:
    for folder, shift in ((a, 0), (b, 1)):
        for number, task in enumerate(("x", "y", "z")):
            scores = [float((i + shift * (i % (number + 2) == 0)) % 2) for i in range(30)]
            cell = done_cell(folder, task, scores, fingerprint=str(shift))
            lines = read_samples(cell.folder)
            for line in lines.values():
                if line["doc_id"] < 10:
                    line["scores"]["category"] = line["scores"]["exact_match"]
            rewrite(cell.folder, lines.values())
            category = Metric(0.5, 10, Aggregation.mean)
            cell.changed(metrics={"category": category, **cell.metrics})  # lmms-eval names MMStar's categories first
    found = compared(a, b)
    main = [one.metrics[0] for one in found.values()]
    assert [(metric.name, metric.n) for metric in main] == [("exact_match", 30)] * 3
    assert [metric.p_corrected for metric in main] == holm([metric.p for metric in main])
    assert main[0].p_corrected != main[0].p
    others = [one.metrics[1] for one in found.values()]
    assert [(metric.name, metric.n, metric.p_corrected) for metric in others] == [("category", 10, None)] * 3


def test_only_samples_that_both_have_scored_count_and_it_says_so(a: Path, b: Path) -> None:
    done_cell(a, "t", [1, 1, 0, 1, 1], fingerprint="a")
    done_cell(b, "t", [1, 0, 0], limit=3, fingerprint="b")
    cell = done_cell(a, "u", [1, 0], fingerprint="a")
    done_cell(b, "u", [1, 1], fingerprint="b")
    lines = read_samples(cell.folder)
    lines[1] = {"index": 1, "doc_id": 1, "prompt": "<image>question 1?", "pictures": [], "error": "no picture"}
    rewrite(cell.folder, lines.values())
    found = compared(a, b)
    [metric] = found["t"].metrics
    assert (metric.n, metric.a, metric.b) == (3, pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found["t"].notes == [
        "limit differs: None in a, 3 in b",
        "2 of 5 samples have a score in one only: left out",
    ]
    assert found["u"].notes == ["1 of 2 samples have a score in one only: left out"]


@pytest.mark.parametrize("other", [{"prompt": "another question?"}, {"pictures": ["ffff"]}])
def test_samples_that_ask_something_else_do_not_count(a: Path, b: Path, other: dict[str, Any]) -> None:
    done_cell(a, "t", [1, 1, 0], fingerprint="a")
    done_cell(b, "t", [0, 1, 0], lines=[other], fingerprint="b")
    found = compared(a, b)["t"]
    assert found.notes == ["not the same questions: 1 of 3 have another prompt or picture: left out"]
    assert (found.metrics[0].n, found.metrics[0].difference.value, found.changed) == (2, 0, [])


def test_a_task_with_no_question_in_common_has_nothing_to_compare(a: Path, b: Path) -> None:
    done_cell(a, "t", [1], lines=[{"prompt": "this?"}], fingerprint="a")
    done_cell(b, "t", [1], lines=[{"prompt": "that?"}], fingerprint="b")
    done_cell(a, "u", [1, 0], fingerprint="a")
    done_cell(b, "u", [1, 1], fingerprint="b")
    found = compared(a, b)
    assert (found["t"].metrics, found["t"].changed, found["t"].notes[-1]) == ([], [], "nothing to compare")
    assert found["u"].metrics[0].p_corrected == found["u"].metrics[0].p


def generation(**changes: Any) -> dict[str, Any]:
    """Settings, as a cell's provenance has them."""
    return {"max_new_tokens": 16, "until": ["\n"], "temperature": 0.0, "top_p": 1.0, "num_beams": 1} | changes


def test_other_settings_and_circumstances_are_told(a: Path, b: Path) -> None:
    used = [generation(temperature=0.5), generation()], [generation(until=[])]
    circumstances = (
        {"task_hash": "x", "data_hash": "v", "precision": "bf16", "seconds": 1},
        {"task_hash": "y", "data_hash": "w", "precision": "no", "seconds": 2},
    )
    done_cell(a, "t", [1, 0], limit=2, seed=1).changed(provenance={"generation": used[0], **circumstances[0]})
    done_cell(b, "t", [1, 1], lmms_eval="0.8", limit=2).changed(provenance={"generation": used[1], **circumstances[1]})
    assert compared(a, b)["t"].notes == [
        "lmms_eval differs: 0.7.3 in a, 0.8 in b",
        "until differs: ['\\n'] in a, [] in b",
        "temperature differs: 0.0 or 0.5 in a, 0.0 in b",
        "task_hash differs: x in a, y in b",
        "data_hash differs: v in a, w in b",
        "precision differs: bf16 in a, no in b",
        "both are the same checkpoint, file by file",
        "of the first 2 samples only",
    ]


def test_what_the_answers_did_not_depend_on_is_not_told(a: Path, b: Path) -> None:
    """The suite's defaults where the task has its own settings, and the seed where nothing is drawn."""
    for folder, own in ((a, {"max_new_tokens": 16}), (b, {"max_new_tokens": 99, "temperature": 1.0, "top_p": 0.5})):
        for task, drawn in (("greedy", False), ("drawn", True)):
            order = own | {"seed": len(own), "batch_size": len(own), "fingerprint": folder.parents[1].name}
            used = [generation(temperature=0.7 if drawn else 0.0)]
            done_cell(folder, task, [1, 0], **order).changed(provenance={"generation": used, "processes": len(own)})
    found = compared(a, b)
    assert found["greedy"].notes == []
    assert found["drawn"].notes == ["seed differs: 1 in a, 3 in b"]


def test_a_metric_that_is_no_mean_has_values_and_no_interval(a: Path, b: Path) -> None:
    for folder, value in ((a, 0.4), (b, 0.3)):
        done_cell(folder, "t", [1, 0], fingerprint=str(value)).changed(metrics={"elo": Metric(value, 2)})
    found = compared(a, b)["t"]
    [metric] = found.metrics
    assert (metric.a, metric.b, metric.difference, metric.p) == (0.4, 0.3, None, None)
    assert found.notes == ["elo is no mean: it is each one's own"]


def test_where_lower_is_better_the_lower_one_wins(a: Path, b: Path) -> None:
    for folder, scores in ((a, [0.0, 3.0, 2.0]), (b, [2.0, 3.0, 1.0])):
        cell = done_cell(folder, "t", scores, fingerprint=str(scores))
        cell.changed(metrics={"exact_match": replace(cell.metrics["exact_match"], higher_is_better=False)})
    [metric] = compared(a, b)["t"].metrics
    assert (metric.a_better, metric.b_better, metric.same) == (1, 1, 1)
    assert metric.difference.value == pytest.approx(-1 / 3)


def test_the_largest_changes_come_first(a: Path, b: Path) -> None:
    done_cell(a, "t", [0.0, 1.0, 0.5, 0.2], fingerprint="a")
    done_cell(b, "t", [0.1, 0.0, 0.5, 0.9], fingerprint="b")
    changed = compared(a, b)["t"].changed
    scores = [(unit.samples[0].doc_id, unit.score_a, unit.score_b) for unit in changed]
    assert scores == [(1, 1, 0), (3, 0.2, 0.9), (0, 0, 0.1)]
    [sample] = changed[0].samples
    assert (sample.prompt, sample.target) == ("<image>question 1?", "right")
    assert (sample.answer_a, sample.answer_b) == ("right", "wrong")


def test_a_pair_of_mme_changes_and_counts_once(a: Path, b: Path) -> None:
    """One of six answers is another; a picture with two questions that change alike is no such pair."""
    clusters, how = ["x", "x", "y", "y", "z", "z"], Aggregation.sum_of_strata
    for folder, score, answer in ((a, 200.0, "Yes"), (b, 50.0, "No")):
        scores, lines = [score, score, 50, 50, 50, 50], [{}, {"answer": answer}]
        done_cell(folder, "mme", scores, "perception", how, clusters=clusters, lines=lines, fingerprint=answer)
        done_cell(folder, "scienceqa", scores, clusters=clusters, fingerprint=answer)
    mme, scienceqa = (compared(a, b)[task] for task in ("mme", "scienceqa"))
    [metric], [unit] = mme.metrics, mme.changed
    assert (metric.n, metric.units, metric.a_better, metric.b_better, metric.same) == (6, 3, 1, 0, 2)
    assert (unit.score_a, unit.score_b) == (200, 50)
    answers = [(sample.doc_id, sample.answer_a, sample.answer_b) for sample in unit.samples]
    assert answers == [(0, "right", "right"), (1, "Yes", "No")]
    [metric] = scienceqa.metrics
    assert (metric.n, metric.units, metric.a_better, metric.same) == (6, 6, 2, 4)
    assert [len(unit.samples) for unit in scienceqa.changed] == [1, 1]


def test_where_choices_were_weighed_the_likeliest_is_the_answer(a: Path, b: Path) -> None:
    for folder, scores, likeliest in ((a, [1, 1], "red"), (b, [0, 1], "blue")):
        cell = done_cell(folder, "t", scores, fingerprint=likeliest)
        choices = [
            (scored if number == 0 else {key: scored[key] for key in ("doc_id", "prompt", "pictures")})
            | {
                "index": 3 * scored["index"] + number,
                "answer": choice,
                "logprob": -1.0 if choice == likeliest else -2.5,
            }
            for scored in read_samples(cell.folder).values()
            for number, choice in enumerate(("green", "red", "blue"))
        ]
        rewrite(cell.folder, choices)
    found = compared(a, b)["t"]
    assert found.metrics[0].n == 2
    [[sample]] = [unit.samples for unit in found.changed]
    assert (sample.doc_id, sample.answer_a, sample.answer_b) == (0, "red", "blue")


def test_a_run_means_its_newest_step_that_the_other_has_too(tmp_path: Path) -> None:
    for run, steps in (("a", (100, 200, 300)), ("b", (200, 400))):
        for step in steps:
            done_cell(tmp_path / run / "evals" / f"step_{step}", "t", [1, 0], fingerprint=f"{run}{step}")
    unfinished_cell(tmp_path / "b" / "evals" / "step_300", "t", CellState.begun)
    a, b = find_sides(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (a.step, b.step) == (200, 200)
    assert find_sides(str(tmp_path / "a"), str(tmp_path / "b" / "checkpoints" / "step_400"))[0].step == 300
    assert find_sides(str(tmp_path / "a"), str(tmp_path / "b" / "evals" / "step_200"))[0].step == 200
    shutil.rmtree(tmp_path / "b" / "evals" / "step_200")
    a, b = find_sides(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (a.step, b.step) == (300, 400)


def test_results_outside_a_run_are_named_by_their_folder(tmp_path: Path) -> None:
    done_cell(tmp_path / "runs" / "evals" / "smolvlm", "t", [1, 0], step=None)
    done_cell(tmp_path / "a" / "evals" / "step_100", "t", [1, 0], fingerprint="a")
    a, b = find_sides(str(tmp_path / "a"), str(tmp_path / "runs" / "evals" / "smolvlm"))
    assert (a.step, b.step, list(b.cells)) == (100, None, ["t"])


def test_cells_of_another_checkpoint_are_not_compared(a: Path, b: Path) -> None:
    done_cell(a, "t", [1, 0], fingerprint="old")
    done_cell(a, "u", [1, 0], fingerprint="new")
    say_checkpoint(a, "new")
    done_cell(b, "t", [1, 0])
    done_cell(b, "u", [1, 0])
    assert list(compared(a, b)) == ["u"]


def test_what_cannot_be_compared_is_told_in_one_line(a: Path, b: Path, tmp_path: Path) -> None:
    def told(*arguments: object) -> str:
        with pytest.raises(ConfigError) as error:
            find_sides(*map(str, arguments))
        assert "\n" not in str(error.value)
        return str(error.value)

    done_cell(a, "t", [1, 0])
    unfinished_cell(b, "t", CellState.begun)
    assert told(a, b).startswith(f"b={b}: has no finished evaluation: name a run, RUN/checkpoints/step_N")
    assert "python -m vlmkit.eval run=" in told(a, tmp_path / "b")
    assert "python -m vlmkit.eval ckpt=" in told(a, tmp_path / "a" / "checkpoints" / "step_7")
    assert told(tmp_path / "nowhere", a).startswith("a=")
    assert told(a, tmp_path / "a").endswith("is the same as a: name two checkpoints, as in RUN/checkpoints/step_N")
    done_cell(b, "u", [1, 0])
    assert told(a, b) == f"b={b}: has finished no task that a has: a has t; b has u"
    done_cell(b, "t", [1, 0])
    with pytest.raises(ConfigError, match=r"^tasks=\[mme,u\]: not finished by both a and b, which have t$"):
        compared(a, b, ["u", "t", "mme"])
