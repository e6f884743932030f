"""Training as a job: what ends a start is not seen in the run."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import QUICK
from tests.slurm.conftest import Jobs, Slurm, Started, text
from tests.test_train import metrics, reproducible
from vlmkit.jobs import JobState


@pytest.fixture(scope="module")
def whole_run(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps in one process that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        jobs = Jobs.on(slurm, tmp_path_factory.mktemp("whole"), patch)
        [job] = jobs.submit(train())
        jobs.wait_for("COMPLETED", job, timeout_s=120)
    return job.folder


def train(*overrides: str) -> list[str]:
    """A run whose directory is the folder of its job."""
    return [sys.executable, "-m", "vlmkit.train", "run_dir=FOLDER", *QUICK, *overrides]


def wait_for_step(jobs: Jobs, job: Started, step: int) -> None:
    jobs.slurm.wait_until(lambda: f'"global_step": {step},' in text(job.folder / "metrics.jsonl"), timeout_s=120)


def kill_without_a_word(jobs: Jobs, job: Started) -> None:
    """As a node that is lost does it: the process has no time to save. Then SLURM queues the job again."""
    parents = {
        int(path.parent.name): int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"vlmkit.train\0run_dir={job.folder}\0".encode() in path.read_bytes()
    }
    [(process, starter)] = ((pid, parent) for pid, parent in parents.items() if parent not in parents)
    os.kill(starter, signal.SIGSTOP)  # it would call the job failed; SLURM lets it go on
    os.kill(process, signal.SIGKILL)
    jobs.slurm.run("scontrol", "requeue", job.job_id)


def resumed_steps(job: Started) -> list[int]:
    """The step from which each start of a run has gone on."""
    starts = json.loads((job.folder / "provenance.json").read_text())["starts"]
    return [start["resumed_step"] for start in starts]


def test_a_run_that_is_killed_and_queued_again_is_as_if_it_had_never_been(jobs: Jobs, whole_run: Path) -> None:
    [job] = jobs.submit(train())
    wait_for_step(jobs, job, 6)
    kill_without_a_word(jobs, job)
    jobs.wait_for("COMPLETED", job, timeout_s=120)
    assert resumed_steps(job) == [0, 4]
    assert job.said == (JobState.done, "")
    assert reproducible(metrics(job.folder)) == reproducible(metrics(whole_run))
    mine, theirs = (load_file(run / "checkpoints/step_12/model.safetensors") for run in (job.folder, whole_run))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_processes_on_two_nodes_train_like_one_though_they_are_stopped(jobs: Jobs, whole_run: Path) -> None:
    """Half the batch on each; a signal has both save and leave after the same step."""
    [job] = jobs.submit(train("trainer.batch_size=6", "trainer.num_processes=2", "dataset.num_workers=0"), nodes=2)
    wait_for_step(jobs, job, 6)
    jobs.signal("USR2", job)
    jobs.wait_for("COMPLETED", job, timeout_s=120)
    assert text(job.log).count("2 process(es)") == 2
    first, second = resumed_steps(job)
    assert first == 0 and 6 <= second < 12
    two, one = metrics(job.folder), metrics(whole_run)
    assert [row["global_step"] for row in two] == [row["global_step"] for row in one]
    for key in ("batch_loss", "val_loss", "grad_norm"):
        expected = [row[key] for row in one if key in row]
        assert [row[key] for row in two if key in row] == pytest.approx(expected, rel=1e-5)


def test_another_number_of_processes_than_the_run_asks_for_is_refused(jobs: Jobs) -> None:
    [job] = jobs.submit(train("trainer.num_processes=3"), tasks_per_node=2)
    jobs.wait_for("FAILED", job, timeout_s=60)
    assert job.report and job.report.reason.startswith("error: trainer.num_processes=3: there are 2")
