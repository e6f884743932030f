"""A cell goes on where it was, whatever ended it; what fails is told there and takes nothing else along."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluation.made_up_cells import checkpoint
from tests.evaluation.made_up_tasks import MadeUpModel, chartqa
from vlmkit.config import EvalSuiteConfig, TrainerConfig
from vlmkit.distributed import Ranks
from vlmkit.errors import UserError
from vlmkit.evaluation.cells import (
    Cell,
    CellState,
    Subject,
    checkpoint_fingerprint,
    order_cell,
    plan_cell,
    read_cell,
)
from vlmkit.evaluation.runner import CellRunner
from vlmkit.evaluation.samples import read_samples
from vlmkit.evaluation.tasks import LmmsTask, load_task
from vlmkit.interrupt import StopSignal
from vlmkit.model.answer import Answer, GenerationSettings, Prompt
from vlmkit.paths import RunPaths
from vlmkit.tracking.console import Screen

N = 20
BATCH = 3


class Killed(BaseException):
    """What no except in the program may catch."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    made = chartqa()
    rows = [{**made.rows[n % 4], "question": f"#{n} What?"} for n in range(N)]
    replace(made, rows=rows).save(folder / "chartqa")
    return folder


@pytest.fixture(scope="module")
def task(data: Path) -> LmmsTask:
    return load_task("chartqa", str(data))


def says(number: int) -> str:
    return (chartqa().wrong if number % 3 == 0 else chartqa().right)[number % 4]


class Model(MadeUpModel):
    """Calls something before each batch, with the number of batches before it."""

    def __init__(self, before_batch: Callable[[int], None] = lambda batches: None, refused: Sequence[int] = ()) -> None:
        super().__init__(says, refused)
        self.batches = 0
        self.before_batch = before_batch

    def answer(
        self, prompts: Sequence[Prompt], settings: GenerationSettings, seeds: Sequence[int] = ()
    ) -> list[Answer]:
        self.before_batch(self.batches)
        self.batches += 1
        return super().answer(prompts, settings, seeds)


def planned(folder: Path, data: Path, **suite: Any) -> Cell:
    config = EvalSuiteConfig(local_data=str(data), batch_size=BATCH, **suite)
    return plan_cell(folder, order_cell(Subject("x", 1, folder), "chartqa", config, "made up"))


def runner(stop: StopSignal | None = None) -> CellRunner:
    return CellRunner(Ranks(TrainerConfig(), 0), Screen(is_main=False), stop or StopSignal())


def outcome(cell: Cell) -> tuple[Any, ...]:
    assert cell.state is CellState.done, cell.reason
    return cell.metrics, read_samples(cell.folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, data: Path, task: LmmsTask) -> tuple[Any, ...]:
    cell = planned(tmp_path_factory.mktemp("whole") / "step_1", data)
    return outcome(runner().run_cell(cell, Model(), task))


@pytest.mark.parametrize("at", [0, 1, 4, 6])
def test_a_killed_cell_asks_only_what_is_missing_and_ends_the_same(
    at: int, tmp_path: Path, data: Path, task: LmmsTask, uninterrupted: tuple[Any, ...]
) -> None:
    def kill(batches: int) -> None:
        if batches == at:
            raise Killed

    first, second = Model(kill), Model()
    with pytest.raises(Killed):
        runner().run_cell(planned(tmp_path, data), first, task)
    cell = planned(tmp_path, data)
    assert cell.state is CellState.begun
    with (cell.folder / "samples.jsonl").open("a") as file:
        file.write('{"index": 19, "answer": "torn')
    assert outcome(runner().run_cell(cell, second, task)) == uninterrupted
    assert sorted(first.asked + second.asked) == list(range(N))


def test_what_is_done_is_not_planned_again_unless_forced(tmp_path: Path, data: Path, task: LmmsTask) -> None:
    cell = runner().run_cell(planned(tmp_path, data), Model(), task)
    assert planned(tmp_path, data) == cell
    again = plan_cell(tmp_path, cell.order, force=True)
    assert again.state is CellState.planned
    assert read_samples(again.folder) == {}
    [aside] = tmp_path.glob(".chartqa.*.0")
    assert len(read_samples(aside)) == N


def test_a_limited_cell_stands_beside_the_whole_one(tmp_path: Path, data: Path, task: LmmsTask) -> None:
    whole = runner().run_cell(planned(tmp_path, data), Model(), task)
    limited = runner().run_cell(planned(tmp_path, data, limit=7), Model(), task)
    assert {cell.folder.name for cell in (whole, limited)} == {"chartqa", "chartqa.limit7"}
    assert limited.metrics["relaxed_overall"].n == 7
    assert planned(tmp_path, data) == whole


def test_samples_that_fail_fail_the_cell_and_are_asked_again(
    tmp_path: Path, data: Path, task: LmmsTask, uninterrupted: tuple[Any, ...]
) -> None:
    failed = runner().run_cell(planned(tmp_path, data), Model(refused=[3, 11]), task)
    assert failed.state is CellState.failed
    assert (failed.errors, failed.metrics) == (2, {})
    assert failed.reason == ("2 samples could not be answered; sample 3: UserError: a picture that cannot be read")
    healthy = Model()
    assert outcome(runner().run_cell(planned(tmp_path, data), healthy, task))[0] == uninterrupted[0]
    assert set(healthy.asked) >= {3, 11}
    assert len(healthy.asked) <= 3 * BATCH


def test_answers_to_other_data_are_not_gone_on_with(tmp_path: Path, data: Path, task: LmmsTask) -> None:
    failed = runner().run_cell(planned(tmp_path / "cells", data), Model(refused=[3]), task)
    chartqa().save(tmp_path / "chartqa")
    model = Model()
    cell = runner().run_cell(failed, model, load_task("chartqa", str(tmp_path)))
    assert (cell.state, model.asked) == (CellState.failed, [])
    assert cell.reason == "the task or its data have changed since it was begun: force=true begins anew"


def test_a_few_may_fail_and_the_score_is_of_the_others(tmp_path: Path, data: Path, task: LmmsTask) -> None:
    cell = runner().run_cell(planned(tmp_path, data, max_errors=2), Model(refused=[3, 11]), task)
    assert cell.state is CellState.done
    assert (cell.errors, cell.metrics["relaxed_overall"].n) == (2, N - 2)
    right = sum(number % 3 != 0 for number in range(N) if number not in (3, 11))
    assert cell.metrics["relaxed_overall"].value == pytest.approx(right / (N - 2))


def test_a_model_that_breaks_fails_its_cell_in_one_line(tmp_path: Path, data: Path, task: LmmsTask) -> None:
    def break_down(batches: int) -> None:
        raise RuntimeError("a kernel\nof two lines")

    cell = runner().run_cell(planned(tmp_path, data), Model(break_down), task)
    assert (cell.state, cell.reason) == (CellState.failed, "RuntimeError: a kernel of two lines")


def cells_of_a_checkpoint(root: Path, data: Path, tasks: Sequence[str]) -> list[Cell]:
    paths = RunPaths(root)
    checkpoint(paths, 1)
    subject = Subject.of_run(paths, 1)
    suite, fingerprint = EvalSuiteConfig(local_data=str(data), batch_size=BATCH), checkpoint_fingerprint(subject)
    return [plan_cell(subject.folder, order_cell(subject, task, suite, fingerprint)) for task in tasks]


def test_one_task_that_fails_does_not_take_the_others_along(tmp_path: Path, data: Path) -> None:
    loaded = []

    def load_model(name: str, device: torch.device) -> Model:
        loaded.append(name)
        return Model()

    missing, done = replace(runner(), load_model=load_model).run(
        cells_of_a_checkpoint(tmp_path, data, ["mmstar", "chartqa"])
    )
    assert missing.state is CellState.failed
    assert missing.reason is not None
    assert "has no mmstar/dataset_dict.json" in missing.reason
    assert done.state is CellState.done
    assert loaded == [done.order.checkpoint]


def test_no_model_is_loaded_for_a_task_that_cannot_be_nor_for_another_checkpoint(tmp_path: Path, data: Path) -> None:
    def load_model(name: str, device: torch.device) -> Model:
        raise AssertionError("loaded")

    strict = replace(runner(), load_model=load_model)
    [cell] = strict.run(cells_of_a_checkpoint(tmp_path / "a", data, ["mmstar"]))
    assert cell.state is CellState.failed
    cells = cells_of_a_checkpoint(tmp_path / "b", data, ["chartqa"])
    (Path(cells[0].order.checkpoint) / "model.safetensors").write_bytes(b"trained on")
    [cell] = strict.run(cells)
    assert cell.reason == f"{cells[0].order.checkpoint} is another checkpoint than the one that was to be evaluated"


def test_a_signal_ends_after_the_batch_and_the_cell_goes_on(
    tmp_path: Path, data: Path, task: LmmsTask, uninterrupted: tuple[Any, ...]
) -> None:
    stop = StopSignal("batch")
    first = Model(lambda batches: setattr(stop, "received", 15) if batches == 2 else None)
    cell = runner(stop).run_cell(planned(tmp_path, data), first, task)
    assert (cell.state, cell.answered) == (CellState.begun, 3 * BATCH)
    assert outcome(runner().run_cell(planned(tmp_path, data), Model(), task)) == uninterrupted


HOLD = """
import sys
from pathlib import Path
from vlmkit.paths import held_lock
with held_lock(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_cell_that_another_process_holds_is_left_to_it(tmp_path: Path, data: Path, task: LmmsTask) -> None:
    cell = planned(tmp_path, data)
    command = [sys.executable, "-c", HOLD, str(cell.lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        model = Model()
        assert runner().run_cell(cell, model, task) == cell
        assert model.asked == []
        with pytest.raises(UserError, match="a process answers it now in another way"):
            plan_cell(tmp_path, cell.order, force=True)
        holder.communicate("")
    assert runner().run_cell(cell, Model(), task).state is CellState.done


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: what a full disk does, for this process alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_all_and_the_cell_goes_on_when_there_is_room(
    tmp_path: Path, data: Path, task: LmmsTask, uninterrupted: tuple[Any, ...]
) -> None:
    cell = planned(tmp_path, data)
    with largest_file(1500), pytest.raises(OSError, match="File too large"):
        runner().run_cell(cell, Model(), task)
    assert planned(tmp_path, data).state is CellState.begun
    second = Model()
    assert outcome(runner().run_cell(planned(tmp_path, data), second, task)) == uninterrupted
    assert 0 < len(second.asked) < N


def test_a_cell_that_was_planned_in_another_way_meanwhile_keeps_its_own_answers(
    tmp_path: Path, data: Path, task: LmmsTask
) -> None:
    late = planned(tmp_path, data)
    done = runner().run_cell(planned(tmp_path, data, seed=1), Model(), task)
    model = Model()
    assert runner().run_cell(late, model, task) == done == read_cell(done.folder)
    assert model.asked == []


def test_a_cell_that_another_process_has_done_meanwhile_is_not_begun_again(
    tmp_path: Path, data: Path, task: LmmsTask
) -> None:
    late = planned(tmp_path, data)
    done = runner().run_cell(planned(tmp_path, data), Model(), task)
    model = Model()
    assert runner().run_cell(late, model, task) == done
    assert model.asked == []


def test_answers_whose_cell_cannot_be_read_are_put_aside(tmp_path: Path, data: Path, task: LmmsTask) -> None:
    cell = runner().run_cell(planned(tmp_path, data), Model(), task)
    (cell.folder / "cell.json").write_text("{")
    assert read_samples(planned(tmp_path, data).folder) == {}
    [aside] = tmp_path.glob(".chartqa.unreadable.*")
    assert len(read_samples(aside)) == N


def test_errors_that_were_allowed_are_asked_again_when_they_no_longer_are(
    tmp_path: Path, data: Path, task: LmmsTask, uninterrupted: tuple[Any, ...]
) -> None:
    lenient = runner().run_cell(planned(tmp_path, data, max_errors=2), Model(refused=[3, 11]), task)
    assert lenient.state is CellState.done
    strict = planned(tmp_path, data)
    assert strict.state is CellState.begun
    assert outcome(runner().run_cell(strict, Model(), task))[0] == uninterrupted[0]


def test_a_task_whose_code_breaks_fails_its_cell(tmp_path: Path, data: Path, task: LmmsTask) -> None:
    broken = load_task("chartqa", str(data))
    broken.task.config.process_results = lambda document, results: None
    cell = runner().run_cell(planned(tmp_path, data), Model(), broken)
    assert cell.state is CellState.failed
    assert cell.answered == N
    assert cell.reason is not None
    assert "NoneType" in cell.reason


def test_what_settings_an_answer_had_is_noted(tmp_path: Path, data: Path, task: LmmsTask) -> None:
    cell = runner().run_cell(planned(tmp_path, data), Model(), task)
    [settings] = cell.provenance["generation"]
    assert (settings["max_new_tokens"], settings["temperature"]) == (16, 0.0)  # the task's, not the suite's


def test_a_task_that_cannot_be_loaded_here_does_not_undo_what_another_process_has_done(
    tmp_path: Path, data: Path
) -> None:
    [late] = cells_of_a_checkpoint(tmp_path / "run", data, ["chartqa"])
    done = runner().run_cell(late, Model(), load_task("chartqa", str(data)))
    (data / "chartqa").rename(data / "away")
    try:
        runner().run([late])
    finally:
        (data / "away").rename(data / "chartqa")
    assert read_cell(late.folder) == done
