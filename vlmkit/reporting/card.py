"""The model card: README.md of a checkpoint, generated from the records of its run."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vlmkit.config import RATING_AXES, SCHEMAS, DatasetConfig, HubConfig, PackingConfig, TrainConfig
from vlmkit.local_files import parts_of
from vlmkit.paths import RunPaths, whole_file
from vlmkit.pretrained.files import HUB_ID
from vlmkit.redact import redact
from vlmkit.reporting.templating import load_template
from vlmkit.tracking.jsonl import read_rows

RESULTS = {
    "batch_loss": "training loss of the last step",
    "val_loss": "validation loss",
    "test_exact_match": "exact match on the test questions",
    "test_question_only": "the same from the questions alone",
}


def write_card(config: TrainConfig, paths: RunPaths, step: int, tokens: int, data: str) -> None:
    """Write README.md into a checkpoint of a run; its licence is left to be filled in.

    Args:
        config: The run's config.
        paths: The run, with its metrics and its provenance.
        step: Of the checkpoint.
        tokens: That the run trained on up to it.
        data: One line about what was read.
    """
    checkpoint = paths.checkpoint(step)
    last = _last_values(read_rows(paths.metrics))
    start = json.loads(paths.provenance.read_text())["starts"][-1]
    card = load_template("model_card.md", keep_trailing_newline=True).render(
        name=config.push_to_hub or paths.root.name,
        repo=config.push_to_hub or "FOLDER",
        config=config,
        step=step,
        tokens=tokens,
        data=data.replace("|", r"\|"),
        began_from=list(config.model.pretrained.values()),
        base_models=[name.partition("@")[0] for name in config.model.pretrained.values() if HUB_ID.fullmatch(name)],
        datasets=_hub_datasets(config.dataset),
        minima=", ".join(f"{axis} {low}" for axis, low in zip(RATING_AXES, config.filter.minima, strict=True)),
        filtered=last.get("run_stats/filtered_ratio"),
        utilisation=last.get("run_stats/utilisation"),
        packs_per_step=config.trainer.batch_size
        * config.trainer.gradient_accumulation_steps
        * int(start["world_size"]),
        packing=_option_name(config.packing),
        hardware=", ".join(start["hardware"]["gpus"]) or f"CPU, {start['hardware']['cpu_cores']} cores",
        results=[(label, last[key]) for key, label in RESULTS.items() if last.get(key) is not None],
        has_processor=(checkpoint / "preprocessor_config.json").is_file(),
        parameters=_count_parameters(checkpoint),
        versions=_versions(start),
    )
    with whole_file(checkpoint / "README.md") as temporary:
        temporary.write_text(redact(card), encoding="utf-8")


def _last_values(rows: Iterable[dict[str, Any]]) -> dict[str, float | None]:
    """The newest value of every metric."""
    last: dict[str, float | None] = {}
    for row in rows:
        last |= row
    return last


def _hub_datasets(config: DatasetConfig) -> list[str]:
    return sorted({part.repo for part in parts_of(config).values() if isinstance(part, HubConfig)})


def _option_name(config: PackingConfig) -> str:
    return next(name.removesuffix("_schema") for name, (_, cls) in SCHEMAS.items() if cls is type(config))


def _count_parameters(checkpoint: Path) -> int:
    """Numbers in the files of weights; a shared weight is there once."""
    total = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no dict
                total += math.prod(file.get_slice(name).get_shape())
    return total


def _versions(start: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in start["packages"].items())
    changed = ", changed" if start["git"] and start["git"]["changed"] else ""
    revision = f" (vlmkit: revision {start['git']['revision']}{changed})" if start["git"] else ""
    return f"{packages}, Python {start['python']}{revision}"
