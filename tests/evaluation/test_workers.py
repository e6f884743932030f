"""Processes beside a run that answer its cells: how many, with what environment, how they end. Real processes."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import composed
from tests.evaluation import made_up_cells as made
from tests.evaluation.stand_in import COMMAND
from vlmkit.config import EvalsConfig, EvalsWhere
from vlmkit.distributed import Ranks
from vlmkit.evaluation.cells import Cell, CellState, read_cell
from vlmkit.evaluation.runner import CellRunner
from vlmkit.evaluation.workers import LocalWorkers, build_workers, undisturbed
from vlmkit.interrupt import StopSignal
from vlmkit.launched import own_environment
from vlmkit.paths import RunPaths
from vlmkit.tracking.console import Screen

Start = Callable[..., tuple[LocalWorkers, list[str]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes workers, which end with the test."""
    made_here = []

    def build(workers: int = 1, gpus: list[int] | None = None) -> tuple[LocalWorkers, list[str]]:
        said: list[str] = []
        config = EvalsConfig(where=EvalsWhere.local, workers=workers, gpus=gpus)
        made_here.append(LocalWorkers(config, said.append, COMMAND))
        return made_here[-1], said

    yield build
    for workers in made_here:
        workers.close()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def now(cells: Sequence[Cell]) -> list[Cell]:
    found = [read_cell(cell.folder) for cell in cells]
    return [cell for cell in found if cell is not None]


def test_the_cells_of_a_checkpoint_are_shared_among_the_workers(start: Start, tmp_path: Path) -> None:
    """Two processes for three cells: each loads the checkpoint once. One GPU each, and nothing of the run's own."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("RANK", "MASTER_PORT", "KEPT"):
            environment.setenv(name, "1")
        workers, said = start(workers=2, gpus=[3, 5])
        cells = [made.planned(RunPaths(tmp_path), 5, task) for task in ("a", "b", "c")]
        workers.start(cells)
    assert workers.poll()
    wait_for(lambda: not workers.poll())
    found = [cell.provenance for cell in now(cells)]
    assert found[0]["pid"] == found[2]["pid"] != found[1]["pid"]
    environments = [each["environment"] for each in found]
    assert environments[0] == {"RANK": None, "MASTER_PORT": None, "CUDA_VISIBLE_DEVICES": "3", "KEPT": "1"}
    assert environments[1]["CUDA_VISIBLE_DEVICES"] == "5"
    assert said == []


def test_what_goes_wrong_is_a_line_with_the_reason_and_the_log(start: Start, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "a run with spaces")
    workers, said = start()
    workers.start([made.planned(paths, 5, "fail"), made.planned(paths, 5, "fine")])
    workers.start([made.planned(paths, 10, "crash")])
    wait_for(lambda: not workers.poll())
    logs = [paths.cells(step) / "eval_1.log" for step in (5, 10)]
    assert said == [
        f"warning: step_5: fail: no data; see {logs[0]}",
        f"warning: step_10: crash: error: it broke; key *** (ended with 1); see {logs[1]}",
    ]
    assert logs[1].read_text() == "error: it broke; key ***\n"
    assert now([made.planned(paths, 5, "fine")])[0].state is CellState.done


def test_of_a_process_that_was_killed_the_cause_is_told_and_not_only_its_last_line(
    start: Start, tmp_path: Path
) -> None:
    paths = RunPaths(tmp_path)
    workers, said = start()
    workers.start([made.planned(paths, 5, "killed")])
    wait_for(lambda: not workers.poll())
    why = "ended by SIGKILL, perhaps as memory ran out; it said last: answering"
    assert said == [f"warning: step_5: killed: {why}; see {paths.cells(5) / 'eval_1.log'}"]


def test_at_the_end_of_the_run_they_are_ended_and_their_cells_can_go_on(start: Start, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    workers, said = start()
    cells = [made.planned(paths, 5, "wait"), made.planned(paths, 10, "never begun")]
    for cell in cells:
        workers.start([cell])
    wait_for(lambda: now(cells)[0].state is CellState.begun)
    assert cells[0].is_held
    assert [cell.folder for cell in workers.poll()] == made.folders(cells)
    workers.close()
    assert not cells[0].is_held
    assert [cell.state for cell in now(cells)] == [CellState.begun, CellState.planned]
    assert workers.poll() == []
    assert said == []


def test_each_process_has_a_log_of_its_own(start: Start, tmp_path: Path) -> None:
    for _ in range(2):
        workers, _ = start()
        workers.start([made.planned(RunPaths(tmp_path), 5, "crash")])
        wait_for(lambda workers=workers: not workers.poll())
    assert sorted(path.name for path in RunPaths(tmp_path).cells(5).glob("*.log")) == ["eval_1.log", "eval_2.log"]


def test_what_is_drawn_afterwards_is_as_if_nothing_had_been() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), torch.rand(1).item()

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    with pytest.raises(KeyError), undisturbed(torch.device("cpu")):
        draw()
        torch.manual_seed(5)
        raise KeyError
    assert draw() == expected


def test_what_goes_wrong_inside_the_run_is_a_line_and_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU without room stands for all that a model and its libraries can raise."""

    def run(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 1 GiB")

    monkeypatch.setattr(CellRunner, "run", run)
    config = composed("train", "evals=inline")
    workers = build_workers(config, Screen(), StopSignal(), Ranks(config.trainer, config.seed))
    workers.start([made.planned(RunPaths(tmp_path), 5, "a")])
    told = "OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"
    assert capsys.readouterr().out == f"warning: step_5 is not evaluated now: {told}\n"


def test_the_environment_of_a_run_is_left_behind() -> None:
    run = {
        "WORLD_SIZE": "8",
        "TORCHELASTIC_RUN_ID": "x",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "SLURM_STEP_NUM_TASKS": "8",
    }
    kept = {
        "PATH": "/bin",
        "ACCELERATE_USE_CPU": "true",
        "SLURM_JOB_ID": "5",
        "HF_HOME": "/data",
        "WANDB_MODE": "offline",
    }
    assert own_environment(run | kept) == kept
