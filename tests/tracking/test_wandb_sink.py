"""Whether wandb writes online, decided without a question."""

from pathlib import Path

import pytest

from vlmkit.config import WandbMode
from vlmkit.tracking.wandb_sink import wandb_mode


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
