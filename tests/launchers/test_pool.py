"""A pool of processes, with small commands in the place of runs."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.launchers.commands import (
    COUNTING,
    PATIENT,
    SLOW_TO_SAVE,
    STUBBORN,
    planned,
    start_launch,
    states,
    wait_until,
)
from vlmkit.config import LocalLauncherConfig
from vlmkit.jobs import JobState, read_manifest, read_report
from vlmkit_launchers.handover import LocalStarter
from vlmkit_launchers.pool import PoolJob, PoolOrder
from vlmkit_launchers.sweep import launch


def run_here(sweep: Path, *programs: str, **options: object) -> bool:
    """Launch and wait, in this process."""
    starter = LocalStarter(LocalLauncherConfig(**options), sweep)
    return launch(planned(sweep, *programs), sweep, starter, detach=False)


def pool_of(sweep: Path) -> int:
    return int(read_manifest(sweep)[0].job.job_id.partition(":")[2])


def test_jobs_run_in_order_and_no_more_at_a_time_than_there_are_processes(tmp_path: Path) -> None:
    alone = "import os; os.close(os.open('../busy', os.O_CREAT | os.O_EXCL)); os.remove('../busy')"
    note = "; open('../order', 'a').write(os.path.basename(os.getcwd()) + ' ')"
    assert run_here(tmp_path, *[alone + note] * 4)
    assert (tmp_path / "order").read_text() == "seed=0 seed=1 seed=2 seed=3 "


def test_as_many_run_at_a_time_as_there_are_processes(tmp_path: Path) -> None:
    """Each waits for the other to have begun."""
    meet = "import time, pathlib; pathlib.Path('begun').touch()\nwhile not pathlib.Path('../seed={}/begun').exists(): "
    assert run_here(tmp_path, *[meet.format(other) + "time.sleep(0.01)" for other in (1, 0)], processes=2)


def test_a_job_that_fails_does_not_end_the_others_and_is_told_with_log_and_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run_here(tmp_path, "print('fine')", "print('why'); raise SystemExit('it is\\nbroken')", "print('fine')")
    assert states(tmp_path) == [JobState.done, JobState.failed, JobState.done]
    told = capsys.readouterr().out
    log = read_manifest(tmp_path)[1].job.log
    assert (
        f"job 1 seed=1: broken (ended with 1)\n    log: {log}\nthe same command starts again what is not done" in told
    )
    assert Path(log).read_text() == "why\nit is\nbroken\n"
    assert "job 0 seed=0  done" in told
    assert "lr=1" not in told  # the same for all


def test_a_job_that_a_signal_ended_is_told_by_its_name(tmp_path: Path) -> None:
    assert not run_here(tmp_path, "os.kill(os.getpid(), 9)")
    told = read_report(planned(tmp_path, "")[0].place)
    assert told is not None
    assert told.reason == "ended by SIGKILL, perhaps as memory ran out"


def test_the_same_again_starts_only_what_is_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs = [COUNTING, f"{COUNTING}\nimport sys; sys.exit(len(open('starts').read()) == 1)", COUNTING]
    assert not run_here(tmp_path, *programs)
    assert run_here(tmp_path, *programs)
    assert [(tmp_path / f"seed={number}" / "starts").read_text() for number in range(3)] == ["x", "xx", "x"]
    assert "1 of 3 jobs started, 2 done before" in capsys.readouterr().out
    assert len(read_manifest(tmp_path)) == 3


def test_each_process_gets_a_gpu_in_turn_and_nothing_of_a_run_that_this_may_be_part_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    show = "print(os.environ.get('RANK'), os.environ['CUDA_VISIBLE_DEVICES'])\n"
    meet = "import time, pathlib; pathlib.Path('begun').touch()\nwhile not pathlib.Path('../seed={}/begun').exists(): "
    programs = [show + meet.format(other) + "time.sleep(0.01)" for other in (1, 0)]
    assert run_here(tmp_path, *programs, processes=2, gpus=[3, 5])
    assert [Path(each.job.log).read_text() for each in read_manifest(tmp_path)] == ["None 3\n", "None 5\n"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_jobs_save_and_keeps_the_others_from_beginning(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = start_launch(tmp_path, PATIENT, PATIENT)
    wait_until((tmp_path / "seed=0" / "begun").exists)
    command.send_signal(number)
    told, _ = command.communicate(timeout=30)
    assert command.returncode == code, told
    assert (tmp_path / "seed=0" / "saved").exists()
    assert not (tmp_path / "seed=1" / "begun").exists()
    assert states(tmp_path) == [JobState.ended, JobState.ended]
    assert "the same command starts again what is not done" in told
    assert "Traceback" not in told


def test_a_second_signal_ends_at_once_what_does_not_leave(tmp_path: Path) -> None:
    command = start_launch(tmp_path, STUBBORN)
    wait_until((tmp_path / "seed=0" / "begun").exists)
    command.send_signal(signal.SIGINT)
    wait_until((tmp_path / "seed=0" / "saved").exists)
    command.send_signal(signal.SIGINT)
    told, _ = command.communicate(timeout=30)
    assert command.returncode == 130, told
    assert states(tmp_path) == [JobState.ended]


def test_a_job_that_saves_is_not_disturbed_by_those_who_ask_again(tmp_path: Path) -> None:
    command = start_launch(tmp_path, SLOW_TO_SAVE, detach=True)
    command.communicate(timeout=30)
    wait_until((tmp_path / "seed=0" / "begun").exists)
    pool = pool_of(tmp_path)
    os.kill(pool, signal.SIGTERM)
    wait_until((tmp_path / "seed=0" / "saving").exists)
    os.kill(pool, signal.SIGTERM)
    wait_until(lambda: states(tmp_path) == [JobState.ended])
    assert (tmp_path / "seed=0" / "saved").exists()


@pytest.mark.parametrize("who", ["the pool", "the command"])
def test_jobs_save_and_leave_when_what_started_them_is_killed(tmp_path: Path, who: str) -> None:
    command = start_launch(tmp_path, PATIENT)
    wait_until((tmp_path / "seed=0" / "begun").exists)
    wait_until(lambda: read_manifest(tmp_path))
    os.kill(command.pid if who == "the command" else pool_of(tmp_path), signal.SIGKILL)
    wait_until((tmp_path / "seed=0" / "saved").exists)
    command.communicate(timeout=30)
    wait_until(lambda: states(tmp_path) == [JobState.ended])
    (tmp_path / "seed=0" / "may_end").touch()
    assert run_here(tmp_path, PATIENT)


def test_a_detached_pool_goes_on_and_others_leave_its_jobs_alone(tmp_path: Path) -> None:
    command = start_launch(tmp_path, PATIENT, COUNTING, detach=True)
    told, _ = command.communicate(timeout=30)
    assert command.returncode == 0, told
    for line in ("2 of 2 jobs started", f"{tmp_path}/manifest.json", f"python -m vlmkit.status sweep={tmp_path}"):
        assert line in told
    assert f"python -m vlmkit.cancel sweep={tmp_path}" in told
    wait_until((tmp_path / "seed=0" / "begun").exists)
    assert states(tmp_path) == [JobState.running, JobState.waiting]
    again, _ = start_launch(tmp_path, PATIENT, COUNTING, detach=True).communicate(timeout=30)
    assert "0 of 2 jobs started, 2 under way" in again
    (tmp_path / "seed=0" / "may_end").touch()
    wait_until(lambda: states(tmp_path) == [JobState.done, JobState.done])
    assert (tmp_path / "seed=1" / "starts").read_text() == "x"


def test_two_launches_at_once_start_each_job_once(tmp_path: Path) -> None:
    commands = [start_launch(tmp_path, *[COUNTING] * 4, at_once=2) for _ in range(2)]
    for command in commands:
        told, _ = command.communicate(timeout=60)
        assert command.returncode == 0, told
    assert [(tmp_path / f"seed={number}" / "starts").read_text() for number in range(4)] == ["x"] * 4


def test_a_failed_job_can_be_started_again_while_its_pool_goes_on(tmp_path: Path) -> None:
    failing = f"{COUNTING}\nimport sys; sys.exit(len(open('starts').read()) == 1)"
    first = start_launch(tmp_path, failing, PATIENT)
    wait_until((tmp_path / "seed=1" / "begun").exists)
    second = start_launch(tmp_path, failing, PATIENT)
    wait_until(lambda: (tmp_path / "seed=0" / "starts").read_text() == "xx")
    (tmp_path / "seed=1" / "may_end").touch()
    told, _ = second.communicate(timeout=30)
    assert second.returncode == 0, told
    told, _ = first.communicate(timeout=30)
    assert states(tmp_path) == [JobState.done, JobState.done]


def test_a_command_that_cannot_be_started_is_a_failed_job(tmp_path: Path) -> None:
    job = replace(planned(tmp_path, "")[0], command=["/nowhere"])
    starter = LocalStarter(LocalLauncherConfig(), tmp_path)
    assert not launch([job], tmp_path, starter, detach=False)
    told = read_report(job.place)
    assert told is not None
    assert (told.state, told.reason) == (
        JobState.failed,
        "cannot be started: [Errno 2] No such file or directory: '/nowhere'",
    )


@pytest.mark.parametrize(
    ("limit", "says", "told"),
    [
        ("-S", "ready\n", ""),
        ("-H", "", "error: 60 jobs need 124 open files, and this machine allows 40 (ulimit -Hn): make several sweeps"),
    ],
)
def test_a_pool_holds_more_locks_than_files_may_be_open_at_first(
    tmp_path: Path, limit: str, says: str, told: str
) -> None:
    jobs = [PoolJob(number, ["true"], str(tmp_path / f"seed={number}"), "") for number in range(60)]
    order = json.dumps(asdict(PoolOrder(jobs, str(tmp_path), 1, None, detach=False)))
    command = ["bash", "-c", f'ulimit -Sn 40 {limit}n 40; exec "$0" -m vlmkit_launchers.pool', sys.executable]
    pool = subprocess.run(command, input=order + "\n", capture_output=True, text=True, timeout=30)
    assert pool.stdout == says
    assert pool.stderr.startswith(told)
    assert len(pool.stderr.splitlines()) == (1 if told else 0), pool.stderr


def test_a_job_whose_record_is_taken_away_is_not_waited_for(tmp_path: Path) -> None:
    command = start_launch(tmp_path, PATIENT)
    wait_until((tmp_path / "seed=0" / "begun").exists)
    wait_until(lambda: states(tmp_path) == [JobState.running])
    (tmp_path / "seed=0" / "job.json").unlink()
    (tmp_path / "seed=0" / "may_end").touch()
    told, _ = command.communicate(timeout=30)
    assert command.returncode == 1
    assert f"job 0: {tmp_path}/seed=0/job.json is gone" in told
