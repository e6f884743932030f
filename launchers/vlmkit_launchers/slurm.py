"""Tasks become SLURM jobs, through submitit."""

import io
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmkit.config import JobConfig
from vlmkit.errors import UserError
from vlmkit.launched import submission_environment
from vlmkit_launchers.task import Task

SBATCH = re.compile(r"sbatch: (error: )?")  # begins each line in which it says what is wrong
LEFT_BEHIND = re.compile(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh")  # by a submission that failed


NO_REPLY = "timed out"  # in what sbatch says if the controller is away


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that SLURM took."""

    job_id: str  # as 12, or 12_3 in an array
    log: Path  # of its first task; those of the others lie beside it


def submit(
    tasks: Sequence[Task],
    job: JobConfig,
    folder: Path,
    name: str,
    parallelism: int | None = None,
    dependency: str | None = None,
) -> list[Submitted]:
    """Hand tasks over as one job, or as an array if there are several. None of a job that this may be part of counts.

    Only one process at a time may submit from a folder.

    Args:
        tasks: What each job runs.
        job: What each asks for, with nothing left open (``JobConfig.on``).
        folder: For logs and what jobs are started from; on a disk that all nodes see.
        name: As squeue shows it.
        parallelism: How many of the array may run at the same time; None: as many as there is place for.
        dependency: What must come first, as in afterany:12. A job whose dependency cannot come is cancelled.

    Raises:
        UserError: SLURM did not take them, and the message is its own; or they could not be written down for it.
    """
    if {"%", "\n"} & set(str(folder.absolute())):
        raise UserError(
            f"{str(folder)!r}: SLURM cannot write logs there, as it takes % for a pattern: use another name"
        )
    from submitit.core.utils import FailedJobError, FailedSubmissionError  # 0.2 s
    from submitit.slurm.slurm import SlurmExecutor

    try:
        with _environment_of_a_submission(), redirect_stderr(io.StringIO()):  # what sbatch says is in the error
            executor = SlurmExecutor(folder)
            executor.update_parameters(**_parameters(job, name, parallelism or len(tasks), dependency))
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
    except (OSError, RuntimeError, FailedJobError, FailedSubmissionError) as error:
        if NO_REPLY in str(error):  # then it may have taken them, and starts them from these files
            told = f"{_reason(error)}; it may have them even so: squeue --name={shlex.quote(name)}"
            raise UserError(f"SLURM did not answer about {name}: {told}") from error
        _clear_away(folder)
        if isinstance(error, OSError):
            raise UserError(f"{name} cannot be submitted: {error}") from error
        raise UserError(f"SLURM did not take {name}: {_reason(error)}") from error
    return [Submitted(each.job_id, each.paths.stdout) for each in jobs]


def _parameters(job: JobConfig, name: str, parallelism: int, dependency: str | None) -> dict[str, Any]:
    """As submitit names them; what is None it leaves to SLURM."""
    asked = {"requeue": True} | job.additional_parameters
    more = {option: value for option, value in asked.items() if value is not None and value is not False}
    if dependency is not None:
        more["kill-on-invalid-dep"] = "yes"
    return {
        "job_name": name,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "time": job.time_min,
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "gpus_per_node": job.gpus_per_node or None,
        "cpus_per_task": job.cpus_per_task,
        "mem": None if job.mem_gb is None else f"{round(job.mem_gb * 1024)}M",
        "signal_delay_s": job.signal_delay_s,
        "mail_user": job.mail_user,
        "mail_type": job.mail_type,
        "setup": job.setup,
        "dependency": dependency,
        "array_parallelism": parallelism,
        "wckey": None,
        "stderr_to_stdout": True,
        "srun_args": _srun_args(job),
        "additional_parameters": more,
    }


def _srun_args(job: JobConfig) -> list[str]:
    """What srun is told besides."""
    args = ["--kill-on-bad-exit=1"]  # who waits for a process that failed waits for ever
    if job.cpus_per_task is not None:
        args.append(f"--cpus-per-task={job.cpus_per_task}")  # from SLURM 22.05 on it does not take sbatch's for its own
    return args


@contextmanager
def _environment_of_a_submission() -> Iterator[None]:
    before = dict(os.environ)
    try:
        _become(submission_environment(before))
        yield
    finally:
        _become(before)


def _become(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _clear_away(folder: Path) -> None:
    """Or who tries again and again would fill the folder."""
    for path in folder.glob("*"):
        if LEFT_BEHIND.fullmatch(path.name) and not path.is_symlink():  # a link is of a submission that went well
            path.unlink()


def _reason(error: Exception) -> str:
    """What sbatch said, which submitit puts at the end of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line[said.end() :] for line in lines if (said := SBATCH.match(line))]
    return "; ".join(own or lines[-1:] or [type(error).__name__])
