"""A command waits for the jobs of a sweep: a line for each change, a table at the end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmkit.job_standings import JobStanding, stand
from vlmkit.jobs import JobState, Launcher
from vlmkit.logs import last_line
from vlmkit.tracking.console import SECONDS_BETWEEN_LINES, Screen
from vlmkit_launchers.handover import PlannedJob

ENDED = (JobState.done, JobState.failed, JobState.ended)
SECONDS_UNKNOWN = 600.0  # after which a job that SLURM does not know is given up
SLOWER = 1.5  # how pauses grow while nothing changes
# Between two looks, after a change and at most. SLURM answers to all users; a pool's jobs are only files.
PAUSES_S = {Launcher.slurm: (2.0, 20.0), Launcher.local: (0.2, 1.0)}


@dataclass(slots=True)
class _Seen:
    state: JobState
    since: float
    line: str = ""  # last one of its log that was shown


class Watch:
    """Looks at the jobs of a sweep until all have ended."""

    def __init__(self, jobs: Sequence[PlannedJob], screen: Screen) -> None:
        self._jobs = jobs
        self._screen = screen
        self._names = short_names(jobs)
        self._standings: dict[int, JobStanding] = {}  # by the job's number, as seen last
        self._seen: dict[int, _Seen] = {}
        self._told = time.monotonic()

    def wait(self) -> None:
        """Return when all have ended."""
        pause = 0.0
        while True:
            has_changed = self.look()
            if not self._open():
                return
            self._show_progress()
            shortest, longest = self._pauses_s()
            pause = shortest if has_changed else min(max(pause * SLOWER, shortest), longest)
            time.sleep(pause)

    def look(self) -> bool:
        """Ask how those stand that have not ended, tell what changed; whether anything did."""
        open_jobs = self._open()
        standings = stand(job.place for job in open_jobs)
        changed = False
        for job in open_jobs:
            now = standings.get(job.place)
            if now is None:  # somebody took its record away: nothing more will be known of it
                self._seen[job.number] = _Seen(JobState.ended, time.monotonic())
                self._standings.pop(job.number, None)
                continue
            self._standings[job.number] = now
            seen = self._seen.get(job.number)
            if seen is None or seen.state is not now.state:
                self._seen[job.number] = _Seen(now.state, time.monotonic())
                changed = True
                if seen or now.state not in (JobState.waiting, JobState.done):  # what is as one expects needs no line
                    self._screen.say(f"{time.strftime('%H:%M:%S')}  {self._names[job.number]}: {described(now)}")
        return changed

    def summarize(self) -> bool:
        """A table of all jobs, and for those that did not end well their log and last line; whether there is none."""
        rows = []
        for job in self._jobs:
            now = self._standings.get(job.number)
            rows.append((self._names[job.number], described(now) if now else "no record", str(job.folder)))
        self._screen.say("")
        self._screen.table(("job", "state", "run directory"), rows)
        bad = [job for job in self._jobs if not self._is_done(job)]
        if bad:
            self._screen.say("")
        for job in bad:
            self._say_why(job)
        if bad:
            self._screen.say("the same command starts again what is not done")
        return not bad

    def _say_why(self, job: PlannedJob) -> None:
        now = self._standings.get(job.number)
        if now is None:
            self._screen.say(f"{self._names[job.number]}: {job.place.record} is gone")
            return
        has_reason = now.state is JobState.failed and now.report is not None and now.report.reason
        line = now.reason if has_reason else last_line(Path(now.job.log))
        self._screen.say(f"{self._names[job.number]}: {line or now.reason or 'it has printed nothing'}")
        self._screen.say(f"    log: {now.job.log}")

    def _show_progress(self) -> None:
        """From time to time the last line of each job that runs here, if it is new."""
        if time.monotonic() - self._told < SECONDS_BETWEEN_LINES:
            return
        self._told = time.monotonic()
        for job in self._open():
            now, seen = self._standings.get(job.number), self._seen.get(job.number)
            if now is None or seen is None or now.job.launcher is Launcher.slurm or now.state is not JobState.running:
                continue
            line = last_line(Path(now.job.log))
            if line != seen.line:
                seen.line = line
                self._screen.say(f"          {self._names[job.number]}: {line}")

    def _pauses_s(self) -> tuple[float, float]:
        launchers = {self._standings[job.number].job.launcher for job in self._open()}
        return PAUSES_S[Launcher.slurm if Launcher.slurm in launchers else Launcher.local]

    def _open(self) -> list[PlannedJob]:
        return [job for job in self._jobs if not self._has_ended(job)]

    def _has_ended(self, job: PlannedJob) -> bool:
        seen = self._seen.get(job.number)
        if seen is None:
            return False
        given_up = seen.state is JobState.unknown and time.monotonic() - seen.since > SECONDS_UNKNOWN
        return seen.state in ENDED or given_up

    def _is_done(self, job: PlannedJob) -> bool:
        now = self._standings.get(job.number)
        return now is not None and now.state is JobState.done


def described(standing: JobStanding) -> str:
    """Its state, and why it ended: SLURM's word."""
    if standing.state is JobState.ended and standing.reason:
        return f"ended: {standing.reason}"
    return standing.state.value


def short_names(jobs: Sequence[PlannedJob]) -> dict[int, str]:
    """Number of a job → how it is called on the screen: by that in which it differs from others."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if jobs else set()
    own = {job.number: [override for override in job.overrides if override not in common] for job in jobs}
    return {number: " ".join([f"job {number}", *differing]) for number, differing in own.items()}
