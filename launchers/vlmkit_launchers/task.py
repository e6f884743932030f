"""What runs inside a SLURM job: a command, as a child of each of the job's tasks.

One SLURM task is one process of a run. SLURM so sees, signals and ends each of them, and no other program has to start
processes on other nodes. A signal reaches the child without our help, as it is in the task's process group; the command
saves and leaves, and then the job is queued again, or not, here.
"""

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from vlmkit.jobs import JobPlace, JobReport, JobState, read_job
from vlmkit.redact import redact

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)  # time is nearly up; another job needs the place
FIRST_PORT, PORTS = 15_000, 15_000  # below those that systems give to clients


class JobError(RuntimeError):
    """A job that did not do its work: raised in it, so that SLURM calls it FAILED."""


@dataclass(frozen=True, slots=True)
class Task:
    """A command to run as a job."""

    command: list[str]
    place: JobPlace  # where it reports
    environment: dict[str, str]  # besides the job's
    max_requeues: int
    config: str | None = None  # digest of the config that it is started with

    def __call__(self) -> None:
        """Run the command in this task of the job.

        Raises:
            JobError: It failed, or was stopped and may not be queued again.
        """
        try:
            self._run()
        except JobError as error:
            self._report(JobState.failed, str(error))
            raise

    def _run(self) -> None:
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        if restarts > self.max_requeues:
            raise JobError(f"was queued again {restarts} times, more than max_requeues={self.max_requeues}")
        told = f"start {restarts + 1}: {shlex.join(redact(self.command))}"
        if _is_first():
            self._report(JobState.running, "")
        print(time.strftime("%Y-%m-%d %H:%M:%S"), told, flush=True)  # noqa: T201
        with _remembered_signals() as received:
            code = _as_shells_do(subprocess.call(self.command, env=dict(os.environ) | self.environment | rendezvous()))
        if code in (0, os.EX_TEMPFAIL):
            if _is_first():
                self._report(JobState.done, "" if code == 0 else "left to another process")
        elif received and code in [128 + number for number in STOP_SIGNALS]:
            if _is_first():  # when it has left, what all processes had to save is saved
                self._queue_again(restarts, received[0])
        else:
            raise JobError(f"{_last_line(self.place)} (ended with {code})")

    def _queue_again(self, restarts: int, received: signal.Signals) -> None:
        """Unless SLURM already does something with this job: was it cancelled, or is queued again by SLURM itself."""
        job = os.environ["SLURM_JOB_ID"]
        now = subprocess.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True)
        if now.stdout.strip() != "RUNNING":
            return
        if restarts == self.max_requeues:
            raise JobError(f"stopped by {received.name}, and max_requeues={restarts} are used up")
        self._report(JobState.waiting, f"stopped by {received.name}, queued again")
        subprocess.run(["scontrol", "requeue", job], check=True)

    def _report(self, state: JobState, reason: str) -> None:
        JobReport(job_id(), state, redact(reason), self.config, time.time()).write(self.place)


def job_id() -> str:
    """This job's id, as 12 or as 12_3 in an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def rendezvous() -> dict[str, str]:
    """What the processes of a run must know of each other, for torch.distributed: nothing, if there is only one."""
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    if tasks == 1:
        return {}
    return {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks // int(os.environ["SLURM_JOB_NUM_NODES"])),
        "NODE_RANK": os.environ["SLURM_NODEID"],
        "MASTER_ADDR": first_address(os.environ["SLURM_JOB_NODELIST"]),
        # The same for all tasks of a job, another one for the next job on the node.
        "MASTER_PORT": str(FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % PORTS),
    }


def first_address(nodes: str) -> str:
    """The name of the first of some nodes if it resolves here, else the address that SLURM has for it.

    Args:
        nodes: As SLURM writes them: n[1-2,7].
    """
    name = _told("scontrol", "show", "hostnames", nodes).split()[0]
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        facts = _told("scontrol", "--oneliner", "show", "node", name).split()
        return next((fact.removeprefix("NodeAddr=") for fact in facts if fact.startswith("NodeAddr=")), name)
    return name


@contextmanager
def _remembered_signals() -> Iterator[list[signal.Signals]]:
    """The signals that come while this is entered; they do not end this process, as they do not end a child at once."""
    received: list[signal.Signals] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, remember) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_shells_do(code: int) -> int:
    """128 + N for a process that signal N ended, as many end themselves after a signal."""
    return 128 - code if code < 0 else code


def _last_line(place: JobPlace) -> str:
    """What the command said last: nothing else has written to the log meanwhile."""
    job = read_job(place)
    try:
        lines = Path(job.log).read_text(errors="replace").split("\n") if job else []
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), "the command failed")


def _is_first() -> bool:
    return os.environ.get("SLURM_PROCID", "0") == "0"


def _told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
