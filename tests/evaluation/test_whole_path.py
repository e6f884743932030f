"""The full suite's tasks, from a model to evals/step_N.json, metrics.jsonl and wandb: three models of known scores."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
import yaml

from tests.conftest import composed
from tests.evaluation import made_up_cells as made
from tests.evaluation.made_up_tasks import TASKS, MadeUpModel, MadeUpTask
from tests.tracking.test_sinks import evaluations_in_jsonl, evaluations_in_wandb
from vlmkit.config import EvalConfig, EvalSuiteConfig, TrainerConfig
from vlmkit.distributed import Ranks
from vlmkit.evaluation.cells import CellState
from vlmkit.evaluation.delivery import deliver_late
from vlmkit.evaluation.merge import merge_run
from vlmkit.evaluation.runner import CellRunner
from vlmkit.evaluation.subjects import find_subjects, plan_cells
from vlmkit.interrupt import StopSignal
from vlmkit.paths import RunPaths
from vlmkit.run_directory import plain_config
from vlmkit.tracking.console import Screen

Says = Callable[[MadeUpTask, int], str]
MODELS: dict[int, Says] = {  # step of the checkpoint → what it answers to a task's question of that number
    100: lambda task, number: task.right[number],
    200: lambda task, number: task.wrong[number],
    300: lambda task, number: "~~~",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run whose three checkpoints were evaluated on all tasks, merged, and told to wandb."""
    folder = tmp_path_factory.mktemp("whole_path")
    paths, data = RunPaths(folder / "run"), folder / "data"
    paths.root.mkdir()
    tasks = {name: build() for name, build in TASKS.items()}
    for name, task in tasks.items():
        task.save(data / name)
    for step in MODELS:
        made.checkpoint(paths, step)
    paths.config.write_text(yaml.safe_dump(plain_config(composed("train", "logger.wandb=offline"))))

    suite = EvalSuiteConfig(tasks=list(tasks), local_data=str(data))
    config = EvalConfig(eval_suite=suite, run=str(paths.root))
    cells = plan_cells(config, find_subjects(config))
    for cell in cells:
        task, says = tasks[cell.order.task], MODELS[cell.order.step or 0]

        def load(*_: object, task: MadeUpTask = task, says: Says = says) -> MadeUpModel:
            return MadeUpModel(lambda number: says(task, number))

        runner = CellRunner(Ranks(TrainerConfig(), 0), Screen(is_main=False), StopSignal(), load_model=load)
        [done] = runner.run([cell])
        assert done.state is CellState.done, done.reason
    merge_run(paths)
    deliver_late(paths, str)
    wandb.teardown()  # as at the end of a process, or what it wrote may not be on disk
    return paths


def results(paths: RunPaths, step: int) -> dict[str, float]:
    """Of the merged file."""
    said = json.loads((paths.evals / f"step_{step}.json").read_text())
    assert said["complete"] and said["missing"] == [] and said["limit"] is None and said["global_step"] == step
    assert said["results"].keys() == said["n"].keys()
    return {key: float(value) for key, value in said["results"].items()}


def known(score: Callable[[float], float]) -> dict[str, float]:
    """Every metric of every task, from the score that a perfect model has."""
    return {f"{name}_{metric}": score(best) for name, build in TASKS.items() for metric, best in build().best.items()}


def test_a_perfect_model_has_the_best_score_everywhere(run: RunPaths) -> None:
    assert results(run, 100) == pytest.approx(known(lambda best: best))


def test_a_wrong_model_has_none(run: RunPaths) -> None:
    assert results(run, 200) == known(lambda best: 0.0)


def test_a_model_of_garbage_has_none_but_what_mmmu_draws(run: RunPaths) -> None:
    found = results(run, 300)
    drawn = found.pop("mmmu_val_mmmu_acc")
    assert found == {key: value for key, value in known(lambda best: 0.0).items() if key != "mmmu_val_mmmu_acc"}
    assert drawn in (0.0, 0.2, 0.4, 0.6)  # three of five questions have choices


@pytest.mark.parametrize("read", [evaluations_in_wandb, evaluations_in_jsonl])
def test_wandb_and_metrics_have_each_result_of_each_checkpoint_once(
    run: RunPaths, read: Callable[[Path], list[tuple[int, dict[str, float]]]]
) -> None:
    rows = read(run.root)
    assert [step for step, _ in rows] == list(MODELS)
    for step, row in rows:
        values = {key: value for key, value in row.items() if not key.endswith("_stderr")}
        assert values == {f"lmms_eval/{key}": value for key, value in results(run, step).items()}
