"""Whole runs through the command: what a run leaves behind, and how it goes on."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from tests.conftest import QUICK, Run, command_environment


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def reproducible(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must be the same in every run: everything but times."""
    timed = ("second", "duration", "data_wait", "peak_memory", "mfu", "tflops")
    return [{key: value for key, value in row.items() if not any(word in key for word in timed)} for row in rows]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of 12 steps from beginning to end, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(
        [sys.executable, "-m", "vlmkit.train", "run_dir=run", *QUICK],
        cwd=folder,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "run", done.stdout


def test_the_run_directory_is_as_documented(whole_run: tuple[Path, str]) -> None:
    run, _ = whole_run
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_12", "step_4", "step_8"]
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_training_steps"] == 12
    start = json.loads((run / "provenance.json").read_text())["starts"][0]
    assert start["resumed_step"] == 0
    assert start["world_size"] == 1
    assert start["packages"]["torch"] == version("torch")
    rows = metrics(run)
    assert [row["global_step"] for row in rows if "batch_loss" in row] == list(range(1, 13))
    assert [row["global_step"] for row in rows if "val_loss" in row] == [4, 8, 12]
    assert {"grad_norm", "tokens_per_second", "lr_vision", "lr_projector", "lr_language"} <= rows[0].keys()


def test_the_loss_falls(whole_run: tuple[Path, str]) -> None:
    losses = [row["batch_loss"] for row in metrics(whole_run[0]) if "batch_loss" in row]
    assert losses[-1] < losses[0] / 2


def test_a_log_file_shows_the_run(whole_run: tuple[Path, str]) -> None:
    _, printed = whole_run
    for told in ("parameters: vision", "easyvqa: 3,800 samples", "1 process(es)", "step 12/12", "validation loss"):
        assert told in printed
    assert "checkpoint  run/checkpoints/step_12" in printed
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) < 300


def test_a_checkpoint_opens_in_plain_transformers(whole_run: tuple[Path, str]) -> None:
    checkpoint = whole_run[0] / "checkpoints" / "step_12"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert type(model).__name__ == "Idefics3ForConditionalGeneration"
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<|image|>")
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "is there a circle?"}], tokenize=False)
    assert asked == "<|im_start|>user\nis there a circle?<|im_end|>\n"


def test_the_same_command_again_does_nothing_more(whole_run: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_run[0], run)
    before = (run / "metrics.jsonl").read_bytes()
    done = start_train(run).communicate(timeout=120)
    assert "step_12" in done[0]
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    whole_run: tuple[Path, str], tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    first = start_train(run)
    wait_for_step(run, 2)
    os.killpg(first.pid, number)  # the whole group, as a terminal and SLURM do: loader workers too
    printed, errors = first.communicate(timeout=60)
    assert first.returncode == 128 + number, errors
    assert "stopped after step" in printed
    assert "the same command goes on" in printed
    assert errors == f"{number.name}: leaving after this step; Ctrl-C again ends at once\n"
    stopped = metrics(run)[-1]["global_step"]
    assert (run / "checkpoints" / f"step_{stopped}").is_dir()
    assert_goes_on_to_the_end(run, whole_run[0])


def test_kill_9_loses_no_more_than_what_came_after_the_last_checkpoint(
    whole_run: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = start_train(run)
    wait_for_step(run, 6)
    first.kill()  # the process alone: its workers must not keep the directory locked
    first.wait()
    (run / "checkpoints" / ".step_99.tmp" / "half").mkdir(parents=True)  # as if it had been killed inside a save
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"global_step": 7, "batch_l')
    assert_goes_on_to_the_end(run, whole_run[0])
    first.communicate()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_and_its_samples_are_named(vlmkit: Run, tmp_path: Path) -> None:
    done = vlmkit("train", "run_dir=run", *QUICK, "optimizer.lr_language=1e30")
    assert done.returncode == 1
    assert done.stderr.startswith("error: step 2: the loss is nan; its 24 samples are named in ")
    assert len(done.stderr.splitlines()) == 1
    [line] = (tmp_path / "run" / "bad_steps.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 2
    assert len(json.loads(line)["samples"]) == 24


@pytest.mark.slow
def test_a_run_that_begins_from_a_checkpoint_begins_there_again_if_it_was_killed_early(
    whole_run: tuple[Path, str], tmp_path: Path
) -> None:
    """The second command is that of a job which was queued again: it names no checkpoint."""
    run, begun_from = tmp_path / "run", whole_run[0] / "checkpoints" / "step_8"
    first = start_train(run, f"resume={begun_from}", "trainer.eval_interval=100", "trainer.max_training_steps=4000")
    wait_for_step(run, 10)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    second = start_train(run, "trainer.eval_interval=100", "trainer.max_training_steps=4000")
    wait_for_step(run, 12)
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate()
    assert metrics(run)[0]["global_step"] == 9
    assert json.loads((run / "provenance.json").read_text())["starts"][1]["resumed_step"] == 8


@pytest.mark.slow
def test_two_runs_cannot_share_a_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    endless = ("trainer.max_training_steps=100000", "trainer.eval_interval=100000")
    first = start_train(run, *endless)
    try:
        wait_for_step(run, 1)
        second = start_train(run, *endless)
        _, errors = second.communicate(timeout=60)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert second.returncode == 1
    assert "another process trains there now" in errors


def test_resume_never_refuses_a_run_with_checkpoints(whole_run: tuple[Path, str]) -> None:
    process = start_train(whole_run[0], "resume=never")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "resume=never" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(whole_run: tuple[Path, str], tmp_path: Path) -> None:
    process = start_train(tmp_path / "run", "dataset.num_workers=0")
    process.communicate(timeout=120)
    assert reproducible(metrics(tmp_path / "run")) == reproducible(metrics(whole_run[0]))


def test_two_processes_train_like_one(whole_run: tuple[Path, str], tmp_path: Path) -> None:
    """Half the batch on each of two processes: the same packs in the same steps, the same losses."""
    batch = int(yaml.safe_load((whole_run[0] / "config.yaml").read_text())["trainer"]["batch_size"])
    arguments = ["run_dir=run", *QUICK, f"trainer.batch_size={batch // 2}", "dataset.num_workers=0"]
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        f"--master-port={free_port()}",
        "-m",
        "vlmkit.train",
    ]
    done = subprocess.run(
        [sys.executable, *launch, *arguments],
        cwd=tmp_path,
        env=command_environment() | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    two, one = metrics(tmp_path / "run"), metrics(whole_run[0])
    for key in ("batch_loss", "val_loss", "grad_norm"):
        expected = [row[key] for row in one if key in row]
        assert [row[key] for row in two if key in row] == pytest.approx(expected, rel=2e-3)


def test_resume_from_a_path_takes_the_weights_and_the_configured_rates(
    whole_run: tuple[Path, str], tmp_path: Path
) -> None:
    start = whole_run[0] / "checkpoints" / "step_8"
    process = start_train(tmp_path / "run", f"resume={start}", "optimizer.lr_vision=7e-5")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    rows = [row for row in metrics(tmp_path / "run") if "batch_loss" in row]
    assert [row["global_step"] for row in rows] == [9, 10, 11, 12]
    assert rows[0]["batch_loss"] == next(row["batch_loss"] for row in metrics(whole_run[0]) if row["global_step"] == 9)
    assert max(row["lr_vision"] for row in rows) <= 7e-5
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["resume"] == str(start)


def test_resume_from_another_path_is_refused_where_a_run_is(whole_run: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_run[0], run)
    process = start_train(run, f"resume={run / 'checkpoints' / 'step_4'}")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "holds a run that began from scratch: choose another run_dir" in errors


@pytest.mark.parametrize(
    "name",
    [
        "trainer_state/optimizer.pt",
        pytest.param("model.safetensors", marks=pytest.mark.slow),
        pytest.param("trainer_state/progress.json", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_named_in_one_line(whole_run: tuple[Path, str], tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_run[0], run)
    damaged = run / "checkpoints" / "step_12" / name
    damaged.write_bytes(damaged.read_bytes()[:20])
    process = start_train(run)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith(f"error: {run}/checkpoints/step_12: cannot re")  # resume from it, or read its weights
    assert len(errors.splitlines()) == 1


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """Stands for a full disk: files may be larger than the weights (2.2 MB) but not than the optimizer's state."""
    run = tmp_path / "run"
    process = start_train(run, limit=3_000_000)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.strip() == (
        f"error: {run}/checkpoints/step_4: cannot write this checkpoint: [Errno 27] File too large; "
        "the same command goes on from the one before"
    )
    assert list((run / "checkpoints").iterdir()) == []


def test_a_sweep_has_a_directory_for_each_run(vlmkit: Run, tmp_path: Path) -> None:
    few = [argument for argument in QUICK if "max_training_steps" not in argument]
    done = vlmkit("train", "-m", "filter.relevance_min_rating=1,3", "hydra.sweep.dir=sweep",
                  "trainer.max_training_steps=2", *few)  # fmt: skip
    assert done.returncode == 0, done.stderr
    configs = sorted((tmp_path / "sweep").glob("*/config.yaml"))
    ratings = [yaml.safe_load(path.read_text())["filter"]["relevance_min_rating"] for path in configs]
    assert sorted(ratings) == [1, 3]
    again = vlmkit("train", "-m", "filter.relevance_min_rating=1,3", "hydra.sweep.dir=sweep",
                   "trainer.max_training_steps=2", *few)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "0 of 2 jobs started, 2 done before" in again.stdout


def start_train(run: Path, *more: str, limit: int = resource.RLIM_INFINITY) -> subprocess.Popen[str]:
    """Start a quick run in a process group of its own, whose files may have so many bytes."""
    overridden = {argument.split("=")[0] for argument in more}
    quick = [argument for argument in QUICK if argument.split("=")[0] not in overridden]
    return subprocess.Popen(
        [sys.executable, "-m", "vlmkit.train", f"run_dir={run}", *quick, *more],
        cwd=run.parent,
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
    )


def free_port() -> int:
    """A port that nobody listens on; torch's launcher does not choose one itself for --master-port=0, it hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_step(run: Path, step: int) -> None:
    """Wait until metrics.jsonl has a line of this step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.exists() and f'"global_step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise TimeoutError(f"{run}: step {step} did not come")


def assert_goes_on_to_the_end(run: Path, whole: Path) -> None:
    """Run the same command again; then everything is as if it had never been stopped."""
    process = start_train(run)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    mine = [row for row in reproducible(metrics(run)) if "batch_loss" in row]
    theirs = [row for row in reproducible(metrics(whole)) if "batch_loss" in row]
    assert mine == theirs
    weights = [load_file(folder / "checkpoints" / "step_12" / "model.safetensors") for folder in (run, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert not list((run / "checkpoints").glob(".*"))
