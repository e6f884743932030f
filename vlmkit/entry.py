"""How a command starts: Hydra composes, the dataclasses check, and what the user did wrong is told in one line.

Nothing heavy is imported here, so a typo is answered within a second.
"""

import dataclasses
import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmkit.config import SCHEMAS, as_override
from vlmkit.errors import ConfigError, UserError, is_full_disk
from vlmkit.paths import config_dir
from vlmkit.pretrained.configs import check_agreement, flat_items, read_checkpoint
from vlmkit.redact import redact
from vlmkit.run_directory import sweep_subdir

FULL_ERROR = "HYDRA_FULL_ERROR"
LOOKS = ("--cfg", "-c", "--info", "-i")  # flags of Hydra that show something and start nothing
FREE_KEYS = {  # whose own keys the user names; an example of a value
    "dataset.parts": "{dataset: easyvqa, weight: 1}",
    **dict.fromkeys([f"{job}.environment" for job in ("cluster", "hydra.launcher", "evals.job")], "VALUE"),
    **dict.fromkeys([f"{job}.additional_parameters" for job in ("cluster", "hydra.launcher", "evals.job")], "VALUE"),
}


@dataclass(frozen=True, slots=True)
class Invocation:
    """How the command was called, besides its config."""

    choices: dict[str, str]  # option chosen for each group
    overrides: tuple[str, ...]  # what the command line sets
    sweep_run_dir: Path | None  # directory of this job, if it is one of a sweep


def run(config_name: str, command: Callable[[Any, Invocation], None]) -> None:
    """Compose conf/<config_name>.yaml with the command line and call ``command`` with its dataclass.

    Ends the process with 1 and one line on standard error for what a user can put right, with a traceback for
    anything else or if HYDRA_FULL_ERROR=1 is set; with 130 for Ctrl-C.
    """
    register_schemas()
    register_sweep_subdir()
    if {"-m", "--multirun"} & set(sys.argv):
        _check_sweep(sys.argv[1:])

    def leave(error: Exception) -> NoReturn:
        if isinstance(error, BrokenPipeError):  # who reads the output has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at the end fails again
            sys.exit(128 + signal.SIGPIPE)
        if wants_traceback or not _is_the_users(error):
            sys.exit(redact(traceback.format_exc()))
        sys.exit(f"error: {redact(explain(error, config_name, sys.argv[1:]))}")

    def job(config: DictConfig) -> None:
        try:
            invocation = _invocation()
            command(typed_config(config, invocation.overrides), invocation)
        except Exception as error:
            leave(error)  # here, as Hydra adds a line of its own to an error that leaves its job

    wants_traceback = os.environ.get(FULL_ERROR) == "1"
    os.environ[FULL_ERROR] = "1"  # or Hydra prints errors itself, in many lines, and ends the process
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(job)()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        leave(error)
    finally:
        if not wants_traceback:
            os.environ.pop(FULL_ERROR, None)


def _check_sweep(arguments: list[str]) -> None:
    """End the process if a sweep cannot have these arguments."""
    if redact(arguments) != arguments:
        sys.exit(
            f"error: {' '.join(redact(arguments))}: a sweep names folders after its arguments, a secret must not "
            "be among them: put it in the environment"
        )
    looks = [argument for argument in arguments if argument.partition("=")[0] in LOOKS]
    if looks:
        sys.exit(f"error: {looks[0]}: shows what one job would get: leave out -m and give each key one value")


def quote_paths(*names: str) -> None:
    """Have Hydra read paths as only text: folders of sweeps have commas in their names, which would mean a sweep.

    Args:
        names: Keys of the command whose value, if it is there, is a path.
    """

    def quoted(argument: str) -> str:
        name, _, value = argument.partition("=")
        return f"{name}={as_override(value)}" if name in names and Path(value).expanduser().exists() else argument

    sys.argv = [sys.argv[0], *map(quoted, sys.argv[1:])]


def quote_lists(*names: str) -> None:
    """Have Hydra read lists of settings and of paths as only text: these have = and commas in them.

    Args:
        names: Keys of the command whose value, if it is [A,B] without quotes, is such a list.
    """

    def quoted(argument: str) -> str:
        name, _, value = argument.partition("=")
        if name not in names or value in ("", "null") or re.search("['\"]", value):
            return argument
        items = _split_items(value.removeprefix("[").removesuffix("]"))
        return f"{name}=[{','.join(map(as_override, items))}]"

    sys.argv = [sys.argv[0], *map(quoted, sys.argv[1:])]


def _split_items(text: str) -> list[str]:
    """The parts between commas; a path that is there is one, whatever is in it."""
    parts, items = text.split(","), []
    while parts:
        lengths = range(len(parts), 1, -1)
        length = next((length for length in lengths if Path(",".join(parts[:length])).expanduser().exists()), 1)
        items.append(",".join(parts[:length]).strip())
        parts = parts[length:]
    return [item for item in items if item]


def _is_the_users(error: Exception) -> bool:
    return is_full_disk(error) or isinstance(error, UserError | HydraException | OmegaConfBaseException)


def typed_config(config: DictConfig, overrides: Sequence[str]) -> Any:
    """The dataclass of what Hydra composed for a command, with all values checked.

    Args:
        config: Without Hydra's own part.
        overrides: What the command line sets.

    Raises:
        ConfigError: A value cannot be.
        OmegaConfBaseException: A value of another type, or none where there must be one.
    """
    fill_from_checkpoint(config, overrides)
    return OmegaConf.to_object(config)


def fill_from_checkpoint(config: DictConfig, overrides: Sequence[str]) -> None:
    """Let the checkpoint that ``model.init_from`` names say what the model is; the command line's own keys stay.

    Raises:
        ConfigError: It cannot be read, or the command line asks for a size that its weights do not have.
    """
    key = "model.init_from"
    model = config.get("model")
    if model is None:  # a command that trains nothing
        return
    source = model.get("init_from")
    if source is None and OmegaConf.is_missing(model, "tokenizer"):
        raise ConfigError(f"{key}: must name a checkpoint to start from: a folder or a hub id org/name[@revision]")
    if source is None:
        return
    said = read_checkpoint(source, key)
    given = tuple(override.lstrip("+").partition("=")[0] for override in overrides)
    for name, value in flat_items(said):
        if not any(f"model.{name}.".startswith(f"{each}.") for each in given if each != "model"):  # that is the option
            OmegaConf.update(model, name, value)
    check_agreement(said, dict(flat_items(model)), f"{key}={source}")


def explain(error: Exception, config_name: str, arguments: list[str]) -> str:
    """One line that names the key and the valid choices."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = [name for name in error.options or [] if not name.endswith("_schema")]
        return f"{group}={option}: no such option; choose from {', '.join(sorted(options))}"
    if match := re.match(r"Could not override '([^']+)'", str(error)):
        return _unknown_key(match[1], config_name)
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) and error.__cause__ else error
    reason = str(cause).strip().splitlines()[0]
    if override := getattr(cause, "override", None):
        return f"{override}: {reason}"
    key = getattr(cause, "full_key", None)
    given = next((argument for argument in arguments if key and argument.lstrip("+~").startswith(f"{key}=")), key)
    return f"{given}: {reason}" if given else reason


def _unknown_key(key: str, config_name: str) -> str:
    group, _, name = key.rpartition(".")
    valid = _valid_keys(group, config_name)
    if not valid and group:
        return _unknown_key(group, config_name)
    if name in valid:
        if key in FREE_KEYS:
            return f"{key}: has no such part yet; add one with + in front: '+{key}.NAME={FREE_KEYS[key]}'"
        return f"{key}: not a key of the chosen {group} option; other options have it"
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f"did you mean {group + '.' if group else ''}{close[0]}? " if close else ""
    where = f"{group} has" if group else "the keys are"
    return f"{key}: unknown key; {hint}{where} {', '.join(valid)}"


def _valid_keys(group: str, config_name: str) -> list[str]:
    """Fields of a group, of all its variants; of the command's whole config for "" (without what no schema knows)."""
    _, whole = SCHEMAS[f"{config_name}_schema"]
    groups = {name.replace("/", ".") for name, _ in SCHEMAS.values() if name is not None}
    top = next((name for name in groups if f"{group}.".startswith(f"{name}.")), "")
    classes = [cls for name, cls in SCHEMAS.values() if name == top.replace(".", "/")] if group else [whole]
    for part in filter(None, group.removeprefix(top).split(".")):
        nested = [field.type for cls in classes for field in dataclasses.fields(cls) if field.name == part]
        classes = [cls for cls in nested if isinstance(cls, type) and dataclasses.is_dataclass(cls)]
    names = {field.name for cls in classes for field in dataclasses.fields(cls)}
    return sorted(name for name in names if not name.startswith("_"))  # those are Hydra's


def register_schemas() -> None:
    """Make the typed schemas known to Hydra."""
    store = ConfigStore.instance()
    for name, (group, cls) in SCHEMAS.items():
        store.store(name=name, node=cls, group=group, provider="vlmkit")


def register_sweep_subdir() -> None:
    """Make the function that conf/command.yaml calls known to OmegaConf."""

    def named(*, _root_: DictConfig) -> str:
        return sweep_subdir(_plain_list(_root_.hydra.overrides.task))

    OmegaConf.register_new_resolver("vlmkit.sweep_subdir", named, replace=True)


def _invocation() -> Invocation:
    runtime = HydraConfig.get()
    of_hydra = _plain_list(runtime.overrides.hydra)
    launcher = [each for each in of_hydra if each.startswith(("hydra/launcher=", "hydra.launcher."))]
    if launcher and runtime.mode is RunMode.RUN:
        raise ConfigError(f"{launcher[0]}: is for sweeps: add -m, or leave it out")
    sweep_run_dir = None
    if runtime.mode is RunMode.MULTIRUN:
        sweep_run_dir = Path(runtime.sweep.dir, runtime.sweep.subdir)
    return Invocation(dict(runtime.runtime.choices), tuple(runtime.overrides.task), sweep_run_dir)


def _plain_list(node: Any) -> list[str]:
    """As it was written: some texts are interpolations that have no value where they stand."""
    return OmegaConf.to_container(node, resolve=False)  # type: ignore[return-value]
