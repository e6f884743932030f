"""A real SLURM for the tests that ask for one: two nodes on this machine, for as long as the session lasts."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

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


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that use the cluster, so that none can forget to."""
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker("slurm")
