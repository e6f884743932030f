"""Small commands as the jobs of a sweep."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmkit.job_standings import stand
from vlmkit.jobs import JobPlace, JobState, read_manifest
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
# One that needs a while to save.
SLOW_TO_SAVE = PATIENT.replace("    Path('saved')", "    Path('saving').touch(); time.sleep(1)\n    Path('saved')")
# Counts how often it was started.
COUNTING = "open('starts', 'a').write('x')"

DRIVER = """
import sys
from pathlib import Path
from tests.launchers.commands import planned
from vlmkit.config import ClusterConfig, LocalLauncherConfig
from vlmkit_launchers.handover import LocalStarter, SlurmStarter
from vlmkit_launchers.sweep import launch
launcher, at_once, detach, sweep, *programs = sys.argv[1:]
at_once, detach, sweep = int(at_once), detach == "detach", Path(sweep)
if launcher == "slurm":
    starter = SlurmStarter(ClusterConfig(), at_once, None, sweep)
else:
    starter = LocalStarter(LocalLauncherConfig(processes=at_once, detach=detach), sweep)
sys.exit(0 if launch(planned(sweep, *programs), sweep, starter, detach) else 1)
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


def start_launch(
    sweep: Path, *programs: str, launcher: str = "local", at_once: int = 1, detach: bool = False, **environment: str
) -> "subprocess.Popen[str]":
    """A command that launches these jobs, as ``python -m vlmkit.train -m …`` does."""
    options = [launcher, str(at_once), "detach" if detach else "wait", str(sweep)]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *options, *programs],
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_ctrl_c,
    )


def heed_ctrl_c() -> None:
    """As in a terminal: what a shell starts in the background ignores it, and so would what the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def states(sweep: Path) -> list[JobState]:
    """How the jobs in the manifest stand."""
    places = [JobPlace.of_folder(Path(each.job.folder)) for each in read_manifest(sweep)]
    standings = stand(places)
    return [standings[place].state for place in places]


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not so after {timeout_s:g} s")
        time.sleep(0.02)
