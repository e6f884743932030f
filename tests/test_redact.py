"""Secrets reach neither files nor terminal."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICK, Run
from tests.test_configs import composed
from vlmkit import entry
from vlmkit.errors import ConfigError, UserError
from vlmkit.paths import RunPaths
from vlmkit.redact import redact
from vlmkit.run_directory import claim

HF_TOKEN = "hf_abcdefghijklmnopqrstuvwx"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://user:pa55@host/path", "https://***@host/path"),
        ("https://tok3n@host/path?a=1", "https://***@host/path?a=1"),
        (f"token {HF_TOKEN}.", "token ***."),
        ("+x.api_key=0123456789", "+x.api_key=***"),
        ("https://host/file?sig=0123456789&v=2", "https://host/file?sig=***&v=2"),
        ("the value is envvalue1234", "the value is ***"),
        ({"api_key": "0123456789", "a": [{"PASSWORD": "01234567"}]}, {"api_key": "***", "a": [{"PASSWORD": "***"}]}),
        (("a", HF_TOKEN), ("a", "***")),
        (HF_TOKEN * 2, "***"),
    ],
)  # fmt: skip
def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch, value: Any, expected: Any) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "envvalue1234")
    assert redact(value) == expected


@pytest.mark.parametrize(
    "value",
    ["model.tokenizer=tiny", "max_token=7", {"tokenizer": "HuggingFaceTB/SmolLM2"}, "mail@host", "seq=4096", None, 3],
)  # fmt: skip
def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    monkeypatch.setenv("SHORT_KEY", "tiny")  # too short to be one
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "HuggingFaceTB")
    assert redact(value) == value


def test_no_file_and_no_line_of_a_run_holds_a_secret(vlmkit: Run, tmp_path: Path) -> None:
    """In the environment, in an argument and in both, with wandb writing beside it."""
    secrets = {"WANDB_API_KEY": "a1" * 20, "HF_TOKEN": HF_TOKEN, "MY_SECRET": "from-the-environment"}
    arguments = [argument for argument in QUICK if argument != "logger=none"]
    few = ["trainer.max_training_steps=2", "logger.project=from-the-environment", f"logger.entity={HF_TOKEN}"]
    url = "hydra.job.name='https://me:pa55w0rd@host'"
    done = vlmkit("train", "run_dir=run", *arguments, *few, url, WANDB_MODE="offline", **secrets)
    assert (done.returncode, done.stderr) == (0, "")
    written = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    [in_wandb] = (content for path, content in written.items() if path.suffix == ".wandb")
    for key in (b"batch_loss", b"val_loss", b"grad_norm", b"tokens_per_second", b"global_step"):
        assert key in in_wandb
    for secret in (*secrets.values(), "pa55w0rd"):
        assert secret not in done.stdout
        assert [path for path, content in written.items() if secret.encode() in content] == []
    assert (tmp_path / "run" / "config.yaml").read_text().count("***") == 2
    assert "https://***@host" in (tmp_path / "run" / "provenance.json").read_text()


@pytest.mark.parametrize("kind", [UserError, RuntimeError])
def test_an_error_tells_no_secret(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    monkeypatch.setattr(sys, "argv", ["train"])

    def fail(config: object, invocation: object) -> None:
        raise kind(f"cannot read https://me:pa55w0rd@host with {HF_TOKEN}")

    with pytest.raises(SystemExit) as ended:
        entry.run("train", fail)
    told = str(ended.value.code)
    assert "cannot read https://***@host with ***" in told
    assert ("Traceback" in told) == (kind is RuntimeError)
    assert "pa55w0rd" not in told
    assert HF_TOKEN not in told


def test_a_sweep_over_a_secret_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "-m", f"logger.entity={HF_TOKEN}", "seed=0,1"])
    with pytest.raises(SystemExit, match=r"-m logger.entity=\*\*\* seed=0,1: a sweep names folders after"):
        entry.run("train", print)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_config_holds_a_secret_goes_on(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    for number in (1, 2):
        config = composed("dataset=local", "dataset.path='https://me:pa55w0rd@host/*.parquet'")
        with claim(paths, config):
            assert "path: https://***@host/*.parquet" in paths.config.read_text(), number
    with (
        pytest.raises(ConfigError, match="different config"),
        claim(paths, composed("dataset=local", "dataset.path=b")),
    ):
        pass
