"""Several processes train as one does. Real processes, over gloo, on the CPU."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import command_environment
from tests.training.ranks import STEPS, results
from tests.training.steps import small_config
from vlmkit.distributed import LONGEST_WAIT, Ranks
from vlmkit.errors import ConfigError


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    return results(folder) | {"weights": saved_weights(folder)}


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{len(STEPS)}" / "model.safetensors")


def torchrun(num_processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """torchrun in the root of the project; its own choice of a port for --master-port=0 hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launch = [f"--nproc-per-node={num_processes}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launch, *arguments],
        cwd=Path(__file__).parents[2],
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.parametrize(
    ("num_processes", "sharding"),
    [(2, "fsdp2"), pytest.param(2, "ddp", marks=pytest.mark.slow), (4, "ddp"),
     pytest.param(4, "fsdp2", marks=pytest.mark.slow)],
)  # fmt: skip
def test_processes_train_like_one(
    one_process: dict[str, Any], tmp_path: Path, num_processes: int, sharding: str
) -> None:
    """float64: losses, gradients, the order of data, resuming, validation, and the end where one has no more data."""
    asked = (f"trainer.sharding={sharding}", f"trainer.num_processes={num_processes}")
    done = torchrun(num_processes, "-m", "tests.training.ranks", str(tmp_path), *asked)
    found = result_of(done)
    assert found["longest_wait"] == LONGEST_WAIT.total_seconds()
    assert found["exact"] and one_process["exact"]
    assert found["end"] == one_process["end"] == len(STEPS)
    assert found["val_loss"] == pytest.approx(one_process["val_loss"], rel=1e-9)
    assert len(found["steps"]) == len(STEPS)
    for step, expected in zip(found["steps"], one_process["steps"], strict=True):
        assert step.pop("data_hash") == expected["data_hash"]
        assert step == pytest.approx({key: expected[key] for key in step}, rel=1e-9)
    torch.testing.assert_close(saved_weights(tmp_path), one_process["weights"], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_sharded_run_in_bf16_saves_its_float32_weights_and_goes_on_exactly(tmp_path: Path) -> None:
    asked = ("trainer.sharding=fsdp2", "trainer.precision=bf16")
    assert result_of(torchrun(2, "-m", "tests.training.ranks", str(tmp_path), *asked))["exact"]
    assert {weight.dtype for weight in saved_weights(tmp_path).values()} == {torch.float32}


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the first process found."""
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


def test_processes_that_were_started_together_and_do_not_know_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As srun starts them without a rendezvous: each would train alone."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    config = small_config()
    with pytest.raises(ConfigError, match="2 processes were started, but each trains alone"):
        Ranks(config.trainer, config.seed)


def test_another_number_of_processes_than_asked_for_is_refused() -> None:
    config = small_config("trainer.num_processes=2")
    with pytest.raises(ConfigError, match=r"trainer.num_processes=2: there are 1; start them with torchrun"):
        Ranks(config.trainer, config.seed)


def test_sharding_asked_of_accelerate_is_pointed_to_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"use trainer\.sharding=fsdp2"):
        Ranks(config.trainer, config.seed)
