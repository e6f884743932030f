"""Hydra's launchers slurm and local: ``python -m vlmkit.train -m … hydra/launcher=slurm``.

Hydra imports this module whenever one of its commands starts, so nothing heavy is imported here.
Read next: ``vlmkit_launchers/sweep.py``.
"""

import copy
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

if TYPE_CHECKING:
    from vlmkit.config import LocalLauncherConfig, SlurmLauncherConfig
    from vlmkit_launchers.handover import Starter
    from vlmkit_launchers.sweep import ComposedJob

MANY = 20  # jobs, which take some seconds to check
OWN = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.", "hydra.mode")


class GridSweeper(BasicSweeper):
    """All combinations, at once. What they come to the launcher checks, and more than Hydra's own sweeper does."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        """With values to sweep over that a config file names."""
        super().__init__(max_batch_size=None, params=params)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: to compose each job twice takes twice as long."""


class CommandLauncher(Launcher):
    """Starts each job of a sweep as a command of its own."""

    _config: DictConfig
    _context: HydraContext
    _options: Any

    def __init__(self, **_values: object) -> None:
        """Hydra gives its untyped values; ``setup`` gets the typed ones."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check what the launcher itself is told.

        Raises:
            ConfigError: A value cannot be, or the sweep's folder cannot be written in.
        """
        from vlmkit.run_directory import require_writable

        self._config, self._context = config, hydra_context
        self._options = OmegaConf.to_object(config.hydra.launcher)
        require_writable(self._sweep, f"hydra.sweep.dir={config.hydra.sweep.dir}")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Start what is not done or under way, and wait for all unless ``detach`` is set.

        Ends the process with 1 if a job did not end well.

        Raises:
            UserError: A job's values cannot be, or the jobs cannot be started. None is started then.
        """
        from vlmkit_launchers.sweep import launch, plan_jobs

        setup_globals()
        if len(job_overrides) > MANY:
            print(f"checking {len(job_overrides):,} jobs …", flush=True)  # noqa: T201
        numbered = enumerate(job_overrides, start=initial_job_idx)
        composed = [self._compose(number, list(overrides)) for number, overrides in numbered]
        jobs = plan_jobs(composed, self._sweep, self._arguments())
        if not launch(jobs, self._sweep, self._starter(composed), self._options.detach):
            sys.exit(1)
        return [JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED) for job in composed]

    @abstractmethod
    def _starter(self, composed: Sequence["ComposedJob"]) -> "Starter":
        """Who starts the jobs."""

    @property
    def _sweep(self) -> Path:
        return Path(str(self._config.hydra.sweep.dir)).expanduser().absolute()

    def _compose(self, number: int, overrides: list[str]) -> "ComposedJob":
        from vlmkit.entry import typed_config
        from vlmkit_launchers.sweep import ComposedJob

        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        subdir = str(config.hydra.sweep.subdir)
        job = copy.deepcopy(config)
        with read_write(job), open_dict(job):
            del job["hydra"]
        return ComposedJob(number, overrides, typed_config(job, overrides), subdir)

    def _arguments(self) -> list[str]:
        """What the command line says to Hydra itself, which each job must be told as well."""
        hydra = self._config.hydra
        sources = {source.provider: source.path for source in hydra.runtime.config_sources}
        flags = [f"--config-path={sources['main']}", f"--config-name={hydra.job.config_name}"]
        flags += [f"--config-dir={sources['command-line']}"] if "command-line" in sources else []
        overrides = OmegaConf.to_container(hydra.overrides.hydra, resolve=False)
        assert isinstance(overrides, list)
        return [*flags, *(each for each in overrides if not each.lstrip("+~").startswith(OWN))]


class SlurmLauncher(CommandLauncher):
    """One array of SLURM jobs."""

    _options: "SlurmLauncherConfig"

    def _starter(self, composed: Sequence["ComposedJob"]) -> "Starter":
        from vlmkit_launchers.handover import SlurmStarter
        from vlmkit_launchers.sweep import cluster_of

        job = self._options.on(cluster_of(composed))
        return SlurmStarter(job, self._options.array_parallelism, self._options.dependency, self._sweep)


class LocalLauncher(CommandLauncher):
    """Processes on this machine, a few at a time."""

    _options: "LocalLauncherConfig"

    def _starter(self, composed: Sequence["ComposedJob"]) -> "Starter":
        from vlmkit_launchers.handover import LocalStarter

        return LocalStarter(self._options, self._sweep)
