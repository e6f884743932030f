"""End what waits or runs of a sweep or a run; the command that started it starts again what is not done.

    python -m vlmkit.cancel sweep=DIR
    python -m vlmkit.cancel run=RUN

SLURM jobs, those of a run's evaluations too, are cancelled; processes on this machine get SIGTERM. What trains or
evaluates saves and leaves. Who hands over jobs meanwhile is waited for. It can be called again, and by several at once.
Read next: ``job_standings.py``.
"""

import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

from vlmkit import entry
from vlmkit.config import CancelConfig
from vlmkit.errors import UserError
from vlmkit.job_standings import JobStanding, stand_of
from vlmkit.jobs import (
    LAUNCH_LOCK,
    SUBMIT_LOCK,
    JobPlace,
    JobState,
    Launcher,
    read_cell_jobs,
    read_job,
    read_merge_jobs,
)
from vlmkit.paths import RunPaths, held_lock, is_locked, lock_holder
from vlmkit.slurm_states import NO_ANSWER, cancel_slurm
from vlmkit.sweep_directory import SweepEntry, find_run, find_sweep, read_entries
from vlmkit.tracking.console import Screen

SECONDS_TO_SETTLE = 150.0  # a launch waits two minutes for jobs that leave before it hands over others
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(slots=True)
class Ending:
    """What is ended together: SLURM is asked once, and each process gets one signal."""

    jobs: dict[str, str] = field(default_factory=dict)  # SLURM's id → a line about it
    processes: dict[int, Path] = field(default_factory=dict)  # id → the lock that it holds
    told: list[str] = field(default_factory=list)  # lines about what processes do, and about what goes on
    left: int = 0  # how many go on, as they cannot be reached from here
    deadline: float = field(default_factory=lambda: monotonic() + SECONDS_TO_SETTLE)  # for who hands over jobs

    def leave(self, line: str) -> None:
        """Note something that goes on."""
        self.told.append(line)
        self.left += 1

    def end_holder(self, lock: Path, name: str, elsewhere: str) -> None:
        """Note the process that holds a lock, if one does, or that it cannot be reached."""
        process = lock_holder(lock)
        if process is not None:
            self.processes[process] = lock
            self.told.append(f"{name}: process {process} gets SIGTERM")
        elif is_locked(lock):
            self.leave(f"{name}: {elsewhere}")


def cancel_sweep(sweep: Path, screen: Screen) -> None:
    """End what waits or runs of a sweep, the pool that has its jobs too, and say what that was.

    Args:
        sweep: Its folder.
        screen: Gets a line for each that is ended.

    Raises:
        UserError: Some go on: SLURM did not take it, or they are out of reach.
    """
    ending = Ending()
    with _settled(sweep / LAUNCH_LOCK, ending, screen):
        entries, problem = read_entries(sweep)
        if problem:
            screen.say(f"warning: {problem}: what is ended is what the jobs' own folders name")
        _cancel(entries, True, ending, screen)


def cancel_run(root: Path, screen: Screen) -> None:
    """The same of a run, but leave a pool that has other jobs too.

    Raises:
        UserError: Some go on: SLURM did not take it, or they are out of reach.
    """
    run = SweepEntry("run", root, read_job(JobPlace.of_folder(root)))
    _cancel([run], False, Ending(), screen)


@contextmanager
def _settled(lock: Path, ending: Ending, screen: Screen) -> Iterator[None]:
    """While this is entered nobody hands over jobs that a lock is for, unless who does takes too long."""
    with ExitStack() as stack:
        if not _take(lock, stack):
            screen.say(f"{lock.parent}: waiting for somebody who hands over jobs …")
            while not _take(lock, stack):
                if monotonic() > ending.deadline:
                    ending.leave(f"{lock.parent}: somebody hands over jobs, and takes long; call this again")
                    break
                sleep(SECONDS_BETWEEN_LOOKS)
        yield


def _take(lock: Path, stack: ExitStack) -> bool:
    """Hold a lock until a stack is closed; False if another process holds it."""
    try:
        if lock.exists():  # else nobody has ever handed over jobs
            stack.enter_context(held_lock(lock, wait=False))
    except BlockingIOError:
        return False
    except OSError:  # who may not write here cannot end the jobs either: SLURM says that
        pass
    return True


def _cancel(entries: Sequence[SweepEntry], whole_sweep: bool, ending: Ending, screen: Screen) -> None:
    names = {each.place: each.name for each in entries}
    jobs = {each.place: each.job for each in entries if each.job}
    for each in entries:
        evals = RunPaths(each.folder).evals
        with _settled(evals / SUBMIT_LOCK, ending, screen):
            merges, cells = read_merge_jobs(evals), read_cell_jobs(evals)
        jobs |= merges | cells  # those that wait for others first, or they would begin
        names |= dict.fromkeys(merges, f"{each.name}: merge of evaluations")
        names |= {place: f"{each.name}: evaluation of {_cell_name(place)}" for place in cells}
    standings = stand_of(jobs)
    for place, standing in standings.items():
        _add_job(ending, names[place], place, standing, whole_sweep)
    for each in entries:
        _add_run(ending, each, standings.get(each.place), whole_sweep)
    _end(ending, screen)
    screen.say(describe_end(ending, standings.values()))
    if ending.left:
        raise UserError(f"{ending.left:,} may go on: they cannot be ended from here, for the reasons above")


def _add_job(ending: Ending, name: str, place: JobPlace, standing: JobStanding, whole_sweep: bool) -> None:
    """One that was handed over, if it waits or runs."""
    job = standing.job
    if standing.state is JobState.unknown and standing.reason == NO_ANSWER:
        ending.leave(f"{name}: job {job.job_id}: {NO_ANSWER}")
    elif not standing.is_under_way or standing.is_ending:
        return
    elif job.launcher is Launcher.slurm:
        does = "does not begin any more" if standing.state is JobState.waiting else "gets SIGTERM"
        ending.jobs[job.job_id] = f"{name}: job {job.job_id} {does}"
    elif whole_sweep:
        host = job.job_id.partition(":")[0]
        ending.end_holder(
            place.lock, name, f"its pool cannot be ended from here; call this on {host}, as the same user"
        )
    elif not is_locked(RunPaths(Path(job.folder)).lock):
        ending.leave(f"{name}: waits in a pool; end all that this works on: python -m vlmkit.cancel sweep=DIR")


def _add_run(ending: Ending, run: SweepEntry, standing: JobStanding | None, whole_sweep: bool) -> None:
    """The process that trains there, if no launcher ends it."""
    if standing and standing.is_under_way and (whole_sweep or standing.job.launcher is Launcher.slurm):
        return
    elsewhere = "trained by a process on another machine, or of another user: call this there, as that user"
    ending.end_holder(RunPaths(run.folder).lock, run.name, elsewhere)


def _cell_name(place: JobPlace) -> str:
    """Of the place of a cell's job: step_4 mmstar."""
    return f"{place.record.parent.name} {place.record.name[1:].removesuffix('.job.json')}"


def _end(ending: Ending, screen: Screen) -> None:
    for process, lock in ending.processes.items():
        if lock_holder(lock) == process:  # else it has just left
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
    for line in ending.told:
        screen.say(line)
    if ending.jobs:
        cancel_slurm(ending.jobs)
    for line in ending.jobs.values():
        screen.say(line)


def describe_end(ending: Ending, standings: Iterable[JobStanding]) -> str:
    """What was over before, and how to go on."""
    others = [each for each in standings if each.is_ending or not each.is_under_way]
    over = Counter("ending" if each.is_ending else each.state.value for each in others)
    before = "; before: " + ", ".join(f"{count:,} {state}" for state, count in over.items()) if over else ""
    if not ending.jobs and not ending.processes:
        return f"nothing {'else ' if ending.left else ''}is to be ended{before}"
    return f"what runs saves and leaves{before}\nthe same command as before goes on with what is not done"


def main() -> None:
    """The command."""
    entry.quote_paths("run", "sweep")
    entry.run("cancel", _start)


def _start(config: CancelConfig, _invocation: entry.Invocation) -> None:
    screen = Screen()
    if config.sweep is not None:
        cancel_sweep(find_sweep(config.sweep), screen)
    else:
        cancel_run(find_run(str(config.run)).root, screen)


if __name__ == "__main__":
    main()
