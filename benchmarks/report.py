"""What every benchmark writes beside its figures."""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlmkit.tracking.provenance import git_revision, hardware


def write_report(
    path: Path, settings: dict[str, Any], packages: Sequence[str], results: Sequence[Any], **more: Any
) -> None:
    """Write results (dataclasses) with settings, hardware and versions as JSON."""
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "settings": settings,
        "hardware": {"processor": processor(), **hardware()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("vlmkit", *packages)},
        "git": git_revision(),
        "results": [asdict(result) for result in results],
        **more,
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


def processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(info) if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
