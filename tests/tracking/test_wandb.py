"""The real wandb, offline: rows arrive under one run id, and nothing is asked."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import QUICK, Run
from vlmkit.config import WandbMode
from vlmkit.tracking.wandb_sink import wandb_mode

WITH_WANDB = [argument for argument in QUICK if argument != "logger=none"]


def test_an_offline_run_holds_the_metrics_and_goes_on_under_its_id(vlmkit: Run, tmp_path: Path) -> None:
    done = vlmkit("train", "run_dir=run", *WITH_WANDB)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    [first] = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    written = first.read_bytes()
    for key in (b"batch_loss", b"val_loss", b"grad_norm", b"tokens_per_second", b"global_step"):
        assert key in written
    run_id = (tmp_path / "run" / "wandb_run_id").read_text()
    assert run_id in first.name
    # A checkpoint taken away makes the second start train on.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_12")
    again = vlmkit("train", "run_dir=run", *WITH_WANDB)
    assert again.returncode == 0, again.stderr
    both = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(both) == 2
    assert all(run_id in path.name for path in both)


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        (WandbMode.auto, {}, "offline"),
        (WandbMode.auto, {"WANDB_API_KEY": "0" * 40}, "online"),
        (WandbMode.auto, {"WANDB_MODE": "disabled"}, None),
        (WandbMode.offline, {"WANDB_API_KEY": "0" * 40}, "offline"),
        (WandbMode.online, {}, "online"),
    ],
)
def test_online_only_with_a_key(
    monkeypatch: pytest.MonkeyPatch, mode: WandbMode, environment: dict[str, str], expected: str | None
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(mode) == expected


def test_a_netrc_entry_is_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode(WandbMode.auto) == "online"
