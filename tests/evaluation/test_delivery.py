"""From cells to metrics.jsonl and wandb, while a run trains and after it ended."""

import multiprocessing
from pathlib import Path

import pytest
import wandb
import yaml

from tests.conftest import composed
from tests.evaluation import made_up_cells as made
from tests.tracking.test_sinks import evaluations_in_jsonl, evaluations_in_wandb, in_jsonl, in_wandb
from vlmkit.evaluation.delivery import News, deliver_late
from vlmkit.paths import RunPaths, held_lock
from vlmkit.run_directory import plain_config
from vlmkit.tracking.sinks import build_tracker


@pytest.fixture
def ended_run(tmp_path: Path) -> RunPaths:
    """Of two steps, with wandb offline."""
    paths = RunPaths(tmp_path)
    config = composed("train", "logger.wandb=offline")
    paths.config.write_text(yaml.safe_dump(plain_config(config)))
    with build_tracker(config.logger, paths, plain_config(config), 0, True, print) as tracker:
        for step in (1, 2):
            tracker.log(step, {"batch_loss": step / 2})
    return paths


def test_news_are_what_is_new_or_changed(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    made.done(paths, 5, "mmstar", 0.5)
    made.begun(paths, 10, "mmstar")
    news = News(paths)
    assert list(news.take()) == [(5, {"lmms_eval/mmstar_acc": 0.5, "lmms_eval/mmstar_acc_stderr": 0.01})]
    assert list(news.take()) == []
    made.done(paths, 5, "mmstar", 0.75)
    made.done(paths, 10, "mmstar", 0.25, stderr=None)
    assert list(news.take()) == [(5, {"lmms_eval/mmstar_acc": 0.75}), (10, {"lmms_eval/mmstar_acc": 0.25})]


def test_results_of_the_first_samples_never_share_a_curve_with_others(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    made.done(paths, 5, "mmstar", 0.5, limit=8)
    made.done(paths, 5, "mme", 0.5, stderr=None)
    [(_, results)] = News(paths).take()
    assert sorted(results) == ["lmms_eval/mme_acc", "lmms_eval_limit8/mmstar_acc", "lmms_eval_limit8/mmstar_acc_stderr"]


def test_files_of_the_reference_are_results_too(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.evals.mkdir()
    (paths.evals / "step_5_mme.json").write_text('{"global_step": 5, "results": {"mme_score": 900.0}}')
    assert list(News(paths).take()) == [(5, {"lmms_eval/mme_score": 900.0})]


def test_what_comes_after_the_end_goes_to_metrics_and_to_the_same_wandb_run(ended_run: RunPaths) -> None:
    said: list[str] = []

    def deliver() -> None:
        deliver_late(ended_run, said.append)
        wandb.teardown()  # as at the end of a process: the next one reads what this one wrote

    made.done(ended_run, 2, "mmstar", 0.5)
    deliver()
    deliver()  # nothing is new
    made.done(ended_run, 2, "mmstar", 0.75)
    deliver()
    assert said == [
        "evaluated step 2: lmms_eval/mmstar_acc 0.5000 ± 0.0100",
        "evaluated step 2: lmms_eval/mmstar_acc 0.7500",
    ]
    logged = [
        (2, {"lmms_eval/mmstar_acc": 0.5, "lmms_eval/mmstar_acc_stderr": 0.01}),
        (2, {"lmms_eval/mmstar_acc": 0.75}),
    ]
    assert evaluations_in_jsonl(ended_run.root) == evaluations_in_wandb(ended_run.root) == logged
    assert in_wandb(ended_run.root) == in_jsonl(ended_run.root) == {1: {"batch_loss": 0.5}, 2: {"batch_loss": 1.0}}
    run_id = ended_run.wandb_run_id.read_text()
    assert all(run_id in path.name for path in (ended_run.root / "wandb").glob("offline-run-*"))


def test_a_run_that_trains_is_left_to_log_its_results_itself(ended_run: RunPaths) -> None:
    made.done(ended_run, 2, "mmstar", 0.5)
    held, leave = multiprocessing.Event(), multiprocessing.Event()
    other = multiprocessing.get_context("fork").Process(target=_hold, args=(ended_run.lock, held, leave))
    other.start()
    held.wait()
    said: list[str] = []
    deliver_late(ended_run, said.append)
    leave.set()
    other.join()
    assert said == ["the run trains now: it logs its results itself"]
    assert evaluations_in_jsonl(ended_run.root) == []


def _hold(lock: Path, held: object, leave: object) -> None:
    with held_lock(lock, wait=False):
        held.set()  # type: ignore[attr-defined]
        leave.wait()  # type: ignore[attr-defined]
