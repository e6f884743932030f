"""A job in SLURM is never worse than running its command again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from tests.slurm.conftest import Slurm
from vlmkit.config import ClusterConfig, JobConfig
from vlmkit.errors import UserError
from vlmkit.jobs import JobPlace, JobReport, JobState, read_report
from vlmkit_launchers.slurm import submit
from vlmkit_launchers.task import Task

# A command that saves when it is told to leave: it writes a line for each start, and has done its work in the last.
WORK = """
import os, signal, sys, time
starts, last, saving_s = sys.argv[1] + os.environ.get("RANK", ""), int(sys.argv[2]), float(sys.argv[3])
def leave(number, _frame):
    time.sleep(saving_s)
    print("saved after", signal.Signals(number).name)
    sys.exit(128 + number)
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, leave)
with open(starts, "a") as file:
    file.write("start\\n")
print("work of start", count := len(open(starts).readlines()))
if count < last:
    time.sleep(600)
"""
IGNORES = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write("start\\n")
time.sleep(600)
"""


@dataclass(frozen=True)
class Started:
    """A job, and what is known of it."""

    job_id: str
    log: Path
    folder: Path

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
            folder.mkdir()
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
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    jobs = Jobs(slurm, tmp_path)
    yield jobs
    jobs.end_all()


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def work(starts: int, saving_s: float = 0) -> list[str]:
    return python(WORK, "FOLDER/starts", str(starts), str(saving_s))


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def lines_of(path: Path) -> list[str]:
    return text(path).splitlines()


# ---- how a job ends ------------------------------------------------------------------------------------


def test_each_job_of_an_array_ends_for_itself_and_says_why(jobs: Jobs) -> None:
    done = jobs.submit(
        python("print('well')"),
        python("print('begins', flush=True); raise ValueError('no good')"),
        python("print('step 7', flush=True); import os; os.kill(os.getpid(), 9)"),
        python("import os; os.kill(os.getpid(), 11)"),
        ["/no/such/program"],
        python("import sys; sys.exit(75)"),
        python("import sys; sys.exit(3)"),
    )
    jobs.slurm.wait_until(lambda: {jobs.state(job) for job in done} == {"COMPLETED", "FAILED"})
    assert [job.said for job in done] == [
        (JobState.done, ""),
        (JobState.failed, "ValueError: no good (ended with 1)"),
        (JobState.failed, "ended by SIGKILL, perhaps as memory ran out; it said last: step 7"),
        (JobState.failed, "ended by SIGSEGV"),
        (JobState.failed, "cannot be started: [Errno 2] No such file or directory: '/no/such/program'"),
        (JobState.done, "left to another process"),
        (JobState.failed, "the command failed (ended with 3)"),
    ]
    assert {job.job_id for job in done if jobs.state(job) == "COMPLETED"} == {done[0].job_id, done[5].job_id}
    log = text(done[1].log)
    assert "begins\nTraceback (most recent call last):\n" in log
    assert log.count("Traceback") == 1  # the command's own, none of how it was started


# ---- queued again --------------------------------------------------------------------------------------


def test_a_signal_has_that_job_of_an_array_queued_again_and_its_log_goes_on(jobs: Jobs) -> None:
    by_usr2, undisturbed, by_term = jobs.submit(work(2), work(2), work(2))
    jobs.wait_for_starts(1, by_usr2, undisturbed, by_term)
    jobs.signal("USR2", by_usr2)
    jobs.signal("TERM", by_term)  # the last one: its number alone is that of the whole array
    jobs.slurm.wait_until(lambda: jobs.in_queue(by_usr2) == jobs.in_queue(by_term) == "PENDING")
    assert by_usr2.said == (JobState.waiting, "stopped by SIGUSR2, queued again")
    assert by_term.said == (JobState.waiting, "stopped by SIGTERM, queued again")
    jobs.wait_for("COMPLETED", by_usr2, by_term)
    for job, name in ((by_usr2, "SIGUSR2"), (by_term, "SIGTERM")):
        own = [line for line in lines_of(job.log) if line.startswith(("work", "saved"))]
        assert own == ["work of start 1", f"saved after {name}", "work of start 2"]
        assert job.said == (JobState.done, "")
    assert (undisturbed.starts, jobs.in_queue(undisturbed)) == (1, "RUNNING")


def requeue(slurm: Slurm, job: Started) -> None:
    slurm.run("scontrol", "requeue", job.job_id)


def lose_node(slurm: Slurm, job: Started) -> None:
    node = slurm.run("squeue", "--noheader", "--format=%N", f"--jobs={job.job_id}")
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    slurm.wait_until(lambda: slurm.run("squeue", "-h", "--format=%T", f"--jobs={job.job_id}") == "PENDING")
    resume = ["scontrol", "update", f"nodename={node}", "state=resume"]
    subprocess.run(resume, capture_output=True, check=False)  # unless it has come back by itself


@pytest.mark.parametrize("end", [requeue, lose_node])
def test_a_job_that_slurm_itself_ended_begins_again_where_it_was(
    jobs: Jobs, end: Callable[[Slurm, Started], None]
) -> None:
    [job] = jobs.submit(work(2))
    jobs.wait_for_starts(1, job)
    end(jobs.slurm, job)
    jobs.wait_for("COMPLETED", job)
    assert (job.starts, job.said) == (2, (JobState.done, ""))


def test_a_job_that_gives_way_to_a_more_important_one_goes_on_after_it(jobs: Jobs) -> None:
    [low] = jobs.submit(work(2), partition="low", nodes=2, cpus_per_task=4)
    jobs.wait_for_starts(1, low)
    [high] = jobs.submit(python("print('first')"), partition="main")
    jobs.wait_for("COMPLETED", high)
    jobs.wait_for("COMPLETED", low)
    assert "saved after SIGTERM" in text(low.log)
    assert low.said == (JobState.done, "")


def test_a_start_waits_until_the_one_before_has_ended(jobs: Jobs) -> None:
    """However slowly that saves: two of a run would write into one directory."""
    slow = "import signal, sys, time; from pathlib import Path\n"
    slow += "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(3), Path('FOLDER/saved').touch(), sys.exit(143)))\n"
    slow += "print('saved before:', Path('FOLDER/saved').exists(), flush=True); Path('FOLDER/saved').exists() or time.sleep(600)"
    [job] = jobs.submit(python(slow))
    jobs.slurm.wait_until(lambda: "saved before: False" in text(job.log))
    requeue(jobs.slurm, job)
    jobs.wait_for("COMPLETED", job)
    assert [line for line in lines_of(job.log) if line.startswith("saved")] == [
        "saved before: False",
        "saved before: True",
    ]


def test_a_job_is_not_queued_again_for_ever(jobs: Jobs) -> None:
    told, plain = jobs.submit(work(9), work(9), max_requeues=1)
    jobs.wait_for_starts(1, told, plain)
    jobs.signal("USR2", told)
    requeue(jobs.slurm, plain)
    jobs.wait_for_starts(2, told, plain)
    jobs.signal("USR2", told)
    requeue(jobs.slurm, plain)
    jobs.wait_for("FAILED", told, plain)
    assert told.said == (JobState.failed, "stopped by SIGUSR2, and max_requeues=1 are used up")
    assert plain.said == (JobState.failed, "was queued again 2 times, more than max_requeues=1")
    assert told.starts == plain.starts == 2


def test_who_cancels_a_job_ends_it_for_good(jobs: Jobs) -> None:
    saves, ignores = jobs.submit(work(2, saving_s=2), python(IGNORES, "FOLDER/starts"))
    jobs.wait_for_starts(1, saves)
    jobs.slurm.wait_until(lambda: ignores.starts == 1)
    jobs.slurm.run("scancel", saves.job_id, ignores.job_id)
    jobs.wait_for("CANCELLED", saves, ignores)
    jobs.slurm.wait_until(lambda: jobs.in_queue(saves) == jobs.in_queue(ignores) == "CANCELLED")
    assert "saved after SIGTERM" in text(saves.log)
    assert saves.starts == ignores.starts == 1
