"""What launchers (torchrun, accelerate, srun, mpirun) tell the processes that they start about each other."""

import os
from collections.abc import Mapping, Sequence

# And what vlmkit's own start sets: a process that is started from one of a run is none of it.
OF_THE_RUN = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "HYDRA_FULL_ERROR"),
)
PREFIXES_OF_THE_RUN = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_", "SLURM_STEP_", "PMI_", "PMIX_", "OMPI_", "MV2_")
NOT_OF_THE_RUN = ("ACCELERATE_USE_CPU",)  # which device: that is the user's wish

# What SLURM tells a job, which sbatch and srun would take for options; and the GPUs that it gave the job.
PREFIXES_OF_A_JOB = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")
GPUS_OF_A_JOB = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")
NOT_OF_A_JOB = ("SLURM_CONF", "SLURM_JWT")  # how SLURM is reached


def started_processes() -> int:
    """How many processes were started together with this one, itself counted."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process on the same machine that is none of the run's."""
    return {
        name: value
        for name, value in environment.items()
        if name in NOT_OF_THE_RUN or not (name in OF_THE_RUN or name.startswith(PREFIXES_OF_THE_RUN))
    }


def gpu_in_turn(gpus: Sequence[int] | None, slot: int) -> dict[str, str]:
    """What lets the ``slot``-th of several processes beside each other see one GPU, if some are named."""
    return {} if gpus is None else {"CUDA_VISIBLE_DEVICES": str(gpus[slot % len(gpus)])}


def submission_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a job that is submitted, which it gets whole: nothing of a job that this may be part of."""
    of_a_job = GPUS_OF_A_JOB if "SLURM_JOB_ID" in environment else ()
    return {
        name: value
        for name, value in own_environment(environment).items()
        if name in NOT_OF_A_JOB or not (name in of_a_job or name.startswith(PREFIXES_OF_A_JOB))
    }
