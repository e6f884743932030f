"""How jobs stand: what they said themselves, and what SLURM or the lock of their pool says beyond that.

Read next: ``slurm_states.py``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vlmkit.jobs import LEAVING, Job, JobPlace, JobReport, JobState, Launcher, read_job, read_report
from vlmkit.paths import is_locked
from vlmkit.slurm_states import SlurmState, slurm_states


@dataclass(frozen=True, slots=True)
class JobStanding:
    """A job, and how far it is."""

    job: Job
    state: JobState
    reason: str  # why, in one line, if there is more to say; SLURM's own word for what it ended
    report: JobReport | None  # of this job, not of an earlier one
    is_ending: bool = False  # it runs, and is about to end

    @property
    def is_under_way(self) -> bool:
        """Whether it waits or runs."""
        return self.state in (JobState.waiting, JobState.running)

    @property
    def since(self) -> float:
        """When it last said something, or was handed over: seconds since 1970."""
        return self.report.time if self.report else self.job.submitted


def stand(places: Iterable[JobPlace]) -> dict[JobPlace, JobStanding]:
    """How the jobs of some places stand; places without a job are left out. SLURM is asked once for all."""
    return stand_of({place: job for place in places if (job := read_job(place))})


def stand_of(jobs: Mapping[JobPlace, Job]) -> dict[JobPlace, JobStanding]:
    """How some jobs stand. SLURM is asked once for all that did not say themselves that they are done."""
    reports = {place: _own_report(place, job) for place, job in jobs.items()}
    is_open = [job for place, job in jobs.items() if not _is_done(reports[place])]
    slurm = slurm_states(job.job_id for job in is_open if job.launcher is Launcher.slurm)
    return {place: _stand(place, job, reports[place], slurm) for place, job in jobs.items()}


def _own_report(place: JobPlace, job: Job) -> JobReport | None:
    report = read_report(place)
    return report if report is not None and report.job_id == job.job_id else None


def _is_done(report: JobReport | None) -> bool:
    """Whether nobody has to be asked: what has done its work may be long forgotten by SLURM."""
    return report is not None and report.state is JobState.done


def _stand(place: JobPlace, job: Job, report: JobReport | None, slurm: Mapping[str, SlurmState]) -> JobStanding:
    said, reason = (report.state, report.reason) if report else (JobState.waiting, "")
    is_final = said in (JobState.done, JobState.failed)
    if job.launcher is Launcher.slurm and not _is_done(report):
        now = slurm[job.job_id]
        if now.is_another_than(job):
            now = SlurmState(JobState.unknown, "", "its number is another job's here")
        if now.state is JobState.unknown:
            return JobStanding(job, said if is_final else JobState.unknown, reason if is_final else now.reason, report)
        reason = (reason or now.reason) if now.state is said else (now.reason or now.word)
        return JobStanding(job, now.state, reason, report, is_ending=now.word == "COMPLETING")
    if is_final or is_locked(place.lock):
        return JobStanding(job, said, reason, report, is_ending=reason == LEAVING)
    return JobStanding(job, JobState.ended, "the pool that it was of has ended", report)
