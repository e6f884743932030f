"""Cells are handed over to SLURM by a process beside the run: what it is told, how it fails. No SLURM is needed."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import composed
from tests.evaluation import made_up_cells as made
from vlmkit.config import EvalsConfig
from vlmkit.errors import UserError
from vlmkit.evaluation.cells import Cell
from vlmkit.evaluation.submission import SECONDS_TO_SUBMIT, Submission
from vlmkit.evaluation.workers import SlurmWorkers
from vlmkit.paths import RunPaths

STAND_IN = "stand_in_submitter"
SBATCH = "sbatch: error: invalid partition specified: nowhere"
Start = Callable[..., tuple[SlurmWorkers, list[str]]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Makes workers that hand over to the stand-in; they are closed with the test."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    config = composed("train", "evals=slurm", f"evals.submitter={STAND_IN}", "evals.parallelism=3",
                      "cluster=example_gpu")  # fmt: skip
    with ExitStack() as stack:

        def build(limit_s: float = SECONDS_TO_SUBMIT) -> tuple[SlurmWorkers, list[str]]:
            said: list[str] = []

            def submit(cells: Sequence[Cell], given_s: float) -> Submission:
                return Submission(cells, config.evals, config.cluster, min(limit_s, given_s))

            workers = SlurmWorkers(submit, said.append)
            stack.callback(workers.close)
            return workers, said

        yield build


def wait(workers: SlurmWorkers) -> None:
    """Until no submission is under way."""
    deadline = time.monotonic() + 60
    while workers.poll():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def asked(paths: RunPaths) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (paths.root / "asked.jsonl").read_text().splitlines()]


def names(cells: Sequence[str]) -> list[str]:
    return ["/".join(Path(cell).parts[-2:]) for cell in cells]


def test_cells_are_handed_over_with_what_their_jobs_ask_for(start: Start, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "a run, lr=1")
    paths.root.mkdir()
    workers, said = start()
    cells = [made.planned(paths, 4, task) for task in ("a", "under_way", "b")]
    workers.start(cells)
    assert workers.poll() == cells
    wait(workers)
    assert said == ["evaluations of step_4: 2 handed over to SLURM as job 7, merged by job 8, 1 under way already"]
    [request] = [each["request"] for each in asked(paths)]
    assert (request["run"], request["parallelism"]) == (str(paths.root), 3)
    assert request["cells"] == [str(cell.folder) for cell in cells]
    job = request["job"]
    assert (job["partition"], job["tasks_per_node"], job["gpus_per_node"], job["max_requeues"]) == ("gpu", 1, 1, 5)


def test_nothing_of_the_run_or_of_its_own_job_is_handed_on(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_PARTITION", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    workers, _ = start()
    workers.start([made.planned(RunPaths(tmp_path), 4, "a")])
    wait(workers)
    environment = asked(RunPaths(tmp_path))[0]["environment"]
    assert not {name for name in environment if name.startswith(("SBATCH_", "WORLD_", "RANK", "CUDA_"))}
    assert {name for name in environment if name.startswith("SLURM")} == {"SLURM_CONF"}


def test_what_slurm_refuses_is_a_line_and_goes_with_the_next_evaluation(start: Start, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    workers, said = start()
    workers.start([made.planned(paths, 4, "refuse")])
    wait(workers)
    assert said == [f"warning: evaluations of step_4 are not handed over to SLURM now: {SBATCH}"]
    assert workers.poll() == []  # a run does not wait for another try
    (tmp_path / "open").touch()
    workers.start([made.planned(paths, 8, "a")])
    wait(workers)
    assert said[1:] == ["evaluations of step_4, step_8: 2 handed over to SLURM as job 7, merged by job 8"]
    assert [names(each["request"]["cells"]) for each in asked(paths)] == [
        ["step_4/refuse"],
        ["step_4/refuse", "step_8/a"],
    ]


def test_cells_that_come_while_others_are_handed_over_wait_for_them(start: Start, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    workers, said = start()
    for step in (4, 8):
        workers.start([made.planned(paths, step, "a")])
    wait(workers)
    assert [line.split(":")[0] for line in said] == ["evaluations of step_4", "evaluations of step_8"]


def test_a_slurm_that_does_not_answer_is_left_and_not_asked_again_at_the_end(start: Start, tmp_path: Path) -> None:
    workers, said = start(limit_s=0.5)
    cell = made.planned(RunPaths(tmp_path), 4, "hang")
    workers.start([cell])
    workers.retry()
    wait(workers)
    workers.retry()
    assert workers.poll() == []
    workers.close()
    assert said == [
        "warning: evaluations of step_4 are not handed over to SLURM now: SLURM did not answer within 0.5 s",
        "warning: not handed over to SLURM: step_4 hang; the run's next start does it, or: "
        f"python -m vlmkit.eval 'cells=['\"'\"'{cell.folder}'\"'\"']' evals=slurm",
    ]


def test_what_is_handed_over_at_the_end_of_a_run_gets_a_minute(tmp_path: Path) -> None:
    given: list[float] = []

    def submit(_: Sequence[Cell], limit_s: float) -> Submission:
        given.append(limit_s)
        raise OSError("no room")

    workers = SlurmWorkers(submit, str)
    workers.start([made.planned(RunPaths(tmp_path), 4, "a")])
    workers.retry()
    workers.poll()
    assert given == [SECONDS_TO_SUBMIT, 60]


def submitted(cells: Sequence[Any], submitter: str) -> None:
    config = composed("eval", "ckpt=x", "evals=slurm")
    Submission(cells, EvalsConfig(submitter=submitter), config.cluster).wait()


def test_where_there_is_no_slurm_it_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real submitter."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"SLURM did not take eval-run-step_4-a: .*Could not detect"):
        submitted([made.planned(RunPaths(tmp_path / "run"), 4, "a")], "vlmkit_launchers.submit_cells")


def test_what_is_no_submitter_is_said_so(tmp_path: Path) -> None:
    cells = [made.planned(RunPaths(tmp_path), 4, "a")]
    with pytest.raises(UserError, match="No module named no_such_module"):
        submitted(cells, "no_such_module")
    with pytest.raises(UserError, match="answered 'Hello"):
        submitted(cells, "__hello__")
