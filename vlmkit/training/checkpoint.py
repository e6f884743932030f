"""Checkpoints: a plain transformers folder, and beside it what a run needs to go on. It appears whole or not at all."""

import json
import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vlmkit.data.loader import LanePositions
from vlmkit.data.state import position_from_json, position_to_json
from vlmkit.distributed import Ranks
from vlmkit.errors import ConfigError, UserError
from vlmkit.model.packed import PackedVLM
from vlmkit.paths import TRAINER_STATE, RunPaths
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.processor import save_processor
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.training.loop import DataPosition, Progress
from vlmkit.training.totals import Totals

OPTIMIZER_FILE = "optimizer.pt"
PROGRESS_FILE = "progress.json"


class Checkpoints:
    """The checkpoints of one run: everything that is saved, and where."""

    def __init__(
        self,
        paths: RunPaths,
        model: PackedVLM,
        tokenizer: ChatTokenizer,
        layout: ImageLayout,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        data_keys: dict[str, Any],
    ) -> None:
        self._paths = paths
        self._model = model
        self._tokenizer = tokenizer
        self._layout = layout
        self._optimizer = optimizer
        self._ranks = ranks
        self._data_keys = data_keys  # all that a position in the data depends on

    def save(self, progress: Progress) -> None:
        """Write checkpoints/step_N under a temporary name, then rename it; the main process writes, all wait.

        Raises:
            UserError: It cannot be written; the usual cause is a full disk.
        """
        target = self._paths.checkpoint(progress.step)
        if isinstance(progress.position, LanePositions):
            lanes = dict(self._ranks.gather(list(progress.position.lanes.items())))
            progress = replace(progress, position=LanePositions(lanes))
        if self._ranks.is_main and not target.exists():
            temporary = target.with_name(f".{target.name}.tmp")
            try:
                self._write(temporary, progress)
                for path in (temporary, *temporary.rglob("*")):
                    _flush_to_disk(path)  # or the rename could overtake the contents
                temporary.rename(target)
                _flush_to_disk(target.parent)
            except (OSError, SafetensorError) as error:
                shutil.rmtree(temporary, ignore_errors=True)
                raise UserError(
                    f"{target}: cannot write this checkpoint: {error}; the same command goes on from the one before"
                ) from error
        self._ranks.wait()

    def resume(self, resume: str, max_steps: int, start: DataPosition) -> Progress:
        """Go on from the run's newest checkpoint, else from the one that ``resume`` names, else from the start.

        Raises:
            ConfigError: ``resume`` is never and the run has checkpoints, or names one past the last step.
            UserError: A checkpoint is damaged or does not fit the model.
        """
        newest = newest_checkpoint(self._paths)
        if newest and resume == "never":
            raise ConfigError(f"resume=never: {self._paths.root} has checkpoints; choose another run_dir")
        if newest:
            return self._load(newest)
        if resume in ("auto", "never"):
            return Progress(0, start)
        begun = self._load(Path(resume).expanduser())
        if begun.step >= max_steps:
            raise ConfigError(f"resume={resume}: is at step {begun.step}; trainer.max_training_steps={max_steps}")
        return begun

    def remove_half_written(self) -> None:
        """Remove what a killed save left behind; only the process that holds the run directory may."""
        if self._ranks.is_main:
            for folder in self._paths.checkpoints.glob(".step_*.tmp"):
                shutil.rmtree(folder)

    def _write(self, folder: Path, progress: Progress) -> None:
        state = folder / TRAINER_STATE
        state.mkdir(parents=True)
        self._model.hf.save_pretrained(folder)
        save_processor(folder, self._tokenizer, self._layout)
        with (state / OPTIMIZER_FILE).open("wb") as file:
            try:
                torch.save(self._optimizer.state_dict(), file)
            except RuntimeError as error:  # that it lost its place; what the disk said is the error before
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        position = position_to_json(progress.position)
        written = {
            "step": progress.step,
            "position": position,
            "totals": asdict(progress.totals),
            "data_keys": self._data_keys,
        }
        (state / PROGRESS_FILE).write_text(json.dumps(written, separators=(",", ":")) + "\n")

    def _load(self, folder: Path) -> Progress:
        state = folder / TRAINER_STATE
        hyperparameters = [_hyperparameters(group) for group in self._optimizer.param_groups]
        try:
            progress = json.loads((state / PROGRESS_FILE).read_text())
            weights = load_file(folder / "model.safetensors")
            # The head is the embedding: transformers saves the shared weight once.
            missing, unexpected = self._model.hf.load_state_dict(weights, strict=False)
            optimizer_state = torch.load(state / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
            self._optimizer.load_state_dict(optimizer_state)
            position = position_from_json(progress["position"])
            totals = Totals.from_json(progress["totals"])
            data_keys = dict(progress["data_keys"])
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, UnpicklingError, SafetensorError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{folder}: cannot resume from this checkpoint: {lines[-1].strip()}; without it the run goes on from "
                "the one before"
            ) from error
        wrong = [name for name in [*missing, *unexpected] if name != "lm_head.weight"]
        if wrong:
            raise UserError(f"{folder}: the checkpoint does not fit the configured model: {wrong[0]}")
        for key in self._data_keys | data_keys:
            there, here = data_keys.get(key), self._data_keys.get(key)
            if there != here:
                raise ConfigError(
                    f"{folder}: its place in the data belongs to another config: {key}={there} there, {here} here"
                )
        for group, configured in zip(self._optimizer.param_groups, hyperparameters, strict=True):
            group.update(configured)  # load_state_dict brought those of the saved run
        return Progress(progress["step"], position, totals)


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def newest_checkpoint(paths: RunPaths) -> Path | None:
    """The checkpoint of the highest step, or None."""
    found = {}
    for folder in paths.checkpoints.glob("step_*"):
        if match := re.fullmatch(r"step_(\d+)", folder.name):
            found[int(match[1])] = folder
    return found[max(found)] if found else None


def _flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
