"""What a process takes over from the one that started it."""

import pytest

from vlmkit.launched import started_processes, submission_environment


def test_a_job_that_is_submitted_from_a_job_gets_nothing_of_it() -> None:
    kept = {"HOME": "/home/me", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "x", "ACCELERATE_USE_CPU": "true"}
    of_the_job = ("SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK", "SUBMITIT_FOLDER", "RANK",
                  "MASTER_ADDR", "CUDA_VISIBLE_DEVICES", "HYDRA_FULL_ERROR", "TORCHELASTIC_RUN_ID")  # fmt: skip
    assert submission_environment(kept | dict.fromkeys(of_the_job, "1")) == kept


def test_a_choice_of_gpus_outside_a_job_is_the_users() -> None:
    assert submission_environment({"CUDA_VISIBLE_DEVICES": "1"}) == {"CUDA_VISIBLE_DEVICES": "1"}


@pytest.mark.parametrize(
    ("told", "count"),
    [({}, 1), ({"WORLD_SIZE": "4", "SLURM_STEP_NUM_TASKS": "2"}, 4), ({"SLURM_STEP_NUM_TASKS": "2"}, 2)],
)
def test_processes_that_were_started_together_are_counted(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], count: int
) -> None:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert started_processes() == count
