"""Shared by all tests: small real things, and a way to run commands as a user does."""

import io
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from vlmkit.config import SCHEMAS, Layout, ModelConfig
from vlmkit.model.build import build_model
from vlmkit.paths import RunPaths, config_dir
from vlmkit.processing.chat import ChatEncoder
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.processor import save_processor
from vlmkit.processing.tokenizer import ChatTokenizer, load_tokenizer

# No deadline, as machines differ; the same examples every time, so that a failure is one everywhere.
settings.register_profile("vlmkit", deadline=None, derandomize=True)
settings.load_profile("vlmkit")
torch.set_num_threads(1)  # as tests run side by side

Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says that tests on SLURM were skipped, and what to install; under -q no other line gives a reason."""
    skipped = [report for report in terminalreporter.getreports("skipped") if report.nodeid.startswith("tests/slurm/")]
    for reason, count in Counter(report.longrepr[2] for report in skipped).items():
        terminalreporter.write_line(f"tests/slurm: {count} tests skipped: {reason.removeprefix('Skipped: ')}")


def composed(command: str, *overrides: str) -> Any:
    """The config of ``python -m vlmkit.<command>`` with these arguments."""
    return OmegaConf.to_object(compose_as_hydra(command, *overrides))


def compose_as_hydra(command: str, *overrides: str, folder: Path | None = None) -> DictConfig:
    """The same before its values are checked, also of a copy of conf/."""
    register_schemas()
    with initialize_config_dir(str(folder or config_dir()), version_base="1.3"):
        return compose(command, overrides=list(overrides))


@cache
def register_schemas() -> None:
    for name, (group, cls) in SCHEMAS.items():
        ConfigStore.instance().store(name=name, node=cls, group=group)


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    return load_tokenizer("tiny")


@pytest.fixture(scope="session")
def tiny_model_config() -> ModelConfig:
    """The real conf/model/tiny.yaml, made smaller."""
    yaml = OmegaConf.load(config_dir() / "model" / "tiny.yaml")
    del yaml["defaults"]
    small = {
        "vision": {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2},
        "language": {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2},
    }
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), yaml, small))
    assert isinstance(config, ModelConfig)
    return config


@pytest.fixture(scope="session")
def layout(tiny_model_config: ModelConfig) -> ImageLayout:
    return ImageLayout.from_config(tiny_model_config)


@pytest.fixture(scope="session")
def encoder(tokenizer: ChatTokenizer, layout: ImageLayout) -> ChatEncoder:
    return ChatEncoder(tokenizer, layout)


@pytest.fixture(scope="session")
def idefics3_encoder(layout: ImageLayout) -> ChatEncoder:
    return ChatEncoder(load_tokenizer("tiny", Layout.idefics3), as_idefics3(layout))


def as_idefics3(layout: ImageLayout) -> ImageLayout:
    """The same sizes in the layout idefics3."""
    return replace(layout, kind=Layout.idefics3, resize_to_max_side_len=True)


@pytest.fixture
def vlmkit(tmp_path: Path) -> Run:
    """Run ``python -m vlmkit.<command> …`` in an empty folder, offline, and give what came of it."""

    def run(command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"vlmkit.{command}", *arguments],
            cwd=tmp_path,
            env=command_environment() | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


HOLD = """
import fcntl, signal, sys
files = [open(path, "a") for path in sys.argv[1:]]
for file in files:
    fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
signal.pause()
"""


class Held:
    """Another process that holds locks; SIGTERM ends it."""

    def __init__(self, *locks: Path) -> None:
        for lock in locks:
            lock.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, locks)], stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        self.process.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder where alone commands are looked for; it is empty."""
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", str(commands))
    return commands


def says(folder: Path, command: str, output: str, code: int = 0, errors: str = "") -> None:
    """Put a command into a folder that says this, whatever it is asked, and notes in ``asked`` what it was."""
    lines = [
        f"#!{sys.executable}",
        "import sys",
        f"open({str(folder / 'asked')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')",
        f"sys.stdout.write({output!r}); sys.stderr.write({errors!r}); sys.exit({code})",
    ]
    path = folder / command
    path.write_text("\n".join(lines))
    path.chmod(0o755)


def save_untrained(paths: RunPaths, steps: Iterable[int], config: ModelConfig, encoder: ChatEncoder) -> None:
    """Checkpoints of a run that have learnt nothing, each another one."""
    for step in steps:
        torch.manual_seed(step)
        build_model(config, encoder.tokenizer).save_pretrained(paths.checkpoint(step))
        save_processor(paths.checkpoint(step), encoder.tokenizer, encoder.layout)


def png(image: Image.Image, **options: object) -> bytes:
    """A picture as an encoded file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def command_environment() -> dict[str, str]:
    """The environment without keys and without GPUs; one thread, as tests run side by side."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HYDRA_"))}
    return kept | {
        "CUDA_VISIBLE_DEVICES": "",
        "HOME": "/nonexistent",
        "COLUMNS": "120",
        "OMP_NUM_THREADS": "1",
        "VLMKIT_CACHE": str(Path(tempfile.gettempdir(), f"vlmkit-test-cache-{os.getuid()}")),  # indexes are keyed
    }


# A run of seconds: the real command with a smaller model and few steps.
QUICK = (
    "model.vision.num_layers=1",
    "model.language.num_layers=1",
    "trainer.max_training_steps=12",
    "trainer.eval_interval=4",
    "trainer.max_val_packs=12",
    "trainer.final_test=false",
    "logger=none",
)
