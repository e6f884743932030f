"""What can be checked on this machine before anything heavy is imported or loaded."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vlmkit.config import (
    EvalConfig,
    EvalSuiteConfig,
    EvalsWhere,
    GenerateConfig,
    MergeConfig,
    ModelConfig,
    ReportConfig,
    TrainConfig,
    WandbMode,
    require,
)
from vlmkit.errors import ConfigError
from vlmkit.evaluation.subjects import find_subjects
from vlmkit.evaluation.task_names import find_task_folder
from vlmkit.launched import started_processes
from vlmkit.local_files import check_files, find_pictures, newest_of_run, uses_easyvqa
from vlmkit.paths import TRAINER_STATE, RunPaths
from vlmkit.pretrained.configs import check_backbones, read_checkpoint
from vlmkit.pretrained.files import find_tokenizer, require_weights
from vlmkit.run_directory import check_run_dir, require_writable
from vlmkit.sweep_directory import find_run, find_sweep
from vlmkit.tracking.wandb_sink import has_wandb_key


def check_training(config: TrainConfig, paths: RunPaths) -> None:
    """Check packages, named files and the run directory.

    Raises:
        UserError: Something is missing or does not fit; the message names the key and the way out.
    """
    check_data(config)
    if config.logger.wandb is not WandbMode.disabled:
        require_package("wandb", "wandb", f"logger.wandb={config.logger.wandb.value}")
    if config.logger.wandb is WandbMode.online and not has_wandb_key():
        raise ConfigError("logger.wandb=online: needs an API key: set WANDB_API_KEY or use logger.wandb=offline")
    if config.evals.where is not EvalsWhere.none:
        check_suite(config.eval_suite, config.eval_suite.tasks, f"evals={config.evals.where.value}")
    if config.push_to_hub is not None:
        check_hub_token(config.push_to_hub)
    begun = paths.newest_checkpoint is not None  # then the run goes on from its own, wherever it began
    named = config.resume not in ("auto", "never")
    if named and not begun and not (Path(config.resume).expanduser() / TRAINER_STATE).is_dir():
        raise ConfigError(f"resume={config.resume}: must be auto, never, or a folder checkpoints/step_N of a run")
    if not begun:
        check_weights(config.model)
    check_run_dir(paths, config)


def check_inspection(config: TrainConfig, page: Path) -> None:
    """Check packages, named files and the place of the page.

    Raises:
        UserError: Something is missing or does not fit; the message names the key and the way out.
    """
    check_data(config)
    check_output(page)


def check_generation(config: GenerateConfig) -> None:
    """Check the checkpoint, the pictures and the place of the answers.

    Raises:
        ConfigError: Something is missing; the message names the key and the way out.
    """
    checkpoint = newest_of_run(config.ckpt)
    read_checkpoint(checkpoint, "ckpt")
    require_weights(checkpoint, "ckpt")
    find_pictures(config.image)
    if config.out is not None:
        check_output(Path(config.out).expanduser())


def check_merge(config: MergeConfig) -> None:
    """Check the folders.

    Raises:
        ConfigError: One is not there, has nothing, or cannot be written in; the message names the key.
    """
    run = Path(config.run).expanduser()
    require(run.is_dir(), "run", config.run, "a run directory")
    require_writable(run / "evals", f"run={config.run}")
    if config.results is not None:
        has_results = any(Path(config.results).expanduser().glob("step_*.json"))
        require(has_results, "results", config.results, "a folder with step_N.json or step_N_TASK.json")


def check_evaluation(config: EvalConfig) -> None:
    """Check how it was started, lmms-eval, the checkpoints and the names of the tasks.

    Raises:
        ConfigError: Something is missing; the message names the key and the way out.
    """
    where = config.evals.where
    if where is not EvalsWhere.inline and started_processes() > 1:
        raise ConfigError(f"evals={where.value}: start it as one process, which has others do the work")
    if config.cells is None and not config.task_names:
        raise ConfigError("tasks: name some, as in tasks=[mmstar,textvqa_val], or a suite")
    check_suite(config.eval_suite, config.task_names if config.cells is None else [], "evaluation")
    for subject in find_subjects(config):
        read_checkpoint(subject.checkpoint, "ckpt")
        require_weights(subject.checkpoint, "ckpt")
        require_writable(subject.folder, f"out={subject.folder}")
    for folder in config.cells or ():
        require_writable(Path(folder).expanduser(), f"cells={folder}")


def check_suite(suite: EvalSuiteConfig, tasks: Sequence[str], what: str) -> None:
    """Check that lmms-eval is there and knows the tasks.

    Args:
        suite: How they are asked.
        tasks: Their names.
        what: Needs lmms-eval.

    Raises:
        ConfigError: Something is missing; the message names the key and the way out.
    """
    if find_spec("lmms_eval") is None:
        raise ConfigError(f"{what}: needs lmms-eval, which is not installed: pip install 'vlmkit[eval]'")
    if suite.local_data is not None and not Path(suite.local_data).expanduser().is_dir():
        raise ConfigError(f"eval_suite.local_data={suite.local_data}: must be a folder that is there")
    unknown = [task for task in tasks if find_task_folder(task) is None]
    if unknown:
        from vlmkit.evaluation.tasks import require_task  # takes seconds, and knows what is like them

        require_task(unknown[0])


def check_report(config: ReportConfig, folder: Path) -> None:
    """Check that the sweep or the runs are there, and that the folder of the report can be written in.

    Raises:
        ConfigError: They are not, or it cannot.
    """
    if config.sweep is not None:
        find_sweep(config.sweep)
    for name in config.runs or ():
        find_run(name, "runs")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out={folder}: must be a folder, not a file")
    require_writable(folder, f"out={folder}")


def check_output(path: Path) -> None:
    """Raise ConfigError unless the file that ``out`` names can be written."""
    if path.is_dir():
        raise ConfigError(f"out={path}: must be a file, not a directory")
    require_writable(path.parent, f"out={path}")


def check_data(config: TrainConfig) -> None:
    """Check what reading the data needs: the files that the dataset names, its packages, the tokenizer."""
    check_files(config.dataset)
    if uses_easyvqa(config.dataset):
        require_package("easy_vqa", "easy-vqa", "dataset=easyvqa")
    find_tokenizer(config.model.tokenizer)


def check_weights(model: ModelConfig) -> None:
    """Check what reading pretrained weights needs: their folders, packages, and the configured sizes."""
    for key, name in model.pretrained.items():
        require_weights(name, key)
    check_backbones(model)


def check_hub_token(repo: str) -> None:
    """Raise ConfigError if nobody is logged in to the Hugging Face hub: better now than after the run."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"push_to_hub={repo}: cannot be reached with HF_HUB_OFFLINE=1: leave one of them out")
    if not get_token():
        raise ConfigError(f"push_to_hub={repo}: needs a token of the hub: set HF_TOKEN, or log in with `hf auth login`")


def require_package(module: str, package: str, key: str) -> None:
    """Raise ConfigError if a package is not installed."""
    if find_spec(module) is None:
        raise ConfigError(f"{key}: needs the package {package}, which is not installed: pip install {package}")
