"""Checkpoints: a plain transformers folder, and beside it what a run needs to go on. It appears whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import torch
from safetensors import SafetensorError

from vlmkit.config import TrainerConfig
from vlmkit.data.loader import LanePositions
from vlmkit.data.state import position_from_json, position_to_json
from vlmkit.distributed import Ranks, shard_like, whole
from vlmkit.errors import ConfigError, UserError
from vlmkit.paths import TRAINER_STATE, RunPaths
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.processor import save_processor
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.training.loop import DataPosition, Progress, Trainer
from vlmkit.training.totals import Totals

OPTIMIZER_FILE = "optimizer.pt"
RNG_FILE = "rng.pt"
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """All that a checkpoint holds, in memory of the main process's own."""

    progress: Progress
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    rng: list[dict[str, torch.Tensor]]  # of each process


class Checkpoints:
    """The checkpoints of one run: what is saved, when it is whole, which are kept.

    While entered it may write in the background; leaving waits for that.
    """

    def __init__(
        self,
        paths: RunPaths,
        config: TrainerConfig,
        trainer: Trainer,
        tokenizer: ChatTokenizer,
        layout: ImageLayout,
        ranks: Ranks,
        data_keys: dict[str, Any],
        steps_in_need: Callable[[], set[int]] = set,
    ) -> None:
        """Know what a checkpoint is made of.

        Args:
            paths: The run.
            config: Which checkpoints are kept, and whether they are written in the background.
            trainer: Has the weights and the optimizer.
            tokenizer: Is saved beside them.
            layout: The same.
            ranks: The processes.
            data_keys: All that a position in the data depends on.
            steps_in_need: Gives the steps whose checkpoints are waited for by others and stay for now; asked for by
                the thread that writes in the background.
        """
        self._paths = paths
        self._config = config
        self._hf = trainer.model.hf
        self._optimizer = trainer.optimizer
        self._tokenizer = tokenizer
        self._layout = layout
        self._ranks = ranks
        self._data_keys = data_keys
        self._steps_in_need = steps_in_need
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._newest_step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._writer.shutdown(wait=True)
        if error is None:
            self.finish()

    def save(self, progress: Progress) -> None:
        """Write checkpoints/step_N under a temporary name, then rename it, then remove what need not be kept.

        The main process writes, all wait; with ``save_in_background`` they wait only for the copy in memory.

        Raises:
            UserError: It, or the one before in the background, cannot be written; the usual cause is a full disk. Or a
                weight is no number.
        """
        self.finish()
        if progress.step == self._newest_step:
            return
        self._newest_step = progress.step
        snapshot = self._snapshot(progress)
        if self._config.save_in_background:
            if self._ranks.is_main:
                self._writing = self._writer.submit(self._write, snapshot)
        else:
            self._ranks.run_on_main(lambda: self._write(snapshot))

    def finish(self) -> None:
        """Wait for what is written in the background.

        Raises:
            UserError: It could not be written.
        """
        writing, self._writing = self._writing, None
        if self._config.save_in_background:
            self._ranks.run_on_main(writing.result if writing else lambda: None)

    def tidy(self) -> None:
        """Remove what need not be kept any more, now that others have what they waited for."""
        self._ranks.run_on_main(lambda: remove_surplus(self._paths, self._config, self._steps_in_need()))

    def restore(self, folder: Path | None, beginning: DataPosition) -> Progress:
        """Take optimizer, random states and the place in the data from a checkpoint whose weights the model has.

        Args:
            folder: The checkpoint; None: begin.
            beginning: Of the data.

        Raises:
            ConfigError: The place in the data belongs to another config.
            UserError: The checkpoint is damaged or does not fit.
        """
        if folder is None:
            return Progress(0, beginning)
        state = folder / TRAINER_STATE
        try:
            progress = json.loads((state / PROGRESS_FILE).read_text())
            self._check_precision(progress["precision"])
            load_optimizer_state(self._optimizer, _load_tensors(state / OPTIMIZER_FILE))
            restore_rng(_load_tensors(state / RNG_FILE), self._ranks)
            position = position_from_json(progress["position"])
            totals = Totals.from_json(progress["totals"])
            data_keys = dict(progress["data_keys"])
        except ConfigError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, UnpicklingError) as error:
            raise damaged(folder, error) from error
        for key in self._data_keys | data_keys:
            there, here = data_keys.get(key), self._data_keys.get(key)
            if there != here:
                raise ConfigError(
                    f"{folder}: its place in the data belongs to another config: {key}={there} there, {here} here; "
                    f"model.init_from={folder} takes the weights alone and begins at step 1"
                )
        self._newest_step = progress["step"]
        return Progress(progress["step"], position, totals)

    def _check_precision(self, saved: str) -> None:
        """Raise ConfigError if the run would go on in other arithmetic."""
        if saved != self._ranks.precision:
            raise ConfigError(
                f"trainer.precision={self._config.precision.value}: is {self._ranks.precision} on this machine, but "
                f"the run was trained in {saved}; trainer.precision={saved} goes on with that"
            )

    def _snapshot(self, progress: Progress) -> _Snapshot:
        """The state now, gathered from all processes; the next step does not change it."""
        if isinstance(progress.position, LanePositions):
            lanes = dict(self._ranks.gather(list(progress.position.lanes.items())))
            progress = replace(progress, position=LanePositions(lanes))

        def kept(tensor: torch.Tensor) -> torch.Tensor | None:
            gathered = whole(tensor.detach())  # by all processes, also where it is not kept
            if not self._ranks.is_main:
                return None
            return gathered.to("cpu", copy=self._config.save_in_background)

        weights = {name: kept(parameter) for name, parameter in self._hf.named_parameters()}
        optimizer = self._optimizer.state_dict()
        optimizer["state"] = {
            number: {name: kept(value) for name, value in state.items()} for number, state in optimizer["state"].items()
        }
        return _Snapshot(progress, weights, optimizer, self._ranks.gather([rng_state()]))  # type: ignore[arg-type]

    def _write(self, snapshot: _Snapshot) -> None:
        target = self._paths.checkpoint(snapshot.progress.step)
        if broken := next((name for name, weight in snapshot.weights.items() if not weight.isfinite().all()), None):
            raise UserError(
                f"{target}: not saved: {broken} has values that are no numbers; lower the learning rates; the same "
                "command goes on from the checkpoint before"
            )
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            self._write_files(temporary, snapshot)
            for path in (temporary, *temporary.rglob("*")):
                _flush_to_disk(path)  # or the rename could overtake the contents
            temporary.rename(target)
            _flush_to_disk(target.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"{target}: cannot write this checkpoint: {error}; the same command goes on from the one before"
            ) from error
        remove_surplus(self._paths, self._config, self._steps_in_need())

    def _write_files(self, folder: Path, snapshot: _Snapshot) -> None:
        state = folder / TRAINER_STATE
        state.mkdir(parents=True)
        self._hf.save_pretrained(folder, state_dict=snapshot.weights)
        save_processor(folder, self._tokenizer, self._layout)
        _save_tensors(snapshot.optimizer, state / OPTIMIZER_FILE)
        _save_tensors(snapshot.rng, state / RNG_FILE)
        progress = snapshot.progress
        written = {
            "step": progress.step,
            "val_loss": progress.val_loss,
            "precision": self._ranks.precision,
            "position": position_to_json(progress.position),
            "totals": asdict(progress.totals),
            "data_keys": self._data_keys,
        }
        (state / PROGRESS_FILE).write_text(json.dumps(written, separators=(",", ":")) + "\n")


def choose_start(paths: RunPaths, begun_from: str, resume: str, max_steps: int) -> Path | None:
    """Remove what is half-written, then find what to go on from: the run's newest checkpoint, else where it began.

    Args:
        paths: The run.
        begun_from: What the run's first start said of ``resume``: a run that was killed early begins there again.
        resume: What this start says.
        max_steps: Of the run.

    Raises:
        ConfigError: ``resume`` is never and the run has checkpoints, or it begins past the last step.
        UserError: The checkpoint that it begins from does not say its step.
    """
    remove_half_written(paths)
    newest = paths.newest_checkpoint
    if newest and resume == "never":
        raise ConfigError(f"resume=never: {paths.root} has checkpoints; choose another run_dir")
    if newest or begun_from in ("auto", "never"):
        return newest
    named = Path(begun_from).expanduser()
    step = _read_progress(named)["step"]
    if step >= max_steps:
        raise ConfigError(f"resume={begun_from}: is at step {step}; trainer.max_training_steps={max_steps}")
    return named


def remove_half_written(paths: RunPaths) -> None:
    """Remove what a killed save, or a killed removal, left behind; only who holds the run directory may."""
    for folder in paths.checkpoints.glob(".step_*.tmp"):
        shutil.rmtree(folder)


def remove_surplus(paths: RunPaths, config: TrainerConfig, in_need: Set[int] = frozenset()) -> None:
    """Remove the checkpoints that are neither among the newest, nor at a kept step, nor the best, nor in need.

    Args:
        paths: The run.
        config: Which are kept; the best is that of the lowest validation loss.
        in_need: Steps whose checkpoints others still wait for.
    """
    if config.keep_last is None:
        return
    found = paths.all_checkpoints
    keep = set(sorted(found)[-config.keep_last :])
    if config.keep_every:
        keep |= {step for step in found if step % config.keep_every == 0}
    if config.keep_best:
        known = [(loss, step) for step, folder in found.items() if (loss := _val_loss(folder)) is not None]
        keep |= {step for _, step in sorted(known)[:1]}
    for step in found.keys() - keep - in_need:
        hidden = found[step].with_name(f".{found[step].name}.tmp")
        with suppress(OSError):  # the next start removes it
            found[step].rename(hidden)  # a removal that is killed leaves nothing that looks whole
            shutil.rmtree(hidden)


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take moments and step counts; rates and the like stay as configured. Each process takes its part of a tensor."""
    here, there = ([group["name"] for group in groups] for groups in (optimizer.param_groups, saved["param_groups"]))
    if here != there:
        raise ConfigError(
            f"optimizer.lr_*: {', '.join(here)} are trained here, {', '.join(there)} in the checkpoint; "
            "model.init_from= takes its weights alone"
        )
    configured = [_hyperparameters(group) for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in saved["state"].items():
        like = parameters[number]
        for name, value in state.items():
            if value.shape == like.shape:  # not the step count
                state[name] = shard_like(value, like)
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, configured, strict=True):
        group.update(own)


def rng_state() -> dict[str, torch.Tensor]:
    """The random state of this process: of the CPU, and of its GPU if it has one."""
    gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **gpu}


def restore_rng(of_ranks: list[dict[str, torch.Tensor]], ranks: Ranks) -> None:
    """Go on with the random state of the process of the same number; with another number of processes there is none."""
    if len(of_ranks) != ranks.world_size:
        return
    own = of_ranks[ranks.rank]
    torch.set_rng_state(own["cpu"])
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])


def damaged(folder: Path, error: Exception) -> UserError:
    """The error of a checkpoint that cannot be read."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(
        f"{folder}: cannot resume from this checkpoint: {lines[-1].strip()}; without its newest one a run goes "
        "on from the one before"
    )


def _read_progress(folder: Path) -> dict[str, Any]:
    try:
        progress = json.loads((folder / TRAINER_STATE / PROGRESS_FILE).read_text())
        return {"step": int(progress["step"]), "val_loss": progress["val_loss"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, error) from error


def _val_loss(folder: Path) -> float | None:
    """The validation loss of a checkpoint; None if it is not known, as where only weights were kept."""
    try:
        loss: float | None = _read_progress(folder)["val_loss"]
    except UserError:
        return None
    return loss


def _save_tensors(value: object, path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # that it lost its place; what the disk said is the error before
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def _load_tensors(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
