"""What is checked before a sweep's first job is started, by the commands as a user calls them."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import Run, composed
from tests.launchers.commands import PATIENT, planned
from vlmkit import train
from vlmkit.config import EvalConfig, EvalSuiteConfig, LocalLauncherConfig, as_override
from vlmkit.errors import UserError
from vlmkit.jobs import Job, Launcher, read_manifest
from vlmkit.run_directory import RunPaths, claim
from vlmkit_launchers.handover import LocalStarter, PlannedJob
from vlmkit_launchers.sweep import ComposedJob, digest, launch, plan_jobs
from vlmkit_launchers.watch import short_names

Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Refused:
    """The line that ``python -m vlmkit.train -m …`` answers with; nothing was started."""

    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["vlmkit/train.py", "-m", *arguments])
        with pytest.raises(SystemExit) as ended:
            train.main()
        assert not list(tmp_path.glob("**/job.json"))
        told = str(ended.value.code)
        assert "\n" not in told
        return told

    return run


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["hydra.launcher.processes=0"], "error: hydra.launcher.processes=0: must be above 0"),
        (["hydra.launcher.gpus=[]"], "error: hydra.launcher.gpus=[]: must be numbers of GPUs"),
        (["hydra.launcher.proceses=2"], "hydra.launcher.proceses: unknown key; did you mean hydra.launcher.processes?"),
        (["hydra.launcher.nodes=2"], "hydra.launcher.nodes: not a key of the chosen hydra.launcher option"),
        (["hydra/launcher=slrm"], "hydra/launcher=slrm: no such option; choose from basic, local, local_pair, slurm"),
        (["hydra/launcher=slurm", "hydra.launcher.nodes=0"], "error: hydra.launcher.nodes=0: must be above 0"),
        (["hydra/launcher=slurm", "hydra.launcher.nodes=two"], "hydra.launcher.nodes=two: Value 'two' of type 'str'"),
        (["hydra/launcher=slurm", "hydra.launcher.array_parallelism=0"], "hydra.launcher.array_parallelism=0: must be"),
        (["hydra/launcher=slurm", "+hydra.launcher.environment={A_KEY: a}"], "hydra.launcher.environment.A_KEY=…"),
        (
            ["hydra/launcher=slurm", "+hydra.launcher.environment.A=${oc.env:MY_TOKEN}"],
            "hydra.launcher.environment.A=…: must be free of secrets",
        ),
        (
            ["hydra/launcher=slurm", "cluster.setup=['echo ${oc.env:MY_TOKEN}']"],
            "cluster.setup=…: must be free of secrets",
        ),
        (["hydra/launcher=slurm", "hydra.launcher.time_min=2"], "time_min=2: must be more than signal_delay_s=120"),
        (["--cfg", "job"], "error: --cfg: shows what one job would get: leave out -m"),
        (["--info=config"], "error: --info=config: shows what one job would get: leave out -m"),
        (["hydra/launcher=slurm", "hydra.launcher.environment.A=a"], "'+hydra.launcher.environment.NAME=VALUE'"),
        (["hydra/launcher=slurm", "trainer.compile=true,maybe"], "trainer.compile"),
        (["filter.relevance_min_rating=1,7"], "filter.relevance_min_rating=7: must be a rating"),
        (["run_dir=x"], "run_dir: leave it out of a sweep"),
        (["push_to_hub=me/model"], "push_to_hub: leave it out of a sweep"),
        (["hydra.sweep.dir=/dev/null/x"], "hydra.sweep.dir=/dev/null/x: cannot write in /dev/null"),
        (["hydra.sweep.subdir=same"], "hydra.sweep.subdir=same: would be the run directory of two jobs: job 0 seed=0"),
        (["cluster=local,example_gpu"], "hydra.sweep.subdir=seed=0: would be the run directory of two jobs"),
        (
            ["hydra/launcher=slurm", "cluster=local,example_gpu", "hydra.sweep.subdir=${hydra.job.num}"],
            "cluster: must be the same for all jobs of a sweep",
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_started(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.setenv("MY_TOKEN", "nobody-knows-it")
    line = refused("seed=0,1", *arguments)
    assert told in line
    assert "nobody-knows-it" not in line


def test_a_launcher_without_a_sweep_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vlmkit/train.py", "hydra/launcher=slurm"])
    with pytest.raises(SystemExit, match="hydra/launcher=slurm: is for sweeps: add -m, or leave it out"):
        train.main()


def test_a_directory_that_holds_another_run_is_refused_before_anything_is_started(
    refused: Refused, tmp_path: Path
) -> None:
    with claim(RunPaths(tmp_path / "sweep" / "seed=1"), composed("train", "seed=1")):
        pass
    told = refused(
        "seed=0,1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir='seed=${seed}'", "optimizer.max_grad_norm=2"
    )
    assert re.search(r"sweep/seed=1 holds a different config \(optimizer.max_grad_norm=.* there, 2.0 here\)", told)


def test_a_job_is_the_command_with_its_own_overrides_and_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["/site/vlmkit/eval.py"])
    sweep = tmp_path / "it's here"
    config = EvalConfig(eval_suite=EvalSuiteConfig(), ckpt="a")
    [job] = plan_jobs([ComposedJob(3, ["ckpt='a,b'"], config, "ckpt='a,b'")], sweep, ["--config-dir=/conf"])
    assert job.command == [
        *(sys.executable, "-m", "vlmkit.eval", "-m", "--config-dir=/conf", "ckpt='a,b'"),
        *("hydra/launcher=basic", "hydra/sweeper=basic"),
        f"hydra.sweep.dir={as_override(str(sweep))}",
        "hydra.sweep.subdir='ckpt=\\'a,b\\''",
    ]
    assert job.folder == sweep / "ckpt='a,b'"


def test_jobs_know_the_config_and_the_options_in_a_folder_of_the_user_s(vlmkit: Run, tmp_path: Path) -> None:
    option = tmp_path / "my conf" / "filter" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("defaults:\n  - filter_schema\nrelevance_min_rating: 2\n")
    (tmp_path / "my conf" / "mine.yaml").write_text("defaults: [train, _self_]\nresume: /nowhere\n")
    done = vlmkit("train", "-m", "--config-dir", "my conf", "--config-name", "mine", "filter=mine", "seed=0")
    assert done.returncode == 1
    assert "job 0: error: resume=/nowhere: must be auto, never, or" in done.stdout
    assert done.stderr == ""


def test_the_same_job_on_another_cluster_is_the_same() -> None:
    configs = [composed("train", *more) for more in ([], ["cluster=example_gpu"], ["seed=1"], ["evals=local"])]
    first, elsewhere, *others = (digest(ComposedJob(0, [], config, "")) for config in configs)
    assert first == elsewhere
    assert first not in others


def test_jobs_are_called_by_what_differs() -> None:
    jobs = [PlannedJob(number, ["lr=1", f"seed={number}"], Path(), [], "") for number in (4, 5)]
    assert short_names(jobs) == {4: "job 4 seed=4", 5: "job 5 seed=5"}
    assert short_names(jobs[:1]) == {4: "job 4"}


class FullDisk(LocalStarter):
    """A pool whose jobs cannot be written down: there is something else in the place of a record by then."""

    def start(self, jobs: Sequence[PlannedJob]) -> list[Job]:
        started = super().start(jobs)
        jobs[-1].place.record.mkdir()
        return started


def test_jobs_that_cannot_be_written_down_are_taken_back(tmp_path: Path) -> None:
    jobs = planned(tmp_path, PATIENT, PATIENT)
    with pytest.raises(UserError, match=r"cannot be written in .* jobs .*:\d+ were cancelled again"):
        launch(jobs, tmp_path, FullDisk(LocalLauncherConfig(), tmp_path), detach=False)
    assert read_manifest(tmp_path) == []
    assert not (tmp_path / "seed=1" / "begun").exists()


def test_a_pool_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"the pool of processes did not start; see .*/logs/pool.log"):
        launch(planned(tmp_path, ""), tmp_path, LocalStarter(LocalLauncherConfig(), tmp_path), detach=False)


def test_nothing_is_started_while_slurm_does_not_answer_about_jobs_that_it_may_have(
    tmp_path: Path, no_slurm: Path
) -> None:
    """Else it would have them twice, and nobody would know the first ones."""
    [job] = planned(tmp_path / "sweep", PATIENT)
    Job(Launcher.slurm, "7", ["true"], str(job.folder), str(tmp_path / "7.out"), 1.0).write(job.place)
    with pytest.raises(UserError, match="SLURM does not answer here, and 1 jobs may wait or run"):
        launch([job], tmp_path / "sweep", LocalStarter(LocalLauncherConfig(), tmp_path / "sweep"), detach=False)
    assert not read_manifest(tmp_path / "sweep")


def test_an_experiment_says_which_values_a_sweep_has_and_the_command_line_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned: list[PlannedJob] = []
    trained: list[tuple[tuple[int, ...], int]] = []

    def take(jobs: Sequence[PlannedJob], *_: object) -> bool:
        planned.extend(jobs)
        return True

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vlmkit_launchers.sweep.launch", take)
    monkeypatch.setattr(sys, "argv", ["vlmkit/train.py", "-m", "experiment=rating_ablation", "seed=7"])
    train.main()
    filters = {override for job in planned for override in job.overrides if override.startswith("filter=")}
    assert {"filter=default", "filter=all_3", "filter=all_5"} <= filters
    assert len(planned) == len(filters)
    monkeypatch.setattr(train, "train", lambda config, _: trained.append((config.filter.minima, config.seed)))
    monkeypatch.setattr(sys, "argv", ["vlmkit/train.py", *planned[-1].command[3:]])
    train.main()
    assert trained == [((5, 5, 5, 5), 7)]  # a job is one run: it does not read the experiment's lists again
    assert {job.folder.parent for job in planned} == {tmp_path / "runs" / "rating_ablation"}
