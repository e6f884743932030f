"""A sweep: which of its jobs are to be started, who has them, how they end.

Run directories are the same for the same command, so is the answer to whatever went wrong: the same command again. It
leaves alone what is done or under way.

    SWEEP/RUN/           a run directory for each job, with job.json and job_report.json
    SWEEP/manifest.json  all jobs
    SWEEP/logs/          what they print
    SWEEP/.launch.lock   held while jobs are looked at, started and written down

Read next: ``handover.py`` (who starts them), ``watch.py``.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmkit.config import ClusterConfig, TrainConfig, as_override
from vlmkit.errors import ConfigError, UserError
from vlmkit.job_standings import JobStanding, stand
from vlmkit.jobs import LAUNCH_LOCK, MANIFEST, Job, JobPlace, JobState, SweepJob, read_manifest, write_manifest
from vlmkit.paths import RunPaths, held_lock, is_locked
from vlmkit.run_directory import check_run_dir, choose_run_dir
from vlmkit.slurm_states import NO_ANSWER
from vlmkit.tracking.console import Screen
from vlmkit_launchers.handover import PlannedJob, Starter, say_how_to_look
from vlmkit_launchers.interrupted import Interrupted, held_back, interruptible
from vlmkit_launchers.watch import Watch, short_names

WHERE = ("cluster", "logger", "run_dir", "resume")  # what only says where a job runs and is watched: it is the same job
SECONDS_TO_LEAVE = 120.0  # how long jobs that are about to end are waited for
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, slots=True)
class ComposedJob:
    """A job of a sweep, as Hydra gives it."""

    number: int
    overrides: list[str]
    config: Any  # the command's dataclass
    subdir: str


def plan_jobs(composed: Sequence[ComposedJob], sweep: Path, arguments: Sequence[str]) -> list[PlannedJob]:
    """Check each job, and say by which command it is started.

    Args:
        composed: The jobs.
        sweep: Their folder.
        arguments: For Hydra, as the sweep's own command got them.

    Raises:
        ConfigError: Two have the same directory, or it holds a run of another config.
    """
    jobs = [
        PlannedJob(each.number, each.overrides, sweep / each.subdir, job_command(each, sweep, arguments), digest(each))
        for each in composed
    ]
    folders: dict[Path, PlannedJob] = {}
    for job in jobs:
        other = folders.setdefault(job.folder, job)
        if other is not job:
            names = short_names([other, job])
            raise ConfigError(
                f"hydra.sweep.subdir={job.folder.name}: would be the run directory of two jobs: "
                f"{names[other.number]}, {names[job.number]}"
            )
    for each, job in zip(composed, jobs, strict=True):
        if type(each.config) is TrainConfig:
            check_run_dir(choose_run_dir(each.config, {}, job.folder), each.config)
    return jobs


def job_command(job: ComposedJob, sweep: Path, arguments: Sequence[str]) -> list[str]:
    """The command for one job: a sweep of this job alone, in Hydra's own process and in the job's directory."""
    return [
        *(sys.executable, "-m", f"vlmkit.{Path(sys.argv[0]).stem}", "-m"),
        *arguments,  # first, as flags must not stand between overrides
        *job.overrides,
        *("hydra/launcher=basic", "hydra/sweeper=basic"),
        f"hydra.sweep.dir={as_override(str(sweep))}",
        f"hydra.sweep.subdir={as_override(job.subdir)}",
    ]


def digest(job: ComposedJob) -> str:
    """The same for jobs that come to the same."""
    plain = {name: value for name, value in asdict(job.config).items() if name not in WHERE}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def cluster_of(composed: Sequence[ComposedJob]) -> ClusterConfig:
    """The one that all jobs run on.

    Raises:
        ConfigError: They differ.
    """
    clusters = [getattr(job.config, "cluster", ClusterConfig()) for job in composed]
    if any(cluster != clusters[0] for cluster in clusters):
        raise ConfigError("cluster: must be the same for all jobs of a sweep, which SLURM gets at once")
    return clusters[0]


def launch(jobs: Sequence[PlannedJob], sweep: Path, starter: Starter, detach: bool) -> bool:
    """Start what is not done or under way, and wait for all jobs unless ``detach`` is set.

    A signal ends the process with 128 + its number, after what it means for the jobs.

    Returns:
        Whether all ended well, as far as this was waited for.

    Raises:
        UserError: The jobs cannot be started, or not be written down. None is left.
    """
    screen = Screen()
    try:
        with held_lock(sweep / LAUNCH_LOCK, wait=True):
            _start_missing(jobs, sweep, starter, screen)
    except Interrupted:
        starter.interrupt(screen)
        raise
    if detach:
        screen.say(f"jobs:            {sweep / MANIFEST}")
        say_how_to_look(sweep, screen)
        return True
    return _wait(jobs, starter, screen)


def _wait(jobs: Sequence[PlannedJob], starter: Starter, screen: Screen) -> bool:
    watch = Watch(jobs, screen)
    with interruptible():
        try:
            watch.wait()
        except Interrupted:
            if starter.interrupt(screen):
                watch.look()
                watch.summarize()
            raise
    starter.close()
    return watch.summarize()


def _start_missing(jobs: Sequence[PlannedJob], sweep: Path, starter: Starter, screen: Screen) -> None:
    standings = _when_settled(jobs, screen)
    missing, counts = [], {"done before": 0, "under way": 0}
    for job in jobs:
        now = standings.get(job.place)
        if _is_taken(job, now):
            counts["under way"] += 1
        elif now is not None and now.state is JobState.done and now.report and now.report.config == job.config:
            counts["done before"] += 1
        else:
            missing.append(job)
    others = "".join(f", {count} {what}" for what, count in counts.items() if count)
    if missing:
        with held_back():  # or jobs would run that nobody knows
            _start(missing, sweep, starter)
    screen.say(f"{sweep}: {len(missing)} of {len(jobs)} jobs started{others}")


def _when_settled(jobs: Sequence[PlannedJob], screen: Screen) -> dict[JobPlace, JobStanding]:
    """How the jobs stand, when those that save and leave have left, unless that takes long.

    Raises:
        UserError: SLURM does not answer: it may have jobs of which nothing is known then.
    """
    deadline = time.monotonic() + SECONDS_TO_LEAVE
    has_told = False
    while True:
        standings = stand(job.place for job in jobs)
        if silent := [each for each in standings.values() if each.reason == NO_ANSWER]:
            raise UserError(f"{NO_ANSWER}, and {len(silent):,} jobs may wait or run: call this again when it does")
        leaving = [job for job in jobs if _is_leaving(job, standings.get(job.place))]
        if not leaving or time.monotonic() > deadline:
            return standings
        if not has_told:
            screen.say(f"waiting for {len(leaving):,} jobs that save and leave …")
            has_told = True
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _is_leaving(job: PlannedJob, now: JobStanding | None) -> bool:
    """Also a run whose pool was killed."""
    return now is not None and (now.is_ending or (not now.is_under_way and is_locked(RunPaths(job.folder).lock)))


def _is_taken(job: PlannedJob, now: JobStanding | None) -> bool:
    return (now is not None and now.is_under_way) or is_locked(RunPaths(job.folder).lock)


def _start(jobs: Sequence[PlannedJob], sweep: Path, starter: Starter) -> None:
    started = starter.start(jobs)
    try:
        _write_down(jobs, started, sweep)
    except OSError as error:
        ids = ", ".join(dict.fromkeys(job.job_id for job in started))
        try:
            starter.cancel()
        except UserError as refusal:
            raise UserError(f"{sweep}: cannot be written in ({error}); jobs {ids} go on: {refusal}") from error
        raise UserError(f"{sweep}: cannot be written in ({error}): jobs {ids} were cancelled again") from error


def _write_down(jobs: Sequence[PlannedJob], started: Sequence[Job], sweep: Path) -> None:
    for planned, job in zip(jobs, started, strict=True):
        job.write(planned.place)
    try:
        known = {each.job.folder: each for each in read_manifest(sweep)}
    except ValueError:  # what cannot be read tells nobody anything
        known = {}
    now = {job.folder: SweepJob(planned.overrides, job) for planned, job in zip(jobs, started, strict=True)}
    write_manifest(sweep, list((known | now).values()))
