"""What ``python -m vlmkit.status`` says of each state a result can be in: why it is missing, and what helps."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import Held, Run, command_environment, composed
from tests.evaluation import made_up_cells as made
from vlmkit.errors import ConfigError
from vlmkit.evaluation.delivery import News, deliver_late
from vlmkit.evaluation.standing import RunStanding, Standing, State
from vlmkit.jobs import LEAVING, MANIFEST, Job, JobPlace, JobReport, JobState, Launcher, SweepJob, write_manifest
from vlmkit.paths import RunPaths
from vlmkit.run_directory import plain_config, read_config
from vlmkit.status import describe_wandb, show_status, show_sweep
from vlmkit.sweep_directory import find_run, find_sweep, read_entries
from vlmkit.tracking.console import Screen
from vlmkit.tracking.jsonl import JsonlTracker


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run that came to step 10 of 12, with a checkpoint at 4 and 8."""
    paths = RunPaths(tmp_path / "run")
    make_run(paths)
    return paths


def make_run(paths: RunPaths, *overrides: str) -> None:
    config = composed("train", "evals=local", "eval_suite.tasks=[mmstar]", "trainer.eval_interval=4", "logger=none",
                      "trainer.max_training_steps=12", "trainer.stats_log_interval=3", *overrides)  # fmt: skip
    paths.root.mkdir(exist_ok=True)
    paths.config.write_text(yaml.safe_dump(plain_config(config)))
    tracker = JsonlTracker(paths.metrics, 0)
    for step in range(1, 11):
        tracker.write(step, {"batch_loss": 1.0})
    tracker.close()
    for step in (4, 8):
        made.checkpoint(paths, step)


def standing(paths: RunPaths, step: int = 4) -> Standing:
    """Of the only task of a step."""
    run = RunStanding(paths, read_config(paths))
    [found] = [each for each in run.standings() if each.step == step]
    return found


def test_due_and_not_planned(paths: RunPaths) -> None:
    found = standing(paths)
    assert found.state is State.not_planned
    assert found.command == f"python -m vlmkit.eval run={paths.root} steps=4 'tasks=[mmstar]'"
    with Held(paths.lock):
        assert standing(paths).reason == "due: the run plans it after a step"
        assert standing(paths).command is None


def test_planned(paths: RunPaths) -> None:
    cell = made.planned(paths, 4, "mmstar")
    found = standing(paths)
    assert (found.state, found.reason) == (State.planned, "no process works on it")
    assert found.command == f"python -m vlmkit.eval 'cells=['\"'\"'{cell.folder}'\"'\"']'"
    with Held(paths.lock):
        assert standing(paths).reason == "waits for the run to begin it"


def test_running(paths: RunPaths) -> None:
    cell = made.begun(paths, 4, "mmstar", requests=1500, answered=2)
    with Held(cell.lock):
        found = standing(paths)
    assert found.state is State.running
    assert found.told.startswith("2 of 1,500 answered, the last 0:00:0")


def test_interrupted(paths: RunPaths) -> None:
    made.begun(paths, 4, "mmstar", requests=1500, answered=2)
    found = standing(paths)
    assert (found.state, found.told) == (State.interrupted, "2 of 1,500 answered")
    assert found.command is not None


def test_failed(paths: RunPaths) -> None:
    made.failed(paths, 4, "mmstar", "its data cannot be fetched")
    found = standing(paths)
    assert (found.state, found.reason) == (State.failed, "its data cannot be fetched")
    assert found.command is not None


def test_the_checkpoint_is_gone(paths: RunPaths) -> None:
    made.begun(paths, 8, "mmstar")
    for step in (4, 8):
        paths.checkpoint(step).rename(paths.root / f"elsewhere_{step}")
        found = standing(paths, step)
        assert (found.state, found.command) == (State.gone, None)


def test_done_then_merged_then_logged(paths: RunPaths) -> None:
    made.done(paths, 4, "mmstar", 0.5)
    found = standing(paths)
    assert (found.state, found.told, found.logged) == (State.done, "acc 0.5000 ± 0.0100", False)
    assert found.reason == "not merged yet"
    assert found.command == f"python -m vlmkit.merge run={paths.root}"
    with Held(paths.lock):
        assert standing(paths).reason == "not merged yet: the run does that at step 12; it is at 10"
    list(News(paths).take())
    assert standing(paths).reason == "not logged yet"
    deliver_late(paths, str)
    assert standing(paths) == Standing(4, "mmstar", State.done, "acc 0.5000 ± 0.0100", logged=True)
    made.done(paths, 4, "mmstar", 0.75)
    assert standing(paths).reason == "it has changed and is not merged anew yet"


def test_a_limited_result_beside_a_full_one(paths: RunPaths) -> None:
    made.done(paths, 4, "mmstar", 0.25, limit=8)
    made.done(paths, 4, "mmstar", 0.5)
    deliver_late(paths, str)
    full, limited = (each for each in RunStanding(paths, read_config(paths)).standings() if each.step == 4)
    assert (full.task, full.logged) == ("mmstar", True)
    assert (limited.task, limited.reason) == ("mmstar.limit8", "a result of more samples counts")


def test_a_result_of_another_checkpoint(paths: RunPaths) -> None:
    made.done(paths, 4, "mmstar", 0.5)
    (paths.checkpoint(4) / "model.safetensors").write_bytes(b"other weights")
    made.planned(paths, 4, "mme")
    found = {each.task: each for each in RunStanding(paths, read_config(paths)).standings() if each.step == 4}
    assert found["mmstar"].reason == "is of another checkpoint than the one of this step now"


def test_a_limited_result_alone_is_logged_under_its_own_name(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    make_run(paths, "eval_suite.limit=8")
    made.done(paths, 4, "mmstar", 0.25, limit=8)
    assert standing(paths, 8).command == (
        f"python -m vlmkit.eval run={paths.root} steps=8 'tasks=[mmstar]' eval_suite.limit=8"
    )
    deliver_late(paths, str)
    assert standing(paths).logged


def test_what_was_not_planned_is_answered_as_the_suite_of_the_run_says(vlmkit: Run, tmp_path: Path) -> None:
    data = tmp_path / "mine, local"
    data.mkdir()
    paths = RunPaths(tmp_path / "model=tiny,seed=0")
    own = ("temperature=0", "max_new_tokens=7", "seed=3", "top_p=0.00001", "batch_size=2", "max_errors=4", "limit=9")
    make_run(paths, *(f"eval_suite.{each}" for each in own), f"eval_suite.local_data='{data}'")
    command = standing(paths).command or ""
    done = vlmkit("eval", *shlex.split(command)[3:], "--cfg", "job")
    composed_of_it = yaml.safe_load(done.stdout)
    suite = read_config(paths)["eval_suite"]
    assert composed_of_it["eval_suite"] | {"tasks": composed_of_it["tasks"]} == suite
    assert (composed_of_it["run"], composed_of_it["steps"]) == (str(paths.root), 4)


def test_names_that_are_no_results_are_told(paths: RunPaths) -> None:
    made.done(paths, 4, "mmstar", 0.5)
    foreign = [paths.evals / "step_4_old", paths.evals / "steps_4.json", paths.cells(4) / "half"]
    for path in foreign:
        path.mkdir()
    (paths.evals / "step_4_mmstar.json").write_text("{}")
    (paths.cells(4) / "eval_1.log").write_text("")
    assert RunStanding(paths, read_config(paths)).foreign_names() == sorted(foreign)


def test_a_copy_of_a_cell_is_told_as_no_result(paths: RunPaths) -> None:
    cell = made.done(paths, 4, "mmstar", 0.5)
    copy = cell.folder.with_name("mmstar_backup")
    shutil.copytree(cell.folder, copy)
    assert RunStanding(paths, read_config(paths)).foreign_names() == [copy]


@pytest.mark.parametrize(
    ("wandb", "told"),
    [
        ("disabled", "off (logger.wandb=disabled); what is logged is in metrics.jsonl"),
        ("auto", "logger.wandb=auto, not begun yet"),
    ],
)
def test_wandb_is_explained(paths: RunPaths, wandb: str, told: str) -> None:
    assert describe_wandb(paths, {"logger": {"wandb": wandb}}) == told


def test_what_wandb_keeps_offline_is_sent_by_a_command(paths: RunPaths) -> None:
    paths.wandb_run_id.write_text("abc")
    assert describe_wandb(paths, {"logger": {"wandb": "auto"}}) == "run abc; what is logged is sent there"
    (paths.root / "wandb" / "offline-run-20260101_000000-abc").mkdir(parents=True)
    told = describe_wandb(paths, {"logger": {"wandb": "auto"}})
    assert told.endswith(f": wandb sync {paths.root}/wandb/offline-run-*-abc*")


def test_the_whole_is_readable(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    made.done(paths, 4, "mmstar", 0.5)
    made.failed(paths, 8, "mmstar", "its data cannot be fetched")
    show_status(paths, Screen())
    printed = capsys.readouterr().out
    assert "training     step 10 of 12, does not run; the same command goes on; last line 0:00:0" in printed
    assert "evaluations  evals=local: 1 done, 1 failed" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["4", "mmstar", "done", "no", "acc", "0.5000", "±", "0.0100"] in rows
    assert ["8", "mmstar", "failed", "no", "its", "data", "cannot", "be", "fetched"] in rows
    assert f"step 4 mmstar: done: not merged yet\n    python -m vlmkit.merge run={paths.root}\n" in printed


def job_of(place: JobPlace, folder: Path, job_id: str = "host:1") -> Job:
    """A job of a pool, handed over just now."""
    job = Job(Launcher.local, job_id, ["true"], str(folder), str(folder.parent / "1.out"), time.time())
    Path(job.log).touch()
    job.write(place)
    return job


def test_the_job_of_a_cell_says_why_its_result_is_missing(paths: RunPaths) -> None:
    cell = made.begun(paths, 4, "mmstar", requests=1500, answered=2)
    place = JobPlace.of_cell(cell.folder)
    job = job_of(place, cell.folder)
    with Held(place.lock):
        found = standing(paths)
        assert (found.state, found.told, found.command) == (State.interrupted, "2 of 1,500 answered", None)
        assert re.fullmatch(r"job host:1 waits in the pool since 0:00:0\d", found.reason or "")
        JobReport("host:1", JobState.running, "", None, time.time()).write(place)
        assert re.fullmatch(r"job host:1 runs since 0:00:0\d", standing(paths).reason or "")
    found = standing(paths)
    assert found.reason == f"job host:1 was ended (the pool that it was of has ended); its log: {job.log}"
    assert found.command is not None
    JobReport("host:1", JobState.failed, "no memory (ended with 1)", None, 1.0).write(place)
    assert standing(paths).reason == f"job host:1 failed (no memory (ended with 1)); its log: {job.log}"
    JobReport("host:1", JobState.done, "left to another process", None, 1.0).write(place)
    assert standing(paths).reason == "no process works on it; the next start of the run would, if it is due"


def test_a_new_job_counts_more_than_an_old_failure_or_a_checkpoint_that_is_gone(paths: RunPaths) -> None:
    failed = made.failed(paths, 4, "mmstar", "its data cannot be fetched")
    place = JobPlace.of_cell(failed.folder)
    job_of(place, failed.folder)
    with Held(place.lock):
        found = standing(paths)
        assert (found.state, found.command) == (State.planned, None)
        assert found.told == "failed before: its data cannot be fetched"
        assert (found.reason or "").startswith("job host:1 waits in the pool since ")
        JobReport("host:1", JobState.running, LEAVING, None, time.time()).write(place)
        assert standing(paths).state is State.failed  # by this very job
    begun = made.begun(paths, 8, "mmstar")
    shutil.rmtree(paths.checkpoint(8))
    place = JobPlace.of_cell(begun.folder)
    job_of(place, begun.folder)
    with Held(place.lock):
        found = standing(paths, 8)
    assert (found.state, found.command) == (State.interrupted, None)
    assert (found.reason or "").startswith("job host:1 waits in the pool since ")


def test_what_a_slurm_job_was_to_answer_goes_to_slurm_again(
    paths: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cell = made.failed(paths, 4, "mmstar", "its data cannot be fetched")
    Job(Launcher.slurm, "12_3", ["true"], str(cell.folder), "/logs/1.out", 1.0).write(JobPlace.of_cell(cell.folder))
    command = f"python -m vlmkit.eval 'cells=['\"'\"'{cell.folder}'\"'\"']' evals=slurm cluster=…"
    assert standing(paths).command == command


def test_the_job_that_merges_is_told_as_long_as_results_may_wait_for_it(
    paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    made.done(paths, 4, "mmstar", 0.5)
    places = [JobPlace.of_merge(paths.evals, array) for array in ("12", "14")]
    jobs = [job_of(place, paths.evals, job_id) for place, job_id in zip(places, ("host:1", "host:2"), strict=True)]
    JobReport("host:1", JobState.failed, "no disk (ended with 1)", None, time.time()).write(places[0])

    def told() -> str:
        show_status(paths, Screen())
        return capsys.readouterr().out

    with Held(places[1].lock):
        assert "merge        job host:2 waits in the pool since 0:00:0" in told()
        assert re.fullmatch(
            r"not merged yet: job host:2 waits in the pool since 0:00:0\d", standing(paths).reason or ""
        )
        assert standing(paths).command is None
        JobReport("host:2", JobState.running, "", None, time.time()).write(places[1])
        assert "merge        job host:2 runs since 0:00:0" in told()
    JobReport("host:2", JobState.failed, "no memory (ended with 1)", None, time.time()).write(places[1])
    assert f"merge        job host:2 failed (no memory (ended with 1)); its log: {jobs[1].log}\n" in told()
    assert standing(paths).command == f"python -m vlmkit.merge run={paths.root}"
    deliver_late(paths, str)
    assert "merge  " not in told()
    made.done(paths, 8, "mmstar", 0.5)
    JobReport("host:2", JobState.done, "", None, time.time()).write(places[1])
    assert "merge  " not in told()


def test_a_job_that_slurm_does_not_tell_about_is_said_to_be_unknown(
    paths: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cell = made.planned(paths, 4, "mmstar")
    Job(Launcher.slurm, "12_3", ["true"], str(cell.folder), "/logs/1.out", 1.0).write(JobPlace.of_cell(cell.folder))
    assert standing(paths).reason == ("what became of job 12_3 is not known: SLURM does not answer here")


def test_the_job_that_trains_is_told(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    place = JobPlace.of_folder(paths.root)
    job_of(place, paths.root)
    with Held(place.lock):
        show_status(paths, Screen())
    printed = capsys.readouterr().out
    assert "job          job host:1 waits in the pool since 0:00:0" in printed
    assert "training     step 10 of 12, does not run; last line" in printed


def test_a_run_that_has_not_begun_is_told_by_its_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = JobPlace.of_folder(tmp_path / "run")
    job_of(place, tmp_path / "run")
    with Held(place.lock):
        show_status(find_run(str(tmp_path / "run")), Screen())
    printed = capsys.readouterr().out
    assert "job       job host:1 waits in the pool since 0:00:0" in printed
    assert "training  not begun\n" in printed


# ---- sweeps --------------------------------------------------------------------------------------------


def make_sweep(sweep: Path) -> list[JobPlace]:
    """Four jobs of a pool: a run, done; one that failed before it was one; one that has ended; a run that waits."""
    rows, places = [], []
    for number in range(4):
        folder = sweep / f"seed={number}"
        folder.mkdir(parents=True)
        if number in (0, 3):
            make_run(RunPaths(folder))
        places.append(JobPlace.of_folder(folder))
        rows.append(SweepJob([f"seed={number}", "model=tiny"], job_of(places[-1], folder)))
    write_manifest(sweep, rows)
    JobReport("host:1", JobState.done, "", None, time.time()).write(places[0])
    JobReport("host:1", JobState.failed, "ValueError: no (ended with 1)", None, time.time()).write(places[1])
    return places


def shown(sweep: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[list[str]], str]:
    """The cells of each job's line of the table, and all that is printed."""
    show_sweep(sweep, Screen())
    printed = capsys.readouterr().out
    return [re.split(r"\s{2,}", line) for line in printed.splitlines() if re.match(r"\d+\s{2,}", line)], printed


def test_a_sweep_is_told_job_by_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    places = make_sweep(sweep)
    with Held(places[3].lock):
        rows, printed = shown(sweep, capsys)
    assert "jobs   4: 1 waiting, 1 done, 1 failed, 1 ended\n" in printed
    step = "step 10 of 12"
    ages = [re.sub(r"0:00:0\d", "AGE", cell) for row in rows for cell in row]
    assert ages == [
        "0", "done", step, "AGE ago", "0 of 2", "seed=0",
        "1", "failed", "AGE ago", "seed=1",
        "2", "ended", "seed=2",
        "3", "waiting", step, "waits for AGE", "0 of 2", "seed=3",
    ]  # fmt: skip
    log = sweep / "1.out"
    assert f"job 1: failed: job host:1 failed (ValueError: no (ended with 1)); its log: {log}\n" in printed
    assert f"job 2: ended: job host:1 was ended (the pool that it was of has ended); its log: {log}\n" in printed
    assert "the command that started the sweep starts again what is not done" in printed
    assert f"python -m vlmkit.cancel sweep={sweep}\n" in printed
    assert f"python -m vlmkit.status run={sweep}/seed=0\n" in printed


def test_a_sweep_without_a_manifest_is_told_by_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    for name in ("seed=0", "seed=1", "dataset.path=/data/x,seed=2"):
        (sweep / name).parent.mkdir(parents=True, exist_ok=True)
        make_run(RunPaths(sweep / name))
    (sweep / "seed=0" / "wandb").mkdir()
    (sweep / "seed=0" / "wandb" / "config.yaml").write_text("")  # is no run
    tracker = JsonlTracker(RunPaths(sweep / "seed=1").metrics, 12)
    tracker.write(12, {"batch_loss": 1.0})
    tracker.close()
    with Held(RunPaths(sweep / "seed=0").lock):
        rows, printed = shown(sweep, capsys)
    assert [(row[1], row[2], row[-1]) for row in rows] == [
        ("ended", "step 10 of 12", "dataset.path=/data/x,seed=2"),
        ("running", "step 10 of 12", "seed=0"),
        ("done", "step 12 of 12", "seed=1"),
    ]
    assert "job 0: ended: no process works on it\n" in printed


def test_a_manifest_that_cannot_be_read_is_told_and_the_folders_say_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    make_sweep(sweep)
    (sweep / MANIFEST).write_text('{"jobs": [')
    (sweep / "seed=3" / "config.yaml").write_text("trainer: {")
    rows, printed = shown(sweep, capsys)
    assert "manifest.json: cannot be read (JSONDecodeError" in printed
    assert [(row[1], row[-1]) for row in rows] == [
        ("done", "seed=0"), ("failed", "seed=1"), ("ended", "seed=2"), ("ended", "seed=3"),
    ]  # fmt: skip


def test_a_sweep_that_was_moved_is_told_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(tmp_path / "sweep")
    moved = (tmp_path / "sweep").rename(tmp_path / "elsewhere")
    shutil.rmtree(moved / "seed=2")
    rows, _ = shown(moved, capsys)
    assert [(row[1], row[-1]) for row in rows] == [
        ("done", "seed=0"), ("failed", "seed=1"), ("ended", "seed=2"),
        ("ended", "seed=3"),
    ]  # fmt: skip


def test_a_folder_that_links_lead_to_as_well_is_told_once_by_its_own_name(tmp_path: Path) -> None:
    sweep, outside = tmp_path / "sweep", tmp_path / "outside" / "run"
    for folder in (sweep / "seed=0", sweep / "seed=1", outside):
        folder.parent.mkdir(exist_ok=True)
        make_run(RunPaths(folder))
    for name, target in {"latest": "seed=1", "whole": ".", "other": outside, "the same": outside}.items():
        (sweep / name).symlink_to(target)
    (tmp_path / "link").symlink_to(sweep)
    for named in (sweep, tmp_path / "link"):
        entries, _ = read_entries(named)
        assert [each.name for each in entries] == ["other", "seed=0", "seed=1"]


def test_a_link_to_a_job_of_the_manifest_is_none_of_its_own(tmp_path: Path) -> None:
    make_sweep(tmp_path / "sweep")
    (tmp_path / "sweep" / "latest").symlink_to("seed=3")
    entries, _ = read_entries(tmp_path / "sweep")
    assert [each.name for each in entries] == ["seed=0", "seed=1", "seed=2", "seed=3"]


def test_the_only_job_of_a_sweep_is_called_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    write_manifest(tmp_path, [SweepJob(["seed=0", "model=tiny"], job_of(JobPlace.of_folder(folder), folder))])
    entries, _ = read_entries(tmp_path)
    assert [each.name for each in entries] == ["first"]


def test_just_one_of_run_and_sweep_is_given(tmp_path: Path) -> None:
    for command in ("status", "cancel"):
        for given in ((), (f"run={tmp_path}", f"sweep={tmp_path}")):
            with pytest.raises(ConfigError, match=r"^run, sweep: give one of them"):
                composed(command, *given)
    with pytest.raises(ConfigError, match=rf"^sweep={tmp_path}: must be the folder of a sweep"):
        find_sweep(str(tmp_path))
    with pytest.raises(ConfigError, match=r"^sweep=nowhere: must be the folder of a sweep"):
        find_sweep("nowhere")


def test_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'scipy', 'wandb', 'datasets', 'lmms_eval'}"
    code = f"import sys, vlmkit.status; print(*{heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], env=command_environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_the_command_only_reads(vlmkit: Run, paths: RunPaths) -> None:
    before = sorted(path for path in paths.root.rglob("*"))
    done = vlmkit("status", f"run={paths.root}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "not planned" in done.stdout
    assert sorted(path for path in paths.root.rglob("*")) == before
    refused = vlmkit("status", "run=nowhere")
    assert refused.stderr == "error: run=nowhere: must be a run directory, with a config.yaml\n"
