"""What ran where: git revision, versions, hardware and command of every start of a run."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vlmkit.paths import RunPaths, whole_file
from vlmkit.pretrained.files import find_commits
from vlmkit.redact import redact

PACKAGES = (
    "vlmkit",
    "torch",
    "transformers",
    "accelerate",
    "lmms-eval",
    "datasets",
    "tokenizers",
    "numpy",
    "pillow",
    "wandb",
)


def record_start(
    paths: RunPaths, resumed_step: int, world_size: int, device: str, pretrained: Mapping[str, str]
) -> None:
    """Add this start to provenance.json; the first one tells which commits of the hub its weights are."""
    starts = json.loads(paths.provenance.read_text())["starts"] if paths.provenance.exists() else []
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": redact([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "resumed_step": resumed_step,
            "git": git_revision(),
            "python": platform.python_version(),
            "packages": package_versions(),
            "hardware": hardware(),
            "world_size": world_size,
            "device": device,
            **({} if resumed_step else {"pretrained_commits": find_commits(pretrained)}),
        }
    )
    with whole_file(paths.provenance) as temporary:
        temporary.write_text(json.dumps({"starts": starts}, indent=2) + "\n")


def package_versions() -> dict[str, str]:
    """Of the packages that decide what a run computes, as far as they are installed."""
    return {name: found for name in PACKAGES if (found := _version(name))}


def git_revision() -> dict[str, Any] | None:
    """Revision of the clone that vlmkit runs from, and whether it was changed; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"revision": revision.stdout.strip(), "changed": bool(changes.stdout.strip())}


def hardware() -> dict[str, Any]:
    """Processor, cores and GPUs."""
    return {
        "machine": platform.machine(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
