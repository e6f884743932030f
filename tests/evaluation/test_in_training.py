"""What is evaluated after which step, and what is logged when. Stand-ins answer: whole runs are in test_train_evals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import composed
from tests.evaluation import made_up_cells as made
from tests.evaluation.stand_in import COMMAND
from tests.tracking.test_sinks import evaluations_in_jsonl
from vlmkit.distributed import Ranks
from vlmkit.evaluation.cells import CellState, read_cell
from vlmkit.evaluation.in_training import EvaluateCheckpoints, deliver_last
from vlmkit.evaluation.workers import LocalWorkers, build_workers
from vlmkit.interrupt import StopSignal
from vlmkit.paths import RunPaths
from vlmkit.run_directory import plain_config
from vlmkit.tracking.console import Screen
from vlmkit.tracking.sinks import build_tracker

SCORE = {"lmms_eval/a_acc": 0.5, "lmms_eval/a_acc_stderr": 0.01}


@dataclass
class Step:
    step: int


class Run:
    """One start of a run: steps without training."""

    def __init__(self, paths: RunPaths, stack: ExitStack, *overrides: str) -> None:
        config = composed("train", "evals=local", "eval_suite.tasks=[a]", "trainer.eval_interval=4",
                          "trainer.max_training_steps=12", "logger=none", *overrides)  # fmt: skip
        self.paths = paths
        self.said: list[str] = []
        screen = Screen()
        screen.say = self.said.append  # type: ignore[method-assign]
        tracker = stack.enter_context(build_tracker(config.logger, paths, {}, 0, True, print))
        stop = stack.enter_context(StopSignal())
        ranks = Ranks(config.trainer, config.seed)
        workers = build_workers(config, screen, stop, ranks)
        if isinstance(workers, LocalWorkers):
            workers = LocalWorkers(config.evals, screen.say, COMMAND)
        evaluate = EvaluateCheckpoints(config, paths, workers, tracker, screen, stop, ranks)
        self.evaluate = stack.enter_context(evaluate)

    def after(self, step: int, saved: bool = True) -> None:
        """A step, and its checkpoint."""
        if saved:
            made.checkpoint(self.paths, step)
        self.evaluate.after_step(Step(step))

    def state(self, step: int, task: str = "a") -> CellState | None:
        cell = read_cell(self.paths.cells(step) / task)
        return cell and cell.state


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda *overrides: Run(RunPaths(tmp_path), stack, *overrides)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def hold(lock: Path) -> subprocess.Popen[bytes]:
    """A process that holds a lock until it is killed."""
    code = "import sys, fcntl, signal; f = open(sys.argv[1], 'a'); fcntl.lockf(f, 2); print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_results_are_logged_while_training_goes_on(start: Start) -> None:
    run = start("trainer.stats_log_interval=3")
    run.after(4)
    assert run.state(4) is not None
    wait_for(lambda: run.state(4) is CellState.done)
    run.after(5, saved=False)
    assert evaluations_in_jsonl(run.paths.root) == []  # neither a checkpoint nor a logging step
    run.after(6, saved=False)
    assert evaluations_in_jsonl(run.paths.root) == [(4, SCORE)]
    made.done(run.paths, 4, "b", 0.25, stderr=None)  # by hand, meanwhile
    run.after(8)
    run.evaluate.finish()
    assert evaluations_in_jsonl(run.paths.root) == [(4, SCORE), (4, {"lmms_eval/b_acc": 0.25}), (8, SCORE)]
    assert "evaluated step 8: lmms_eval/a_acc 0.5000 ± 0.0100" in run.said


def test_what_is_not_due_is_not_evaluated(start: Start) -> None:
    run = start("evals.schedule=[{from_step: 8, every: 8}]")
    for step in (4, 8, 10, 12):  # at step 10 a signal made it save
        run.after(step)
    run.evaluate.finish()
    assert [step for step in (4, 8, 10, 12) if run.state(step)] == [8, 12]


def test_a_checkpoint_that_is_being_written_is_evaluated_when_it_is_whole(start: Start) -> None:
    run = start()
    run.after(4, saved=False)
    assert run.state(4) is None
    made.checkpoint(run.paths, 4)
    run.after(5, saved=False)
    assert run.state(4) is not None


def test_what_an_earlier_start_left_is_done_and_what_is_done_is_not_done_again(start: Start, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    for step in (4, 8):
        made.checkpoint(paths, step)  # 8: killed between its checkpoint and the plan
    made.planned(paths, 4, "a")
    before = made.done(paths, 4, "b", 0.25)
    run = start("eval_suite.tasks=[a,b]")
    run.evaluate.finish()
    states = [run.state(step, task) for step in (4, 8) for task in ("a", "b")]
    assert states == [CellState.done] * 4
    assert read_cell(before.folder) == before
    assert {step for step, _ in evaluations_in_jsonl(tmp_path)} == {4, 8}


def test_a_cell_that_an_orphan_answers_is_left_to_it_and_goes_on_if_it_leaves_it(start: Start, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    made.checkpoint(paths, 4)
    cell = made.planned(paths, 4, "a")
    orphan = hold(cell.lock)
    run = start()
    run.after(5, saved=False)
    assert run.state(4) is CellState.planned
    assert not list(paths.cells(4).glob("*.log"))
    orphan.kill()
    orphan.communicate()
    run.evaluate.finish()
    assert run.state(4) is CellState.done


def test_what_fails_is_a_line_and_not_tried_again_by_this_start(start: Start) -> None:
    run = start("eval_suite.tasks=[fail,a]")
    run.after(4)
    run.evaluate.finish()
    run.after(5, saved=False)
    run.evaluate.finish()
    log = run.paths.cells(4) / "eval_1.log"
    assert [line for line in run.said if line.startswith("warning")] == [f"warning: step_4: fail: no data; see {log}"]
    assert len(list(run.paths.cells(4).glob("*.log"))) == 1
    assert evaluations_in_jsonl(run.paths.root) == [(4, SCORE)]


def test_what_is_foreign_among_the_results_is_a_line_and_training_goes_on(start: Start) -> None:
    run = start("trainer.stats_log_interval=1")
    made.done(run.paths, 4, "b", 0.25, stderr=None)
    foreign = run.paths.evals / os.fsdecode(
        b"step_4_\xff.json"
    )  # its name is no UTF-8, which step_4.json is written in
    foreign.write_text('{"global_step": 4, "results": {"c_acc": 0.5}}')
    for step in (1, 2):
        run.after(step, saved=False)
    [line] = run.said
    assert line.startswith("warning: results of evaluations are not logged now: UnicodeEncodeError: ")
    foreign.unlink()
    run.after(3, saved=False)
    assert evaluations_in_jsonl(run.paths.root) == [(4, {"lmms_eval/b_acc": 0.25})]


def test_a_signal_ends_the_waiting(start: Start) -> None:
    run = start("eval_suite.tasks=[wait]")
    run.after(4)
    wait_for(lambda: run.state(4, "wait") is CellState.begun)
    os.kill(os.getpid(), signal.SIGTERM)
    run.evaluate.finish()
    assert run.state(4, "wait") is CellState.begun


def test_waiting_is_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmkit.evaluation.workers.sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    run = start("eval_suite.tasks=[wait]")
    run.after(4)
    wait_for(lambda: run.state(4, "wait") is CellState.begun)
    run.evaluate.finish()
    assert run.said == ["waiting for evaluations: step_4 wait (0 of 4 answered)"]


SLURM = ("evals=slurm", "evals.submitter=stand_in_submitter")


def test_a_run_does_not_wait_for_jobs_not_even_those_of_an_earlier_start(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    paths = RunPaths(tmp_path)
    made.checkpoint(paths, 4)
    job = hold(made.planned(paths, 4, "under_way").lock)
    run = start(*SLURM, "eval_suite.tasks=[under_way]")
    run.after(8)
    run.evaluate.finish()
    job.kill()
    job.communicate()
    assert run.state(8, "under_way") is CellState.planned
    told = [line for line in run.said if not line.startswith("waiting for SLURM")]
    assert told == [f"evaluations of step_{step}: 1 under way already" for step in (4, 8)]


def test_what_slurm_refuses_is_tried_once_more_at_the_end_and_then_told_with_the_command_that_helps(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    run = start(*SLURM, "eval_suite.tasks=[refuse]", "cluster=example_gpu")
    run.after(4)
    wait_for(lambda: not run.evaluate.after_step(Step(5)) and run.said)
    run.evaluate.finish()
    run.evaluate.__exit__()
    told = [line for line in run.said if not line.startswith("waiting for SLURM")]
    refused = "warning: evaluations of step_4 are not handed over to SLURM now: sbatch: error: invalid partition"
    assert [line.startswith(refused) for line in told] == [True, True, False]
    assert told[2].startswith("warning: not handed over to SLURM: step_4 refuse; the run's next start does it, or: ")
    assert told[2].endswith(" evals=slurm cluster=…")


def test_results_that_came_when_the_run_had_looked_for_the_last_time_are_logged(start: Start, tmp_path: Path) -> None:
    run = start()
    run.after(4)
    run.evaluate.finish()
    made.done(run.paths, 4, "b", 0.25, stderr=None)  # a merge that comes now leaves it to the run, which trains still
    config = composed("train", "evals=slurm", "logger=none")
    run.paths.config.write_text(yaml.safe_dump(plain_config(config)))
    deliver_last(config, run.paths, run.said.append)
    assert evaluations_in_jsonl(tmp_path) == [(4, SCORE), (4, {"lmms_eval/b_acc": 0.25})]
    said = len(run.said)
    deliver_last(config, run.paths, run.said.append)
    assert len(run.said) == said
