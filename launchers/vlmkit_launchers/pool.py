"""A pool: a process that starts the jobs of a sweep on this machine, a few at a time, in order.

    python -m vlmkit_launchers.pool        what to start comes as one line of JSON (PoolOrder)

A signal asks it to end: its jobs get SIGTERM, save and leave, the others never begin; SIGINT after that kills. Its jobs
get SIGTERM as well when it is killed itself, and it ends when the process that started it has, unless it is detached.
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from vlmkit.jobs import LEAVING, JobPlace, JobReport, JobState
from vlmkit.launched import gpu_in_turn, own_environment
from vlmkit.logs import how_it_failed
from vlmkit.paths import held_lock
from vlmkit.redact import redact

READY = "ready"  # said when the locks of all jobs are held
PAUSE_S = 0.1  # between two looks at the jobs that run
SPARE_FILES = 64  # that a process may have open besides the locks of its jobs
PR_SET_PDEATHSIG = 1  # of Linux's prctl


@dataclass(frozen=True, slots=True)
class PoolJob:
    """A command to run."""

    number: int
    command: list[str]
    folder: str
    config: str  # digest


@dataclass(frozen=True, slots=True)
class PoolOrder:
    """What a pool is told."""

    jobs: list[PoolJob]
    logs: str
    processes: int
    gpus: list[int] | None
    detach: bool

    @classmethod
    def read(cls, line: str) -> "PoolOrder":
        """From JSON."""
        told = json.loads(line)
        return cls(**told | {"jobs": [PoolJob(**job) for job in told["jobs"]]})


@dataclass(slots=True)
class _Running:
    job: PoolJob
    slot: int
    process: subprocess.Popen[bytes]
    held: ExitStack


class Pool:
    """Runs jobs until all have ended."""

    def __init__(self, order: PoolOrder) -> None:
        self._order = order
        self._job_id = f"{socket.gethostname()}:{os.getpid()}"
        self._running: list[_Running] = []
        self._is_ending = False
        self._is_killing = False
        self._waiting: deque[tuple[PoolJob, ExitStack]] = deque()
        for job in order.jobs:
            held = ExitStack()
            held.enter_context(held_lock(_place(job).lock, wait=False))
            self._waiting.append((job, held))

    def run(self) -> None:
        """Return when the last has ended; those that a signal ended have no report of their end, which says so."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._heed)
        watched = [] if self._order.detach else [sys.stdin]
        sent: signal.Signals | None = None
        while self._running or self._waiting:
            if not self._is_ending:
                self._fill_up()
            ready, _, _ = select.select(watched, [], [], PAUSE_S)
            if ready:  # its other end was closed: nobody waits for these jobs any more
                watched = []
                self._is_ending = True
            if self._is_ending and sent is not (number := signal.SIGKILL if self._is_killing else signal.SIGTERM):
                sent = number  # once: several may ask, and a job that saves is not to be disturbed
                self._end_all(number)
            self._clear_up()

    def _heed(self, number: int, _frame: FrameType | None) -> None:
        self._is_killing |= self._is_ending and number == signal.SIGINT
        self._is_ending = True

    def _fill_up(self) -> None:
        while self._waiting and len(self._running) < self._order.processes:
            slot = min(set(range(self._order.processes)) - {each.slot for each in self._running})
            job, held = self._waiting.popleft()
            try:
                process = self._start(job, slot)
            except OSError as error:
                self._report(job, JobState.failed, f"cannot be started: {error}")
                held.close()
            else:
                self._report(job, JobState.running, "")
                self._running.append(_Running(job, slot, process, held))

    def _start(self, job: PoolJob, slot: int) -> subprocess.Popen[bytes]:
        with log_of(Path(self._order.logs), os.getpid(), job.number).open("ab") as log:
            return subprocess.Popen(
                job.command,
                env=own_environment(os.environ) | gpu_in_turn(self._order.gpus, slot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_the_pool,
            )

    def _end_all(self, number: signal.Signals) -> None:
        for _, held in self._waiting:
            held.close()
        self._waiting.clear()
        for each in self._running:
            self._report(each.job, JobState.running, LEAVING)
            each.process.send_signal(number)

    def _clear_up(self) -> None:
        for each in [each for each in self._running if each.process.poll() is not None]:
            self._running.remove(each)
            code = each.process.returncode
            if code in (0, os.EX_TEMPFAIL):
                self._report(each.job, JobState.done, "" if code == 0 else "left to another process")
            elif not self._is_ending:
                log = log_of(Path(self._order.logs), os.getpid(), each.job.number)
                self._report(each.job, JobState.failed, how_it_failed(code, log))
            each.held.close()

    def _report(self, job: PoolJob, state: JobState, reason: str) -> None:
        try:
            JobReport(self._job_id, state, redact(reason), job.config, time.time()).write(_place(job))
        except OSError as error:  # a full disk: the other jobs may have room
            print(f"{job.folder}: {state.value}, which cannot be written down: {error}", file=sys.stderr)  # noqa: T201


def log_of(logs: Path, pool: int, number: int) -> Path:
    """What a job of a pool prints.

    Args:
        logs: Of the sweep.
        pool: Its process id.
        number: The job's.
    """
    return logs / f"{pool}_{number}.log"


def _place(job: PoolJob) -> JobPlace:
    return JobPlace.of_folder(Path(job.folder))


def _end_with_the_pool() -> None:
    """In a child, before its program is there: the kernel sends it SIGTERM when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def allow_open_files(locks: int) -> None:
    """Have the system let this process hold so many locks: each is an open file.

    Ends the process with one line if it does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = locks + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except ValueError:
        sys.exit(
            f"error: {locks:,} jobs need {needed:,} open files, and this machine allows {hard:,} (ulimit -Hn): "
            "make several sweeps of it"
        )


def main() -> None:
    """The process."""
    order = PoolOrder.read(sys.stdin.readline())
    allow_open_files(len(order.jobs))
    pool = Pool(order)
    print(READY, flush=True)  # noqa: T201
    pool.run()


if __name__ == "__main__":
    main()
