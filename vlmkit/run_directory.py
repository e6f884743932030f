"""Which directory a run lives in, and that it holds no other run."""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from vlmkit.config import KIND, KINDS, TrainConfig
from vlmkit.errors import ConfigError, UserError
from vlmkit.paths import RunPaths, held_lock, whole_file
from vlmkit.redact import redact

YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times faster; a sweep may have hundreds of runs
# Where a run lives and how it is watched: a run can go on with other values of these.
NOT_IDENTITY = (
    "run_dir",
    "resume",
    "push_to_hub",
    "logger",
    "evals",
    "eval_suite",
    "cluster",
    "trainer.stats_log_interval",
    "trainer.final_test",
    "dataset.num_workers",
    "dataset.max_bad_share",
    "trainer.eval_interval",
    "trainer.max_val_packs",
    "trainer.num_processes",
    "trainer.sharding",
    "trainer.compile",
    "trainer.activation_checkpointing",
    "trainer.on_bad_step",
    "trainer.spike_margin",
    "trainer.keep_last",
    "trainer.keep_every",
    "trainer.keep_best",
    "trainer.save_in_background",
)
# Where the jobs of a sweep run: what is in the name of a run's directory must not change with it.
NOT_IN_NAMES = ("cluster", "evals")
LONGEST_NAME = 255  # bytes, of a file or a folder
# A step may be split in other ways over processes and micro-batches; its packs must stay as many (see data_keys).
SPLIT_OF_A_STEP = ("trainer.batch_size", "trainer.gradient_accumulation_steps")
# All that decides the order of samples; the version goes up when the code makes another order of the same.
ORDER_VERSION = 1
DATA_GROUPS = ("seed", "dataset", "filter", "packing")
DATA_KEYS_OF_MODEL = (
    "model.image",
    "model.vision.tile_size",
    "model.vision.patch_size",
    "model.pixel_shuffle_factor",
)


def plain_config(config: TrainConfig) -> dict[str, Any]:
    """The config as plain values, ready for yaml and JSON, without secrets: this is what is written and compared.

    ``dataset.kind`` and ``packing.kind`` say which classes their options are of.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return value.value if isinstance(value, Enum) else value

    result: dict[str, Any] = redact(plain(asdict(config)))
    for group, values in result.items():
        if kind := KINDS.get(type(getattr(config, group))):
            result[group] = {KIND: kind} | values
    return result


def choose_run_dir(config: TrainConfig, names: dict[str, str], sweep_run_dir: Path | None) -> RunPaths:
    """The directory the user named, or the one of a sweep's job, or one made from the config.

    The last is the same for the same config, on every process and every day: the same command goes on where it
    stopped, a changed one starts anew elsewhere.

    Args:
        config: The composed config.
        names: Options chosen for the groups, for a readable name.
        sweep_run_dir: Directory of this job of a sweep.
    """
    if config.push_to_hub is not None and sweep_run_dir is not None:
        raise ConfigError("push_to_hub: leave it out of a sweep, whose runs would overwrite each other there")
    if config.run_dir is not None and sweep_run_dir is not None:
        raise ConfigError("run_dir: leave it out of a sweep, whose runs need one each; hydra.sweep.dir is their parent")
    if config.run_dir is not None:
        return RunPaths(Path(config.run_dir).expanduser().absolute())
    if sweep_run_dir is not None:
        return RunPaths(sweep_run_dir.absolute())
    key = json.dumps([_flat(plain_config(config), NOT_IDENTITY), _origin(config.resume)], sort_keys=True)
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:8]
    return RunPaths(Path("runs", f"{names['dataset']}-{names['model']}-{fingerprint}").absolute())


def sweep_subdir(overrides: Sequence[str]) -> str:
    """The name of a run's directory in that of its sweep, made of what the command line sets for it.

    Args:
        overrides: As in seed=0, dataset.path=data/a.
    """
    kept = [each for each in overrides if re.split("[.=]", each.lstrip("+~"))[0] not in NOT_IN_NAMES]
    name = ",".join(sorted(kept)).replace("/", "_") or "run"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    fingerprint = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{fingerprint}"


def result_keys(config: dict[str, Any]) -> dict[str, Any]:
    """All that decides what a run comes to, flat, of what its config.yaml holds; of ``resume`` the checkpoint."""
    return _flat(config, NOT_IDENTITY) | {"resume": _origin(str(config.get("resume", "auto")))}


def check_run_dir(paths: RunPaths, config: TrainConfig) -> None:
    """Refuse a directory that holds a run of another config; reads only.

    Raises:
        ConfigError: It does; the message names the keys.
        UserError: The directory cannot hold a run.
    """
    if paths.root.exists() and not paths.root.is_dir():
        raise ConfigError(f"run_dir={paths.root}: must be a directory, not a file")
    require_writable(paths.root, f"run_dir={paths.root}")
    if not paths.config.exists():
        return
    there_config = read_config(paths)
    there, here = (_flat(each, NOT_IDENTITY + SPLIT_OF_A_STEP) for each in (there_config, plain_config(config)))
    differing = [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]
    if differing:
        shown = ", ".join(f"{key}={there.get(key)} there, {here.get(key)} here" for key in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ConfigError(f"run_dir={paths.root} holds a different config ({shown}{more}): choose another run_dir")
    begun_from, wanted = _origin(there_config.get("resume", "auto")), _origin(config.resume)
    if wanted and wanted != begun_from:
        raise ConfigError(
            f"resume={config.resume}: run_dir={paths.root} holds a run that began from {begun_from or 'scratch'}: "
            "choose another run_dir, or resume=auto to go on with that run"
        )


def require_writable(folder: Path, setting: str) -> None:
    """Raise ConfigError unless the folder, or the nearest one above it that is there, can be written in."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"{setting}: cannot write in {existing}")


@contextmanager
def claim(paths: RunPaths, config: TrainConfig) -> Iterator[None]:
    """Hold the directory for this run and write its config.yaml; the lock goes with the process, however it ends.

    Raises:
        UserError: Another run holds the directory.
    """
    with ExitStack() as stack:
        try:
            with held_lock(paths.delivery_lock, wait=True):  # some seconds, if results of an evaluation are logged now
                stack.enter_context(held_lock(paths.lock, wait=False))
        except BlockingIOError as error:
            raise UserError(
                f"run_dir={paths.root}: another process trains there now; choose another run_dir"
            ) from error
        except OSError as error:
            raise UserError(f"run_dir={paths.root}: cannot be held: {error}; choose another run_dir") from error
        check_run_dir(paths, config)  # again: another run may have come and gone since the first look
        begun_from = _origin(config.resume) or (paths.config.exists() and _origin(read_config(paths)["resume"]))
        written = plain_config(config) | {"resume": begun_from or config.resume}
        with whole_file(paths.config) as temporary:
            temporary.write_text(yaml.safe_dump(written, sort_keys=False))
        yield


def begun_from(paths: RunPaths) -> str:
    """Where the run in a claimed directory began: auto, never, or the checkpoint that its first start named."""
    return str(read_config(paths)["resume"])


def read_config(paths: RunPaths) -> dict[str, Any]:
    """What config.yaml of a run holds: plain values.

    Raises:
        UserError: It cannot be read.
    """
    try:
        config = yaml.load(paths.config.read_text(), YAML_LOADER)
    except (yaml.YAMLError, OSError) as error:
        raise UserError(
            f"{paths.config}: not a readable config ({type(error).__name__}); choose another run_dir"
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{paths.config}: not a readable config; choose another run_dir")
    return config


def _origin(resume: str) -> str | None:
    """The checkpoint that a run begins from, as config.yaml names it, or None if ``resume`` names none."""
    return None if resume in ("auto", "never") else redact(str(Path(resume).expanduser().absolute()))


def data_keys(config: TrainConfig, packs_per_step: int, contents: Mapping[str, object]) -> dict[str, Any]:
    """What a place in the data depends on, flat: it means nothing where one of these is another.

    Args:
        config: The run's config.
        packs_per_step: Over all processes.
        contents: What is in the files that the config names, wherever they lie.
    """
    kept = {
        key: value
        for key, value in _flat(plain_config(config), NOT_IDENTITY).items()
        if key.partition(".")[0] in DATA_GROUPS or key.startswith(DATA_KEYS_OF_MODEL)
    }
    named = [key for key in kept if key.endswith(".path")]  # the same files may lie elsewhere
    for key in named:
        del kept[key]
    return kept | {"packs in a step": packs_per_step, "version of the order": ORDER_VERSION, **contents}


def _flat(config: dict[str, Any], without: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value, for all keys but some."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = prefix + name
        if key in without:
            continue
        if isinstance(value, dict) and value:
            flat |= _flat(value, without, f"{key}.")
        else:
            flat[key] = value
    return flat
