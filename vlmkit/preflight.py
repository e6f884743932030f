"""What can be checked on this machine before anything heavy is imported or loaded."""

from importlib.util import find_spec
from pathlib import Path

from vlmkit.config import EasyVQAConfig, TrainConfig, WandbMode, tokenizer_folder
from vlmkit.errors import ConfigError
from vlmkit.paths import TRAINER_STATE, RunPaths
from vlmkit.run_directory import check_run_dir
from vlmkit.tracking.sinks import has_wandb_key


def check_training(config: TrainConfig, paths: RunPaths) -> None:
    """Check packages, named files and the run directory.

    Raises:
        UserError: Something is missing or does not fit; the message names the key and the way out.
    """
    if isinstance(config.dataset, EasyVQAConfig):
        require_package("easy_vqa", "easy-vqa", "dataset=easyvqa")
    if config.logger.wandb is not WandbMode.disabled:
        require_package("wandb", "wandb", f"logger.wandb={config.logger.wandb.value}")
    if config.logger.wandb is WandbMode.online and not has_wandb_key():
        raise ConfigError("logger.wandb=online: needs an API key: set WANDB_API_KEY or use logger.wandb=offline")
    tokenizer_folder(config.model.tokenizer)
    if config.resume not in ("auto", "never") and not (Path(config.resume).expanduser() / TRAINER_STATE).is_dir():
        raise ConfigError(f"resume={config.resume}: must be auto, never, or a folder checkpoints/step_N of a run")
    check_run_dir(paths, config)


def require_package(module: str, package: str, key: str) -> None:
    """Raise ConfigError if a package is not installed."""
    if find_spec(module) is None:
        raise ConfigError(f"{key}: needs the package {package}, which is not installed: pip install {package}")
