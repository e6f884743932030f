"""Checkpoints: a plain transformers folder, and beside it what a run needs to go on. It appears whole or not at all."""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from vlmkit.data.plan import Position
from vlmkit.distributed import Ranks
from vlmkit.errors import ConfigError, UserError
from vlmkit.model.packed import PackedVLM
from vlmkit.paths import PROCESSOR, TRAINER_STATE, RunPaths
from vlmkit.processing.images import ImageLayout
from vlmkit.processing.tokenizer import ChatTokenizer
from vlmkit.training.loop import Progress

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
    ) -> None:
        self._paths = paths
        self._model = model
        self._tokenizer = tokenizer
        self._layout = layout
        self._optimizer = optimizer
        self._ranks = ranks

    def save(self, progress: Progress) -> None:
        """Write checkpoints/step_N under a temporary name, then rename it; the main process writes, all wait."""
        target = self._paths.checkpoint(progress.step)
        if self._ranks.is_main and not target.exists():
            temporary = target.with_name(f".{target.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            self._write(temporary, progress)
            _flush_to_disk(temporary)
            temporary.rename(target)
        self._ranks.wait()

    def resume(self, resume: str) -> Progress:
        """Go on from the run's newest checkpoint, else from the one that ``resume`` names, else from the start.

        Raises:
            ConfigError: ``resume`` is never and the run has checkpoints.
            UserError: A checkpoint does not fit the model.
        """
        newest = newest_checkpoint(self._paths)
        if newest and resume == "never":
            raise ConfigError(f"resume=never: {self._paths.root} has checkpoints; choose another run_dir")
        if newest is None and resume not in ("auto", "never"):
            newest = Path(resume).expanduser()
        return self._load(newest) if newest else Progress(0, Position())

    def _write(self, folder: Path, progress: Progress) -> None:
        state = folder / TRAINER_STATE
        state.mkdir(parents=True)
        self._model.hf.save_pretrained(folder)
        self._tokenizer.save(folder)
        (folder / PROCESSOR).write_text(json.dumps(asdict(self._layout), indent=2) + "\n")
        torch.save(self._optimizer.state_dict(), state / OPTIMIZER_FILE)
        (state / PROGRESS_FILE).write_text(json.dumps(asdict(progress)) + "\n")

    def _load(self, folder: Path) -> Progress:
        state = folder / TRAINER_STATE
        if not (state / PROGRESS_FILE).is_file():
            raise UserError(f"{folder}: nothing to resume from: it has no {TRAINER_STATE}/{PROGRESS_FILE}")
        try:
            saved = type(self._model.hf).from_pretrained(folder, dtype="float32")
            self._model.hf.load_state_dict(saved.state_dict())
            optimizer_state = torch.load(state / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
            self._optimizer.load_state_dict(optimizer_state)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{folder}: the checkpoint does not fit the configured model: {reason}") from error
        progress = json.loads((state / PROGRESS_FILE).read_text())
        return Progress(progress["step"], Position(**progress["position"]))


def newest_checkpoint(paths: RunPaths) -> Path | None:
    """The checkpoint of the highest step, or None."""
    found = {}
    for folder in paths.checkpoints.glob("step_*"):
        if match := re.fullmatch(r"step_(\d+)", folder.name):
            found[int(match[1])] = folder
    return found[max(found)] if found else None


def _flush_to_disk(folder: Path) -> None:
    """Make sure that a rename never overtakes the contents."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
