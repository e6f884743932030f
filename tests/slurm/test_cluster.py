"""The cluster that other tests rely on is a real one."""

import subprocess
from pathlib import Path

from tests.slurm.conftest import CLUSTER, Slurm


def test_a_job_runs_on_two_nodes(slurm: Slurm) -> None:
    names = slurm.run("srun", "--nodes=2", "sh", "-c", "echo $SLURMD_NODENAME")
    assert sorted(names.split()) == ["n1", "n2"]


def test_accounting_knows_how_a_job_ended(slurm: Slurm) -> None:
    job_id = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=exit 3")
    slurm.wait_until(lambda: slurm.states(job_id) == {job_id: "FAILED"})
    assert slurm.run("sacct", "-nX", f"--jobs={job_id}", "--format=exitcode") == "3:0"


def test_a_requeued_job_runs_again_and_knows_it(slurm: Slurm, tmp_path: Path) -> None:
    output = tmp_path / "restarts"
    count = f"echo ${{SLURM_RESTART_COUNT:-0}} >> {output}; sleep 60"
    job_id = slurm.run("sbatch", "--parsable", "--output=/dev/null", f"--wrap={count}")
    slurm.wait_until(output.exists)
    slurm.run("scontrol", "requeue", job_id)
    slurm.wait_until(lambda: output.read_text().split() == ["0", "1"])
    slurm.run("scancel", job_id)


def test_a_second_cluster_comes_and_goes_with_its_jobs(slurm: Slurm, tmp_path: Path) -> None:
    subprocess.run([CLUSTER, "start", tmp_path / "other"], check=True)
    pid = tmp_path / "pid"
    try:
        job = f"--wrap=echo $$ > {pid}; exec sleep 600"
        Slurm(tmp_path / "other").run("sbatch", "--output=/dev/null", job)
        slurm.wait_until(lambda: pid.exists() and pid.read_text())
    finally:
        subprocess.run([CLUSTER, "stop", tmp_path / "other"], check=True)
    assert not Path("/proc", pid.read_text().strip()).exists()
    assert slurm.run("srun", "echo", "still here") == "still here"


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run([CLUSTER, "start", tmp_path], capture_output=True, text=True)
    assert done.stderr == f"tests/slurm/cluster: {tmp_path} is not empty: a cluster starts in a new folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
