"""What a run tells about itself: the facts of the banner and the last words."""

from collections import Counter
from pathlib import Path

import torch

from vlmkit.config import TrainConfig
from vlmkit.data.pipeline import TrainingData
from vlmkit.distributed import Ranks
from vlmkit.model.build import count_parameters
from vlmkit.model.packed import PackedVLM
from vlmkit.paths import RunPaths
from vlmkit.training.loop import Progress


def describe_run(
    config: TrainConfig, paths: RunPaths, model: PackedVLM, data: TrainingData, start: Progress, ranks: Ranks
) -> dict[str, str]:
    """The facts of the banner, in order."""
    parts = count_parameters(model.hf)
    trainer = config.trainer
    packs = trainer.batch_size * trainer.gradient_accumulation_steps * ranks.world_size
    going_on = f", going on after step {start.step}" if start.step else ""
    rates = config.optimizer
    return {
        "model": f"{sum(parts.values()):,} parameters: "
        + ", ".join(f"{name} {count:,}" for name, count in parts.items()),
        "data": data.describe(),
        "validation": f"{data.validation.num_samples:,} held-out samples on this process, "
        f"every {trainer.eval_interval} steps, each with a checkpoint",
        "steps": f"{trainer.max_training_steps:,} of {packs} packs up to {config.packing.seq_length} tokens "
        f"({trainer.batch_size} x {trainer.gradient_accumulation_steps} on each process){going_on}",
        "learning": f"projector {rates.lr_projector:g}, vision {rates.lr_vision:g}, language {rates.lr_language:g}, "
        f"seed {config.seed}",
        "device": f"{device_name(ranks.device)}, {ranks.world_size} process(es), {ranks.precision}",
        "run_dir": shown(paths.root),
    }


def last_words(paths: RunPaths, end: Progress, total: int, stopped: bool) -> str:
    """Where the files are and what to do next."""
    checkpoint = paths.checkpoint(end.step)
    if stopped:
        saved = f"saved {shown(checkpoint)}" if checkpoint.exists() else "nothing to save yet"
        where = f"after step {end.step} of {total}" if end.step < total else "before all was tested"
        return f"stopped {where}; {saved}; the same command goes on from here"
    if end.step < total:
        return f"the data ended after step {end.step} of {total}; saved {shown(checkpoint)}"
    files = {"checkpoint": checkpoint, "metrics": paths.metrics, "answers": paths.test_samples(total)}
    files["bad samples"] = paths.bad_samples
    lines = [f"{name:12}{shown(path)}" for name, path in files.items() if path.exists()]
    return "\n".join([*lines, "next        python -m vlmkit.train -m seed=0,1,2     how much of it is chance?"])


def what_was_met(data: TrainingData, end: Progress, left_out: Counter[str], bad_samples: str) -> list[str]:
    """Lines about what the data turned out to be like, if there is something to say."""
    lines = [f"skipped     {file}" for file in data.skipped]
    if laps := data.describe_end(end.position):
        lines.append(f"sources     {laps}, by this process's slowest lane")
    if left_out:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
        lines.append(f"left out    {reasons} (by this process)")
    if bad_samples:
        lines.append(f"bad samples {bad_samples}")
    return lines


def device_name(device: torch.device) -> str:
    """The GPU's name, or the number of threads on the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def shown(path: Path) -> str:
    """A path as short as it can be told from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
