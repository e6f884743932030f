"""The task code of lmms-eval on made-up rows with the real columns, in whole cells; what cannot be done is told."""

import random
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value

from tests.evaluation.made_up_tasks import TASKS, MadeUpModel, number_in, picture
from vlmkit.config import EvalSuiteConfig, TrainerConfig
from vlmkit.distributed import Ranks
from vlmkit.errors import ConfigError, UserError
from vlmkit.evaluation.cells import Cell, CellState, Subject, order_cell, plan_cell
from vlmkit.evaluation.judges import find_judge
from vlmkit.evaluation.runner import CellRunner
from vlmkit.evaluation.samples import read_samples
from vlmkit.evaluation.statistics import aggregate
from vlmkit.evaluation.task_names import find_task_folder
from vlmkit.evaluation.tasks import _manager, load_task, quiet, require_task
from vlmkit.interrupt import StopSignal
from vlmkit.tracking.console import Screen


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder for eval_suite.local_data, with a task's rows in it."""
    folder = tmp_path_factory.mktemp("data")

    def saved(name: str) -> Path:
        if not (folder / name).exists():
            TASKS[name]().save(folder / name)
        return folder

    return saved


def run(
    folder: Path, task: str, local_data: Path, say: Callable[[int], str], refused: Sequence[int] = (), **suite: Any
) -> tuple[Cell, dict[int, Any], MadeUpModel]:
    """A cell of a made-up model, its lines, and the model."""
    model = MadeUpModel(say, refused)
    order = order_cell(Subject("x", 1, folder), task, EvalSuiteConfig(local_data=str(local_data), **suite), "made up")
    runner = CellRunner(Ranks(TrainerConfig(), 0), Screen(is_main=False), StopSignal())
    cell = runner.run_cell(plan_cell(folder, order, force=True), model, load_task(task, str(local_data)))
    return cell, read_samples(cell.folder), model


def values(cell: Cell) -> dict[str, float]:
    assert cell.state is CellState.done, cell.reason
    return {name: metric.value for name, metric in cell.metrics.items()}


def by_lmms_eval(task: str, local_data: Path, say: Callable[[int], str], folder: Path) -> dict[str, float]:
    """What lmms-eval itself makes of the same answers to the same rows."""
    with quiet():
        from lmms_eval.api.model import lmms
        from lmms_eval.evaluator import simple_evaluate

        class Model(lmms):
            is_simple = False

            def generate_until(self, requests: list[Any]) -> list[str]:
                return [say(number_in(request.args[0])) for request in requests]

            def loglikelihood(self, requests: list[Any]) -> Any:
                raise AssertionError

            def generate_until_multi_round(self, requests: list[Any]) -> Any:
                raise AssertionError

        local = {"dataset_path": str(local_data / task), "dataset_name": None}
        found = simple_evaluate(
            Model(),
            tasks=[{"task": task, **local, "dataset_kwargs": {"load_from_disk": True}}],
            task_manager=_manager(find_task_folder(task)),
            bootstrap_iters=0,
            cli_args=Namespace(output_path=str(folder), process_with_media=True),
        )
    results = found["results"][task].items()
    return {
        key.removesuffix(",none"): value
        for key, value in results
        if isinstance(value, float | int) and key.endswith(",none") and "_stderr" not in key
    }


def assert_scores_give_the_values(cell: Cell, lines: dict[int, Any], tolerance: float = 1e-6) -> None:
    for name, metric in cell.metrics.items():
        scored = [line for line in lines.values() if name in line.get("scores", {})]
        assert len(scored) == metric.n > 0
        assert metric.aggregation is not None
        scores = [line["scores"][name] for line in scored]
        strata = [line["strata"].get(name, "") for line in scored]
        assert aggregate(scores, strata, metric.aggregation) == pytest.approx(metric.value, abs=tolerance)


@pytest.mark.parametrize("name", TASKS)
def test_right_wrong_and_mixed_answers_have_their_scores_and_lmms_eval_says_the_same(
    name: str, data: Callable[[str], Path], tmp_path: Path
) -> None:
    made = TASKS[name]()
    tolerance = 1e-5 if name == "mmmu_val" else 1e-6  # whose code rounds

    cell, lines, _ = run(tmp_path, name, data(name), made.right.__getitem__)
    assert values(cell) == pytest.approx(made.best)
    assert_scores_give_the_values(cell, lines)
    assert [line["doc_id"] for line in lines.values()] == list(range(len(made.rows)))
    assert all(line["target"] for line in lines.values())

    cell, lines, _ = run(tmp_path, name, data(name), made.wrong.__getitem__)
    assert values(cell) == dict.fromkeys(made.best, 0.0)
    assert_scores_give_the_values(cell, lines)

    def mixed(number: int) -> str:
        return (made.wrong if number % 3 == 1 else made.right)[number]

    cell, lines, _ = run(tmp_path, name, data(name), mixed)
    assert_scores_give_the_values(cell, lines, tolerance)
    assert values(cell) == pytest.approx(by_lmms_eval(name, data(name), mixed, tmp_path / "theirs"), abs=1e-6)
    assert 0 < values(cell)[next(iter(made.best))] < made.best[next(iter(made.best))]


def test_garbage_has_no_points_but_those_that_mmmu_draws_and_these_are_counted(
    data: Callable[[str], Path], tmp_path: Path
) -> None:
    def garbage(number: int) -> str:
        return "~~~"

    for name in TASKS:
        cell, lines, _ = run(tmp_path, name, data(name), garbage)
        again, _, _ = run(tmp_path, name, data(name), garbage)
        assert values(again) == values(cell)
        if name == "mmmu_val":
            assert cell.provenance["guesses"] == 3  # the questions with choices
            drawn = {number: lines[number]["scores"]["mmmu_acc"] for number in (0, 1, 4)}
            assert values(cell)["mmmu_acc"] == pytest.approx(sum(drawn.values()) / 5)
        else:
            assert cell.provenance["guesses"] == 0
            assert set(values(cell).values()) == {0.0}


def test_questions_about_one_picture_are_a_cluster_and_those_without_are_their_own(
    data: Callable[[str], Path], tmp_path: Path
) -> None:
    _, lines, _ = run(tmp_path, "scienceqa", data("scienceqa"), lambda number: "A")
    clusters = [line["cluster"] for line in lines.values()]
    assert clusters[0] == clusters[3]
    assert len(set(clusters)) == 3


def test_mme_counts_pairs_and_a_limit_that_cuts_one_leaves_it_out(data: Callable[[str], Path], tmp_path: Path) -> None:
    cell, lines, _ = run(tmp_path, "mme", data("mme"), lambda number: ["Yes", "Yes"][number % 2])
    assert values(cell) == {"mme_perception_score": 100.0, "mme_cognition_score": 100.0}
    assert [line["cluster"] for line in lines.values()][:3] == ["existence/existence/0.png"] * 2 + [
        "existence/existence/1.png"
    ]
    cell, lines, _ = run(tmp_path, "mme", data("mme"), TASKS["mme"]().right.__getitem__, limit=3)
    assert values(cell) == {"mme_perception_score": 200.0}
    assert cell.metrics["mme_perception_score"].n == 2
    assert lines[2]["scores"] == {}


def test_mme_leaves_out_both_questions_of_a_pair_that_lacks_one(data: Callable[[str], Path], tmp_path: Path) -> None:
    right = TASKS["mme"]().right.__getitem__
    cell, lines, _ = run(tmp_path, "mme", data("mme"), right, refused=[1], max_errors=1)
    assert values(cell) == {"mme_perception_score": 400.0, "mme_cognition_score": 400.0}
    assert (cell.errors, cell.metrics["mme_perception_score"].n) == (1, 4)
    assert lines[0]["scores"] == {}
    assert "error" in lines[1]
    assert "scores" not in lines[1]


def test_ocrbench_says_the_same_a_second_time_in_the_same_process(data: Callable[[str], Path], tmp_path: Path) -> None:
    task, right = load_task("ocrbench", str(data("ocrbench"))), TASKS["ocrbench"]().right
    runner = CellRunner(Ranks(TrainerConfig(), 0), Screen(is_main=False), StopSignal())
    suite = EvalSuiteConfig(local_data=str(data("ocrbench")))
    for step in (1, 2):
        folder = tmp_path / f"step_{step}"
        order = order_cell(Subject("x", step, folder), "ocrbench", suite, "made up")
        cell = runner.run_cell(plan_cell(folder, order), MadeUpModel(right.__getitem__), task)
        assert values(cell) == {"ocrbench_accuracy": 0.004}


def test_pictures_of_mmmu_stand_where_the_question_names_them(data: Callable[[str], Path], tmp_path: Path) -> None:
    _, _, model = run(tmp_path, "mmmu_val", data("mmmu_val"), TASKS["mmmu_val"]().right.__getitem__)
    assert any(text.startswith("#1 Compare<image>with<image>") for text in model.questions)


def test_choices_are_weighed_and_the_likeliest_counts(tmp_path: Path) -> None:
    choices = ["red", "green", "blue", "a dark grey"]
    rows = [
        {"question": f"#{n} Which?", "answer": "ABCD"[n % 4], "question_id": str(n), "image": [picture(n)]}
        | {f"choice_{letter}": choice for letter, choice in zip("abcd", choices, strict=True)}
        for n in range(5)
    ]
    features = Features(dict.fromkeys(rows[0], Value("string")) | {"image": List(Image())})
    DatasetDict({"test": Dataset.from_list(rows, features=features)}).save_to_disk(tmp_path / "seedbench_ppl")
    cell, lines, _ = run(tmp_path / "right", "seedbench_ppl", tmp_path, lambda number: choices[number % 4])
    assert values(cell) == {"acc": 1.0}
    assert (cell.requests, cell.metrics["acc"].n) == (20, 5)
    assert [line["answer"] for line in lines.values()][:4] == [f" {choice}" for choice in choices]
    assert_scores_give_the_values(cell, lines)
    cell, _, _ = run(tmp_path / "wrong", "seedbench_ppl", tmp_path, lambda number: choices[(number + 1) % 4])
    assert values(cell) == {"acc": 0.0}


def test_generation_follows_the_task_and_then_the_suite(data: Callable[[str], Path]) -> None:
    def settings(name: str, **suite: Any) -> Any:
        order = order_cell(Subject("x", 1, Path()), name, EvalSuiteConfig(**suite), "made up")
        return load_task(name, str(data(name))).requests(order)[0].settings

    assert settings("docvqa_val").max_new_tokens == 32
    assert settings("docvqa_val").temperature == 0
    assert settings("textvqa_val", temperature=0.7, top_p=0.8, max_new_tokens=9).until == ("ASSISTANT:",)
    assert settings("textvqa_val", max_new_tokens=9).max_new_tokens == 9


def test_only_tasks_whose_scores_come_from_a_judge_need_a_key(
    data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "AZURE_API_KEY", "LLM_JUDGE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("mmmu_val_reasoning", "mmvet", "llava_in_the_wild"):
        with pytest.raises(UserError, match=r"is scored by another model .*OPENAI_API_KEY"):
            load_task(name, None)
    load_task("mmmu_val", str(data("mmmu_val")))  # of the same module as the first


MODULE = """
import json
from functools import partial

class Judge:
    def ask(self):
        from openai import OpenAI
        return OpenAI()

judge = Judge()

def made_by(function):
    return lambda items: function(items)

def asks(items): return judge.ask()
def only_imports(items): return json.dumps(items)

behind_a_closure = made_by(asks)
behind_a_part = partial(asks, 1)
behind_a_method = judge.ask
harmless = made_by(only_imports)
"""


def test_a_judge_is_found_behind_closures_parts_methods_and_objects() -> None:
    module: dict[str, Any] = {"__name__": "utils"}
    exec(compile(MODULE, "/site-packages/lmms_eval/tasks/made_up/utils.py", "exec"), module)
    for name in ("asks", "behind_a_closure", "behind_a_part", "behind_a_method"):
        assert find_judge([module[name]]) == "openai", name
    for name in ("only_imports", "harmless"):
        assert find_judge([module[name]]) is None, name


@pytest.mark.slow  # the whole index of lmms-eval is read
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mmmu", r"tasks=mmmu: is a group of lmms-eval; name its tasks: mmmu_val, mmmu_test"),
        ("mmstr", r"tasks=mmstr: is no task of lmms-eval; did you mean mmstar"),
    ],
)
def test_names_that_are_no_task_are_told(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        require_task(name)


def test_what_the_model_does_not_do_and_data_that_are_not_there_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="is about videos"):
        load_task("videomme", None)
    with pytest.raises(UserError, match=r"has no mmstar/dataset_dict\.json"):
        load_task("mmstar", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"its data \(Lin-Chen/MMStar\) cannot be read: .*local_data=DIR"):
        load_task("mmstar", None)


def test_nothing_is_printed(data: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ("mmmu_val", "ocrbench", "mmstar")
    for name in names:
        data(name)
    capfd.readouterr()
    for name in names:
        run(tmp_path, name, data(name), TASKS[name]().right.__getitem__)
    assert capfd.readouterr() == ("", "")


def test_what_a_task_draws_while_it_loads_is_the_same_every_time(tmp_path: Path) -> None:
    wrong = {f"Incorrect Answer {k}": f"w{k}" for k in (1, 2, 3)}
    rows = [{"Question": f"#{n}", "Correct Answer": "right", **wrong} for n in range(12)]
    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(tmp_path / "gpqa_main_zeroshot")
    hashes = set()
    for seed in range(2):
        random.seed(seed)
        hashes.add(load_task("gpqa_main_zeroshot", str(tmp_path)).data_hash)
        for cached in tmp_path.rglob("cache-*.arrow"):  # datasets would not draw again
            cached.unlink()
        assert random.getstate() == random.Random(seed).getstate()
    assert len(hashes) == 1


def test_an_error_is_no_wrong_answer_in_a_score_that_is_a_sum(data: Callable[[str], Path], tmp_path: Path) -> None:
    made = TASKS["ocrbench"]()
    cell, _, _ = run(tmp_path, "ocrbench", data("ocrbench"), made.right.__getitem__, refused=[1], max_errors=1)
    assert cell.state is CellState.failed
    assert cell.reason == "1 samples could not be answered, and its score is a sum over all of them"
