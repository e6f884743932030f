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
from dataclasses import dataclass
from pathlib import Path

from vlmkit.jobs import JobPlace, JobReport, JobState, read_report
from vlmkit.logs import START, as_shells_do, how_it_failed
from vlmkit.redact import redact
from vlmkit_launchers.interrupted import remembered

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)  # time is nearly up; another job needs the place
FIRST_PORT, PORTS = 15_000, 15_000  # below those that systems give to clients
PATIENCE_S, PAUSE_S = 60.0, 3.0  # how long, and how often, SLURM is asked again if it does not answer


class JobError(RuntimeError):
    """A job did not do its work."""


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
            SystemExit: It failed, or was stopped and may not be queued again: SLURM then calls the job FAILED.
        """
        try:
            self._run()
        except JobError as error:
            if self._failure() is None:  # or what failed first has ended this process too
                self._report(JobState.failed, str(error))
            raise SystemExit(f"the job failed: {redact(str(error))}") from None

    def _run(self) -> None:
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        if _is_first():
            self._report(JobState.running, "")
        if restarts > self.max_requeues:
            raise JobError(f"was queued again {restarts} times, more than max_requeues={self.max_requeues}")
        with remembered(STOP_SIGNALS) as received:  # they end this process no more than a child at once
            code = self._call(restarts + 1)
        if _is_first() and (reason := self._failure()) is not None:  # srun then ends the others, with SIGTERM too
            raise JobError(reason)
        if code in (0, os.EX_TEMPFAIL):
            if _is_first():
                self._report(JobState.done, "" if code == 0 else "left to another process")
        elif received and as_shells_do(code) in [128 + number for number in STOP_SIGNALS]:
            if _is_first():  # when it has left, what all processes had to save is saved
                self._queue_again(restarts, received[0])
        else:
            raise JobError(how_it_failed(code, _own_log()))

    def _call(self, start: int) -> int:
        """Run the command; how it ended, as subprocess has it."""
        _say(f"{START} {start}: {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(redact(self.command))}")
        try:
            return subprocess.call(self.command, env=dict(os.environ) | self.environment | rendezvous())
        except OSError as error:
            raise JobError(f"cannot be started: {error}") from error

    def _queue_again(self, restarts: int, received: signal.Signals) -> None:
        """Unless SLURM already does something with this job: was it cancelled, or is queued again by SLURM itself."""
        if _answer("squeue", "--noheader", "--format=%T", f"--jobs={job_id()}") != "RUNNING":
            return
        if restarts == self.max_requeues:
            raise JobError(f"stopped by {received.name}, and max_requeues={restarts} are used up")
        self._report(JobState.waiting, f"stopped by {received.name}, queued again")
        _answer("scontrol", "requeue", job_id())

    def _failure(self) -> str | None:
        """Why a process of this job has failed, if one has."""
        report = read_report(self.place)
        if report is None or (report.job_id, report.state) != (job_id(), JobState.failed):
            return None
        return report.reason

    def _report(self, state: JobState, reason: str) -> None:
        try:
            JobReport(job_id(), state, redact(reason), self.config, time.time()).write(self.place)
        except OSError as error:  # the work counts more
            _say(f"warning: {state.value}, but that cannot be written down: {error}")


def job_id() -> str:
    """This job's id, as 12 or as 12_3 in an array: SLURM_JOB_ID is for one job of an array that of them all."""
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


def _own_log() -> Path:
    """What this task of the job prints."""
    from submitit import JobEnvironment

    return JobEnvironment().paths.stdout


def _is_first() -> bool:
    return os.environ.get("SLURM_PROCID", "0") == "0"


def _told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _answer(*command: str) -> str:
    """What a command of SLURM says; its controller may be away for a moment.

    Raises:
        JobError: It failed again and again.
    """
    deadline = time.monotonic() + PATIENCE_S
    while (done := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
        problem = " ".join(done.stderr.split()) or f"{command[0]} ended with {done.returncode}"
        if time.monotonic() > deadline:
            raise JobError(f"is not queued again: {problem}")
        _say(f"asking again: {problem}")
        time.sleep(PAUSE_S)
    return done.stdout.strip()


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
