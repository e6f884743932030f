"""From cells to metrics.jsonl and wandb, while a run trains and after it ended."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
import wandb
import yaml

from tests.conftest import composed
from tests.evaluation import made_up_cells as made
from tests.tracking.test_sinks import evaluations_in_jsonl, evaluations_in_wandb, in_jsonl, in_wandb
from vlmkit.evaluation.delivery import News, deliver_late
from vlmkit.paths import RunPaths
from vlmkit.run_directory import claim, plain_config, read_config
from vlmkit.status import describe_wandb
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


def test_what_could_not_be_logged_stays_news(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    for step in (5, 10):
        made.done(paths, step, "mmstar", 0.5, stderr=None)
    news = News(paths)
    with pytest.raises(OSError, match="full"):
        for _ in news.take():
            raise OSError("full")
    assert [step for step, _ in news.take()] == [5, 10]
    assert list(news.take()) == []


def test_what_wandb_did_not_take_is_handed_in_when_it_can(ended_run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_run.config.write_text(ended_run.config.read_text().replace("wandb: offline", "wandb: auto"))
    made.done(ended_run, 2, "mmstar", 0.5, stderr=None)
    said: list[str] = []
    on_disk: list[tuple[bool, int]] = []  # with each line: whether delivery is pending, and the rows of results

    def say(line: str) -> None:
        said.append(line)
        on_disk.append((ended_run.wandb_pending.exists(), len(evaluations_in_jsonl(ended_run.root))))

    monkeypatch.setenv("WANDB_MODE", "no such mode")
    for _ in range(2):
        deliver_late(ended_run, say)
    assert on_disk[0] == (True, 0)
    hint = f"python -m vlmkit.merge run={ended_run.root}"
    assert [line.startswith("warning: wandb: ") for line in said] == [True, False, False, True, False]
    assert said[1] == "evaluated step 2: lmms_eval/mmstar_acc 0.5000"
    assert said[2] == said[4] == f"not all results are in wandb yet; this hands them in: {hint}"
    assert describe_wandb(ended_run, read_config(ended_run)).endswith(f"that it may lack: {hint}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    deliver_late(ended_run, say)
    wandb.teardown()
    assert evaluations_in_jsonl(ended_run.root) == evaluations_in_wandb(ended_run.root)
    assert evaluations_in_wandb(ended_run.root) == [(2, {"lmms_eval/mmstar_acc": 0.5})]
    assert in_wandb(ended_run.root) == in_jsonl(ended_run.root)
    assert not ended_run.wandb_pending.exists()
    starts = len(list((ended_run.root / "wandb").iterdir()))
    deliver_late(ended_run, say)
    assert len(list((ended_run.root / "wandb").iterdir())) == starts  # nothing is left to do


def test_a_wandb_whose_rows_cannot_be_read_is_asked_again(ended_run: RunPaths) -> None:
    """What it lacks cannot be told then, and nothing that came before is handed in."""
    [offline] = (ended_run.root / "wandb").glob("offline-run-*/*.wandb")
    ended_run.wandb_pending.touch()
    offline.rename(offline.with_suffix(".kept"))
    offline.mkdir()
    said: list[str] = []
    deliver_late(ended_run, said.append)
    assert said[0].startswith("warning: wandb: cannot tell which steps it has")
    assert ended_run.wandb_pending.exists()


@contextmanager
def held_elsewhere(*locks: Path) -> Iterator[None]:
    """By another process."""
    code = "import fcntl, sys; files = [open(name, 'a') for name in sys.argv[1:]]; [fcntl.lockf(f, 2) for f in files]"
    command = [sys.executable, "-c", f"{code}; print(flush=True); sys.stdin.read()", *map(str, locks)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        yield
        other.stdin.close()


def test_a_run_that_trains_is_left_to_log_its_results_itself(ended_run: RunPaths) -> None:
    made.done(ended_run, 2, "mmstar", 0.5)
    said: list[str] = []
    with held_elsewhere(ended_run.lock):
        deliver_late(ended_run, said.append)
    assert said == ["the run trains now: it logs its results itself"]
    assert evaluations_in_jsonl(ended_run.root) == []


def test_while_another_process_logs_results_both_a_second_one_and_a_start_of_the_run_wait(ended_run: RunPaths) -> None:
    config = composed("train", "logger.wandb=offline")
    ended_run.config.write_text(yaml.safe_dump(plain_config(config) | {"logger": {"wandb": "disabled"}}))
    made.done(ended_run, 2, "mmstar", 0.5)

    def start() -> None:
        with claim(ended_run, config):
            pass

    with ThreadPoolExecutor() as threads, held_elsewhere(ended_run.delivery_lock, ended_run.lock):
        delivery = threads.submit(deliver_late, ended_run, str)
        wait([delivery], timeout=0.2)
        assert not delivery.done()
    delivery.result()
    assert [step for step, _ in evaluations_in_jsonl(ended_run.root)] == [2]
    with ThreadPoolExecutor() as threads, held_elsewhere(ended_run.delivery_lock, ended_run.lock):
        begun = threads.submit(start)
        wait([begun], timeout=0.2)
        assert not begun.done()
    begun.result()
