"""What SLURM says of jobs is read as SLURM writes it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import says
from vlmkit.errors import UserError
from vlmkit.jobs import JobState
from vlmkit.slurm_states import NO_ANSWER, NOT_KNOWN, SlurmState, cancel_slurm, expanded_ids, slurm_states


@pytest.mark.parametrize(
    ("queue", "account", "expected"),
    [
        ("7_1|PENDING|Priority|x", "", SlurmState(JobState.waiting, "PENDING", "Priority", "x")),
        ("7_1|RUNNING|None|x", "7_1|PENDING|sbatch x", SlurmState(JobState.running, "RUNNING", "", "x")),
        ("7_1|COMPLETING|None|x", "", SlurmState(JobState.running, "COMPLETING", "", "x")),
        ("", "7_1|COMPLETED|sbatch x", SlurmState(JobState.done, "COMPLETED", "", "sbatch x")),
        ("", "7_1|FAILED|sbatch x|y", SlurmState(JobState.failed, "FAILED", "", "sbatch x|y")),
        ("", "7_1|OUT_OF_MEMORY|x", SlurmState(JobState.ended, "OUT_OF_MEMORY", "", "x")),
        ("", "7_1|CANCELLED by 1000|x", SlurmState(JobState.ended, "CANCELLED", "", "x")),
        ("", "7_[0-4%2]|CANCELLED by 0|x", SlurmState(JobState.ended, "CANCELLED", "", "x")),
        ("", "7|CANCELLED by 0|x", SlurmState(JobState.ended, "CANCELLED", "", "x")),
        ("", "7_1|TIMEOUT|x\n7_[0-4]|PENDING|x", SlurmState(JobState.ended, "TIMEOUT", "", "x")),
        ("7_2|RUNNING|None|x", "7_11|FAILED|x", SlurmState(JobState.unknown, "", NOT_KNOWN)),
    ],
)  # fmt: skip
def test_what_slurm_says(no_slurm: Path, queue: str, account: str, expected: SlurmState) -> None:
    says(no_slurm, "squeue", f"{queue}\n")
    says(no_slurm, "sacct", f"{account}\n")
    assert slurm_states(["7_1"]) == {"7_1": expected}


def test_slurm_is_asked_once_for_all(no_slurm: Path) -> None:
    says(no_slurm, "squeue", "")
    assert set(slurm_states(["7_1", "7_2", "9", "7_1"])) == {"7_1", "7_2", "9"}
    [asked] = (no_slurm / "asked").read_text().splitlines()
    assert "--jobs=7,9 " in asked
    assert slurm_states([]) == {}


def test_no_answer_is_not_that_slurm_does_not_know(no_slurm: Path) -> None:
    assert slurm_states(["7"])["7"].reason == NO_ANSWER
    says(no_slurm, "squeue", "", code=1, errors="slurm_load_jobs error: Unable to contact slurm controller")
    assert slurm_states(["7"])["7"].reason == NO_ANSWER
    says(no_slurm, "squeue", "", code=1, errors="slurm_load_jobs error: Invalid job id specified")
    assert slurm_states(["7"])["7"].reason == NOT_KNOWN


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.integers(1, 3)), min_size=1), st.booleans())
def test_ids_that_slurm_tells_together_are_expanded(parts: list[tuple[int, int, int]], limited: bool) -> None:
    told = ",".join(f"{first}-{first + more}:{each}" if more else str(first) for first, more, each in parts)
    numbers = [number for first, more, each in parts for number in range(first, first + more + 1, each)]
    assert expanded_ids(f"12_[{told}{'%4' if limited else ''}]") == [f"12_{number}" for number in numbers]


def test_other_ids_are_left_as_they_are() -> None:
    assert [expanded_ids(each) for each in ("12", "12_3", "12_[1,...]", "12.batch")] == [
        ["12"], ["12_3"], ["12_[1,...]"], ["12.batch"],
    ]  # fmt: skip


def test_jobs_are_cancelled_together_and_slurm_s_words_are_told(no_slurm: Path) -> None:
    says(no_slurm, "scancel", "")
    cancel_slurm(["7_1", "9"])
    assert (no_slurm / "asked").read_text() == "7_1 9\n"
    says(no_slurm, "scancel", "", code=1, errors="scancel: error: Access denied\n")
    with pytest.raises(UserError, match=r"^scancel: error: Access denied$"):
        cancel_slurm(["7"])
    (no_slurm / "scancel").unlink()
    with pytest.raises(UserError, match=r"^scancel: FileNotFoundError"):
        cancel_slurm(["7"])
