"""What SLURM says of jobs, and how it is asked to end some."""

import os
import re
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from vlmkit.errors import UserError, one_line
from vlmkit.jobs import Job, JobState

SECONDS_FOR_AN_ANSWER = 60.0  # of SLURM's commands, which wait while its controller is away
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
NO_ANSWER = "SLURM does not answer here"
NOT_KNOWN = "SLURM here does not know it, or not any more"
NO_SUCH_JOB = "Invalid job id specified"  # all that squeue says if it was asked for one job alone
ARRAY = re.compile(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]")  # jobs of an array that never began, as sacct has them


@dataclass(frozen=True, slots=True)
class SlurmState:
    """What SLURM says of a job."""

    state: JobState
    word: str  # SLURM's own, as OUT_OF_MEMORY; "" if it says nothing
    reason: str = ""  # why it waits, in SLURM's word; or why nothing is known
    command: str = ""  # what was submitted, if that is known

    def is_another_than(self, job: Job) -> bool:
        """Whether the number of a job is that of another one now, or on this cluster.

        What submitit submits lies beside the log.
        """
        return bool(self.command) and str(Path(job.log).parent) not in self.command


def slurm_states(job_ids: Iterable[str]) -> dict[str, SlurmState]:
    """What SLURM says of jobs: what waits or runs as squeue has it, the rest from the accounting, if there is one.

    A job that neither knows, or that nobody answers for, is unknown.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    jobs = f"--jobs={','.join(sorted({job_id.partition('_')[0] for job_id in wanted}))}"
    queue = _ask("squeue", "--noheader", "--array", "--states=all", jobs, "--format=%i|%T|%r|%o")
    account = _ask("sacct", "--noheader", "--allocations", "--parsable2", jobs, "--format=JobID,State,SubmitLine")
    states = _accounted(account or []) | _queued(queue or [])  # the queue is never late
    unknown = SlurmState(JobState.unknown, "", NO_ANSWER if queue is None else NOT_KNOWN)
    # An array of which no job ever began is one job for the accounting.
    return {job_id: states.get(job_id) or states.get(job_id.partition("_")[0], unknown) for job_id in wanted}


def cancel_slurm(job_ids: Collection[str]) -> None:
    """End jobs: what waits never begins; what runs gets TERM, and KILL after KillWait. Twice does no harm.

    Raises:
        UserError: SLURM did not take it; the message is its own.
    """
    try:
        command = ("scancel", *job_ids)
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_FOR_AN_ANSWER)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"scancel: {one_line(error)}") from error
    if done.returncode != 0:
        raise UserError("; ".join(done.stderr.split("\n")).strip("; ") or f"scancel ended with {done.returncode}")


def _queued(lines: Iterable[str]) -> dict[str, SlurmState]:
    """Of squeue's lines: job id, state, why it waits, what was submitted."""
    rows = (line.split("|", 3) for line in lines if line.count("|") >= 3)
    return {job_id: _slurm_state(word, why, command) for job_id, word, why, command in rows}


def _accounted(lines: Iterable[str]) -> dict[str, SlurmState]:
    """Of sacct's lines: job id or ids, state, how it was submitted. What a job says of itself counts more."""
    rows = [line.split("|", 2) for line in lines if line.count("|") >= 2]
    rows.sort(key=lambda row: "[" not in row[0])
    return {job_id: _slurm_state(word, "", command) for ids, word, command in rows for job_id in expanded_ids(ids)}


def expanded_ids(ids: str) -> list[str]:
    """Each id of jobs that SLURM tells together: 12_[0-2,7%3] are 12_0, 12_1, 12_2 and 12_7."""
    array = ARRAY.fullmatch(ids)
    if array is None:
        return [ids]
    numbers: list[int] = []
    for part in array[2].split(","):
        first, _, rest = part.partition("-")
        last, _, each = rest.partition(":")
        numbers += range(int(first), int(last or first) + 1, int(each or 1))
    return [f"{array[1]}_{number}" for number in numbers]


def _slurm_state(words: str, reason: str, command: str) -> SlurmState:
    """Of the first word of a state: CANCELLED may be followed by whose doing it was."""
    word = (words.split() or [""])[0]
    if word in WAITING:
        return SlurmState(JobState.waiting, word, reason, command)
    if word in RUNNING:
        return SlurmState(JobState.running, word, "", command)
    states = {"COMPLETED": JobState.done, "FAILED": JobState.failed}
    return SlurmState(states.get(word, JobState.ended), word, "", command)


def _ask(*command: str) -> list[str] | None:
    """The lines of a command's output; None if it is not there, fails, or does not answer in time."""
    environment = dict(os.environ) | {"SLURM_BITSTR_LEN": "0"}  # or long arrays are told with dots
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_FOR_AN_ANSWER, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines() if done.returncode == 0 or NO_SUCH_JOB in done.stderr else None
