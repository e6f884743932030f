"""Who starts the jobs of a sweep: SLURM, or a pool of processes on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from vlmkit.config import JobConfig, LocalLauncherConfig
from vlmkit.errors import UserError
from vlmkit.jobs import Job, JobPlace, Launcher
from vlmkit.launched import own_environment
from vlmkit.slurm_states import cancel_slurm
from vlmkit.tracking.console import Screen
from vlmkit_launchers.interrupted import Interrupted
from vlmkit_launchers.pool import READY, PoolJob, PoolOrder, log_of


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job of a sweep, ready to be started."""

    number: int
    overrides: list[str]
    folder: Path  # its run directory
    command: list[str]
    config: str  # digest

    @property
    def place(self) -> JobPlace:
        """Where it is written about."""
        return JobPlace.of_folder(self.folder)


class Starter(Protocol):
    """Starts jobs. Each is used once."""

    def start(self, jobs: Sequence[PlannedJob]) -> list[Job]:
        """Hand the jobs over; the records of them are the caller's to write.

        Raises:
            UserError: They cannot be started. None was.
        """

    def cancel(self) -> None:
        """Take all back.

        Raises:
            UserError: SLURM did not; the message is its own.
        """

    def interrupt(self, screen: Screen) -> bool:
        """After a signal to the waiting command: end the jobs, or say how they go on. True if they have ended."""

    def close(self) -> None:
        """All have ended."""


class SlurmStarter:
    """Hands jobs to SLURM, all at once."""

    def __init__(self, job: JobConfig, parallelism: int | None, dependency: str | None, sweep: Path) -> None:
        self._job = job
        self._parallelism = parallelism
        self._dependency = dependency
        self._sweep = sweep
        self._ids: list[str] = []

    def start(self, jobs: Sequence[PlannedJob]) -> list[Job]:
        """One sbatch: an array, if there are several."""
        from vlmkit_launchers.slurm import submit
        from vlmkit_launchers.task import Task

        environment, max_requeues = self._job.environment, self._job.max_requeues or 0
        tasks = [Task(job.command, job.place, environment, max_requeues, job.config) for job in jobs]
        name = f"vlmkit-{self._sweep.name}"
        taken = submit(tasks, self._job, self._sweep / "logs", name, self._parallelism, self._dependency)
        self._ids = [each.job_id for each in taken]
        return [
            Job(Launcher.slurm, each.job_id, job.command, str(job.folder), str(each.log), time.time())
            for job, each in zip(jobs, taken, strict=True)
        ]

    def cancel(self) -> None:
        """Ask SLURM to forget them."""
        cancel_slurm(self._ids)

    def interrupt(self, screen: Screen) -> bool:
        """They go on."""
        screen.say("the jobs go on in SLURM")
        say_how_to_look(self._sweep, screen)
        return False

    def close(self) -> None:
        """Nothing is left."""


class LocalStarter:
    """Starts a pool: a process of its own, in the background, that starts the jobs (``pool.py``).

    It ends when this process ends, however that happens, unless it is detached.
    """

    def __init__(self, options: LocalLauncherConfig, sweep: Path) -> None:
        self._options = options
        self._sweep = sweep
        self._pool: subprocess.Popen[str] | None = None

    def start(self, jobs: Sequence[PlannedJob]) -> list[Job]:
        """The pool holds the locks of all jobs when this returns."""
        logs = self._sweep / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / "pool.log").open("a") as log:
            pool = subprocess.Popen(
                [sys.executable, "-m", "vlmkit_launchers.pool"],
                env=own_environment(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the command that waits, which passes it on
            )
        self._pool = pool
        told = [PoolJob(job.number, job.command, str(job.folder), job.config) for job in jobs]
        order = PoolOrder(told, str(logs), self._options.processes, self._options.gpus, self._options.detach)
        assert pool.stdin is not None and pool.stdout is not None
        with suppress(BrokenPipeError):  # its log says why
            pool.stdin.write(json.dumps(asdict(order)) + "\n")
            pool.stdin.flush()
        if pool.stdout.readline().strip() != READY:
            self.cancel()
            raise UserError(f"the pool of processes did not start; see {logs / 'pool.log'}")
        job_id = f"{socket.gethostname()}:{pool.pid}"
        return [
            Job(Launcher.local, job_id, job.command, str(job.folder), str(log_of(logs, pool.pid, job.number)), now)
            for now, job in ((time.time(), job) for job in jobs)
        ]

    def cancel(self) -> None:
        """End the pool, and with it what it has started."""
        if self._pool is not None:
            self._pool.terminate()
            self.close()

    def interrupt(self, screen: Screen) -> bool:
        """End the jobs, which save first; a second signal ends them at once."""
        if self._pool is not None:
            screen.say("ending the jobs that run, which save first; Ctrl-C again ends them at once")
            self._pool.terminate()
            while self._pool.poll() is None:
                try:
                    self._pool.wait()
                except Interrupted:
                    self._pool.send_signal(signal.SIGINT)
        return True

    def close(self) -> None:
        """The pool has ended when this returns."""
        if self._pool is not None:
            with suppress(BrokenPipeError):
                self._pool.communicate()


def say_how_to_look(sweep: Path, screen: Screen) -> None:
    """The commands for a sweep whose jobs go on without this one."""
    screen.say(f"how they stand:  python -m vlmkit.status sweep={sweep}")
    screen.say(f"to end them:     python -m vlmkit.cancel sweep={sweep}")
