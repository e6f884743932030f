"""Small commands as the jobs of a sweep."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmkit_launchers.handover import PlannedJob

# One that is as a run of training is: it says that it has begun, goes on until it is asked to end, saves, and leaves.
PATIENT = """
import signal, sys, time
from pathlib import Path
def leave(number, frame):
    Path('saved').touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, leave)
Path('begun').touch()
while not Path('may_end').exists():
    time.sleep(0.02)
Path('ended').touch()
"""
# One that does not leave when it is asked to.
STUBBORN = PATIENT.replace("sys.exit(128 + number)", "pass")
# Counts how often it was started.
COUNTING = "open('starts', 'a').write('x')"

DRIVER = """
import sys
from pathlib import Path
from tests.launchers.commands import planned
from vlmkit.config import LocalLauncherConfig
from vlmkit_launchers.handover import LocalStarter
from vlmkit_launchers.sweep import launch
sweep, processes, detach, *programs = sys.argv[1:]
options = LocalLauncherConfig(processes=int(processes), detach=detach == "detach")
starter = LocalStarter(options, Path(sweep))
sys.exit(0 if launch(planned(Path(sweep), *programs), Path(sweep), starter, options.detach) else 1)
"""


def planned(sweep: Path, *programs: str) -> list[PlannedJob]:
    """A job for each Python program, which runs in the job's run directory."""
    jobs = []
    for number, program in enumerate(programs):
        folder = sweep / f"seed={number}"
        folder.mkdir(parents=True, exist_ok=True)
        inside = f"import os; os.chdir({str(folder)!r})\n{program}"
        command = [sys.executable, "-S", "-c", inside]
        jobs.append(PlannedJob(number, [f"seed={number}", "lr=1"], folder, command, f"config {number}"))
    return jobs


def start_launch(sweep: Path, *programs: str, processes: int = 1, detach: bool = False) -> "subprocess.Popen[str]":
    """A command that launches these jobs on this machine, as ``python -m vlmkit.train -m …`` does."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(sweep), str(processes), "detach" if detach else "wait", *programs],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not so after {timeout_s:g} s")
        time.sleep(0.02)
