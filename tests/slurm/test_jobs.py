"""A job in SLURM is never worse than running its command again."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest

from tests.slurm.conftest import Jobs, Slurm, Started, lines_of, text
from vlmkit.config import ClusterConfig, JobConfig
from vlmkit.errors import UserError
from vlmkit.jobs import JobPlace, JobState
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


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def work(starts: int, saving_s: float = 0) -> list[str]:
    return python(WORK, "FOLDER/starts", str(starts), str(saving_s))


def own_lines(job: Started) -> list[str]:
    """What the command itself has printed."""
    return [line for line in lines_of(job.log) if line.startswith(("work", "saved"))]


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
        assert own_lines(job) == ["work of start 1", f"saved after {name}", "work of start 2"]
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
def test_a_job_that_slurm_itself_ended_begins_again(jobs: Jobs, end: Callable[[Slurm, Started], None]) -> None:
    [job] = jobs.submit(work(2, saving_s=2))
    jobs.wait_for_starts(1, job)
    end(jobs.slurm, job)
    jobs.wait_for("COMPLETED", job)
    saved = ["saved after SIGTERM"]
    if end is lose_node:  # a node that is lost may give no time to save
        saved = own_lines(job)[1:-1]
        assert saved in ([], ["saved after SIGTERM"])
    assert own_lines(job) == ["work of start 1", *saved, "work of start 2"]
    assert job.said == (JobState.done, "")


def test_a_job_that_gives_way_to_a_more_important_one_goes_on_after_it(jobs: Jobs) -> None:
    [low] = jobs.submit(work(2), partition="low", nodes=2, cpus_per_task=4)
    jobs.wait_for_starts(1, low)
    [high] = jobs.submit(python("print('first')"), partition="main")
    jobs.wait_for("COMPLETED", high)
    jobs.wait_for("COMPLETED", low)
    assert "saved after SIGTERM" in text(low.log)
    assert low.said == (JobState.done, "")


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


# ---- several processes ---------------------------------------------------------------------------------


def test_processes_know_each_other(jobs: Jobs) -> None:
    """On two nodes whose names do not resolve, and on one."""
    told = "import os; print('told', *(os.environ[name] for name in ('RANK', 'LOCAL_RANK', 'NODE_RANK', 'WORLD_SIZE', "
    told += "'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')))"
    [two_nodes] = jobs.submit(python(told), nodes=2)
    [one_node] = jobs.submit(python(told), tasks_per_node=2)
    jobs.wait_for("COMPLETED", two_nodes, one_node)
    for job, per_node in ((two_nodes, 1), (one_node, 2)):
        port = 15_000 + int(job.job_id) % 15_000
        own = [line.split()[1:] for line in lines_of(job.log) + lines_of(job.second_log) if line.startswith("told")]
        ranks = [["0", "0", "0"], ["1", "0", "1"] if per_node == 1 else ["1", "1", "0"]]
        assert own == [[*rank, "2", str(per_node), "127.0.0.1", str(port)] for rank in ranks]


def test_a_signal_to_several_processes_has_the_job_queued_again_once(jobs: Jobs) -> None:
    [job] = jobs.submit(work(2), nodes=2)
    jobs.slurm.wait_until(lambda: text(job.second_log).count("work of start 1"))
    jobs.wait_for_starts(1, job)
    jobs.signal("USR2", job)
    jobs.wait_for("COMPLETED", job)
    for log in (job.log, job.second_log):
        own = [line for line in lines_of(log) if line.startswith(("work", "saved"))]
        assert own == ["work of start 1", "saved after SIGUSR2", "work of start 2"]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_several_processes_that_fails_ends_the_job_and_its_reason_is_told(jobs: Jobs, rank: int) -> None:
    fails = f"import os, time\nif os.environ['RANK'] == '{rank}': time.sleep(1); raise ValueError('no good')\n"
    [job] = jobs.submit(python(fails + WORK, "FOLDER/starts", "2", "0"), nodes=2)
    jobs.wait_for("FAILED", job, timeout_s=30)
    assert job.said == (JobState.failed, "ValueError: no good (ended with 1)")
    assert len(list(job.folder.glob("starts*"))) == 1  # of the other one


# ---- what SLURM is asked for ---------------------------------------------------------------------------


def test_a_job_behind_another_begins_after_it_or_never(jobs: Jobs) -> None:
    [fails] = jobs.submit(python("import time; time.sleep(1); raise ValueError"))
    [never] = jobs.submit(work(1), dependency=f"afterok:{fails.job_id}")
    [after] = jobs.submit(work(1), dependency=f"afterany:{fails.job_id}")
    jobs.wait_for("FAILED", fails)
    jobs.wait_for("COMPLETED", after)
    jobs.wait_for("CANCELLED", never)
    assert never.starts == 0


REFUSED = {
    "invalid partition specified: nowhere; Batch job submission failed: Invalid partition name specified":
        {"partition": "nowhere"},
    "Batch job submission failed: Invalid account or account/partition combination specified": {"account": "nobody"},
    "Batch job submission failed: Invalid qos specification": {"qos": "no_such"},
    "Batch job submission failed: Invalid feature specification": {"constraint": "a100|h100"},
    "Batch job submission failed: Requested node configuration is not available": {"gpus_per_node": 5},
    "Batch job submission failed: Job dependency problem": {"dependency": "afterwards:1"},
    "unrecognized option '--no-such=1'": {"additional_parameters": {"no-such": 1}},
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_slurm_refuses_is_told_once_in_its_own_words_and_leaves_nothing(
    jobs: Jobs, words: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        jobs.submit(["true"], **REFUSED[words])
    assert str(refused.value) == f"SLURM did not take vlmkit-test: {words}"
    assert capfd.readouterr() == ("", "")
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_limit_on_submitted_jobs_is_told_and_holds_only_until_there_is_place(jobs: Jobs) -> None:
    [first] = jobs.submit(work(2), qos="one")
    with pytest.raises(UserError, match=r"^SLURM did not take vlmkit-test: QOSMaxSubmitJobPerUserLimit; .+$"):
        jobs.submit(work(1), qos="one")
    jobs.slurm.run("scancel", first.job_id)
    jobs.wait_for("CANCELLED", first)
    jobs.slurm.wait_until(lambda: jobs.in_queue(first) == "CANCELLED")
    [second] = jobs.submit(work(1), qos="one")
    jobs.wait_for("COMPLETED", second)


def test_everything_that_is_asked_for_reaches_the_job(jobs: Jobs) -> None:
    asked = {
        "partition": "main", "account": "test", "qos": "normal", "time_min": 90, "nodes": 2, "tasks_per_node": 2,
        "gpus_per_node": 1, "cpus_per_task": 2, "mem_gb": 1.5, "signal_delay_s": 77, "mail_user": "me@example.org",
        "mail_type": "END,FAIL", "setup": ["export FROM_SETUP='of the setup'"],
        "environment": {"OWN": "a 'b' \"c\" $(d), e=f %j"},
        "additional_parameters": {"comment": "a 'b' \"c\" $(d), e=f", "exclusive": True, "nice": 0, "hold": False,
                                  "reservation": None},
    }  # fmt: skip
    assert asked.keys() | {"constraint", "max_requeues"} == {each.name for each in fields(JobConfig)}
    told = "import os; print('told', *(os.environ[name] for name in ('SLURM_CPUS_PER_TASK', 'FROM_SETUP', 'OWN')))"
    [job] = jobs.submit(python(told), **asked)
    jobs.wait_for("COMPLETED", job)
    found = jobs.slurm.run("scontrol", "show", "job", job.job_id)
    for fact in (
        "JobName=vlmkit-test", "Partition=main", "Account=test", "QOS=normal", "TimeLimit=01:30:00", "NumNodes=2",
        "NtasksPerN:B:S:C=2:", "CPUs/Task=2", "MinMemoryNode=1.50G", "TresPerNode=gres:gpu:1", "Requeue=1",
        "MailUser=me@example.org", "MailType=END,FAIL", "OverSubscribe=NO", "Nice=0", "Comment=a 'b' \"c\" $(d), e=f",
    ):  # fmt: skip
        assert fact in found
    assert f"told 2 of the setup {asked['environment']['OWN']}" in text(job.log)
    assert "#SBATCH --signal=USR2@77" in text(job.log.with_name(f"{job.job_id}_submission.sh"))


def test_no_more_of_an_array_run_at_a_time_than_may(jobs: Jobs) -> None:
    array = jobs.submit(*[work(2)] * 3, parallelism=1)
    jobs.slurm.wait_until(lambda: any(job.starts for job in array))
    number = array[0].job_id.partition("_")[0]
    assert sorted(jobs.slurm.run("squeue", "-rh", f"--jobs={number}", "--format=%T").split()) == [
        "PENDING",
        "PENDING",
        "RUNNING",
    ]


def test_a_folder_may_have_any_name_but_one_with_patterns(slurm: Slurm, jobs: Jobs, tmp_path: Path) -> None:
    jobs = Jobs(slurm, tmp_path / "seed=1,lr=1e-3 'a' \"b\" $(c) #d")
    [job] = jobs.submit(work(1))
    jobs.wait_for("COMPLETED", job)
    assert "work of start 1" in text(job.log)
    for name in ("50%", "two\nlines"):
        with pytest.raises(UserError, match="takes % for a pattern: use another name"):
            Jobs(slurm, tmp_path / name).submit(work(1))


def test_a_job_can_submit_another_which_knows_nothing_of_it(jobs: Jobs) -> None:
    inner = "import os; print('told', os.environ.get('RANK'), os.environ['SLURM_NTASKS'], os.environ['SLURM_CONF'])"
    outer = f"""
import sys
from pathlib import Path
from vlmkit.config import ClusterConfig
from vlmkit.jobs import JobPlace
from vlmkit_launchers.slurm import submit
from vlmkit_launchers.task import Task
folder = Path("FOLDER")
task = Task([sys.executable, "-c", {inner!r}], JobPlace.of_folder(folder / "inner"), {{}}, 0)
print("submitted", submit([task], ClusterConfig(), folder / "logs", "vlmkit-inner")[0].job_id)
"""
    [job] = jobs.submit(python(f"import os\nif os.environ['RANK'] == '1':\n exec({outer!r})"), nodes=2)
    jobs.wait_for("COMPLETED", job)
    inner_id = text(job.second_log).split("submitted ")[1].split()[0]
    log = job.folder / "logs" / f"{inner_id}_0_log.out"
    jobs.slurm.wait_until(lambda: f"told None 1 {jobs.slurm.environment['SLURM_CONF']}" in text(log))


def test_where_slurm_is_not_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match='SLURM did not take vlmkit-test: Could not detect "srun"'):
        submit([Task(["true"], JobPlace.of_folder(tmp_path), {}, 0)], ClusterConfig(), tmp_path, "vlmkit-test")


def test_a_job_waits_for_a_controller_that_is_away_for_a_moment(jobs: Jobs) -> None:
    group = "import os; open('FOLDER/group', 'w').write(str(os.getpgrp()))\n"
    [job] = jobs.submit(python(group + WORK, "FOLDER/starts", "2", "0"))
    jobs.wait_for_starts(1, job)
    with without_controller(jobs.slurm):
        os.killpg(int(text(job.folder / "group")), signal.SIGUSR2)
        jobs.slurm.wait_until(lambda: "asking again: slurm_load_jobs error: " in text(job.log))
    jobs.wait_for("COMPLETED", job)
    assert own_lines(job) == ["work of start 1", "saved after SIGUSR2", "work of start 2"]


@contextmanager
def without_controller(slurm: Slurm) -> Iterator[None]:
    """SLURM's controller has ended while this is entered."""
    pid = slurm.directory / "run" / "slurmctld.pid"
    process = Path("/proc", text(pid).strip())
    os.kill(int(process.name), signal.SIGTERM)
    slurm.wait_until(lambda: not process.exists())
    try:
        yield
    finally:
        start = f"setsid slurmctld -D >> {slurm.directory}/log/slurmctld.log 2>&1 & echo $! > {pid}"
        environment = os.environ | slurm.environment | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
        subprocess.run(["sh", "-c", start], env=environment, check=True)
