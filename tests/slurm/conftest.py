"""A real SLURM for the tests that ask for one: two nodes on this machine, for as long as the session lasts."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.conftest import command_environment
from vlmkit.config import ClusterConfig, JobConfig
from vlmkit.jobs import JobPlace, JobReport, JobState, read_report
from vlmkit_launchers.slurm import submit
from vlmkit_launchers.task import Task

CLUSTER = Path(__file__).with_name("cluster")
NOT_INSTALLED = 77  # what it exits with then


@dataclass(frozen=True)
class Slurm:
    """A cluster that runs; ``cluster`` says what it has."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes SLURM's commands speak to this cluster."""
        return {"SLURM_CONF": str(self.directory / "slurm.conf")}

    def run(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def states(self, *job_ids: str) -> dict[str, str]:
        """What accounting says of these jobs: ``{"7": "COMPLETED", "8_0": "FAILED"}``, a second or two late."""
        lines = self.run("sacct", "-nXP", "--format=jobid,state", f"--jobs={','.join(job_ids)}").splitlines()
        states = dict(line.split("|") for line in lines)
        return {job_id: state.split()[0] for job_id, state in states.items()}  # not by whom it was CANCELLED

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 60) -> None:
        """Fails with what the cluster was doing if the condition does not come true."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not so after {timeout_s:g} s; {self._report()}")
            time.sleep(0.1)

    def _report(self) -> str:
        queue = self.run("squeue", "--states=all", "--format=%i %j %T %r %N")
        logs = (self.directory / "log" / f"{name}.log" for name in ("slurmctld", "slurmd-n1", "slurmd-n2"))
        tails = (f"{log.name}:\n" + "\n".join(log.read_text().splitlines()[-12:]) for log in logs)
        return "\n\n".join((f"the queue:\n{queue}", *tails))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """The cluster of this process: with xdist each worker has its own, so that tests do not disturb each other."""
    directory = tmp_path_factory.mktemp("slurm")
    try:
        started = subprocess.run([CLUSTER, "start", directory], capture_output=True, text=True)
        if started.returncode == NOT_INSTALLED:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        yield Slurm(directory)
    finally:  # also after Ctrl-C while it starts
        subprocess.run([CLUSTER, "stop", directory], check=True)


@dataclass(frozen=True)
class Started:
    """A job, and what is known of it."""

    job_id: str
    log: Path
    folder: Path

    @property
    def second_log(self) -> Path:
        """What the second of its processes prints."""
        return self.log.with_name(self.log.name.replace("_0_log", "_1_log"))

    @property
    def starts(self) -> int:
        """How often its command has begun."""
        return len(lines_of(self.folder / "starts"))

    @property
    def report(self) -> JobReport | None:
        """What it said last of itself."""
        return read_report(JobPlace.of_folder(self.folder))

    @property
    def said(self) -> tuple[JobState, str] | None:
        """Its last report, in short."""
        return (self.report.state, self.report.reason) if self.report else None


class Jobs:
    """Submits commands to the cluster."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm = slurm
        self._folder = folder
        self._ids: list[str] = []

    @classmethod
    def on(cls, slurm: Slurm, folder: Path, patch: pytest.MonkeyPatch) -> Self:
        """With the environment in which tests run commands."""
        environment = command_environment() | slurm.environment | {"ACCELERATE_USE_CPU": "true"}
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        return cls(slurm, folder)

    def submit(self, *commands: Sequence[str], max_requeues: int = 5, dependency: str | None = None,
               parallelism: int | None = None, **job: object) -> list[Started]:  # fmt: skip
        """Commands as one job, or as an array. In a command FOLDER stands for the folder of the job."""
        config = JobConfig(**job).on(ClusterConfig())
        first = len(list(self._folder.glob("job_*")))
        folders = [self._folder / f"job_{number}" for number in range(first, first + len(commands))]
        tasks = [
            Task([part.replace("FOLDER", str(folder)) for part in command], JobPlace.of_folder(folder),
                 config.environment or {}, max_requeues)
            for command, folder in zip(commands, folders, strict=True)
        ]  # fmt: skip
        for folder in folders:
            folder.mkdir(parents=True)
        taken = submit(tasks, config, self._folder / "logs", "vlmkit-test", parallelism, dependency)
        self._ids += [each.job_id for each in taken]
        return [Started(each.job_id, each.log, folder) for each, folder in zip(taken, folders, strict=True)]

    def state(self, job: Started) -> str:
        """What accounting says of a job."""
        return self.slurm.states(job.job_id).get(job.job_id, "")

    def wait_for(self, state: str, *jobs: Started, timeout_s: float = 60) -> None:
        """Wait until accounting says so of all."""
        self.slurm.wait_until(lambda: {self.state(job) for job in jobs} == {state}, timeout_s)

    def wait_for_starts(self, count: int, *jobs: Started) -> None:
        """Wait until the command of each has begun so often, and can be told to leave."""
        self.slurm.wait_until(lambda: all(f"work of start {count}" in text(job.log) for job in jobs))

    def signal(self, name: str, *jobs: Started) -> None:
        """As SLURM does shortly before a job's time is up, or when its place is needed."""
        for job in jobs:
            self.slurm.run("scancel", f"--signal={name}", job.job_id)

    def in_queue(self, job: Started) -> str:
        """What the queue says of a job."""
        return self.slurm.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job.job_id}")

    def end_all(self) -> None:
        """None is left for the next test."""
        if self._ids:
            self.slurm.run("scancel", "--quiet", *self._ids)
            mine = {job_id.partition("_")[0] for job_id in self._ids}
            self.slurm.wait_until(lambda: not mine & set(self.slurm.run("squeue", "-h", "--format=%F").split()))


@pytest.fixture
def jobs(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    jobs = Jobs.on(slurm, tmp_path, monkeypatch)
    yield jobs
    jobs.end_all()


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def lines_of(path: Path) -> list[str]:
    return text(path).splitlines()


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that use the cluster, so that none can forget to."""
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker("slurm")
