"""Where metrics go: metrics.jsonl always, wandb if asked for. Both get the same keys."""

import json
import math
import netrc
import os
from pathlib import Path
from typing import Any, Literal, Protocol, Self
from urllib.parse import urlparse

from vlmkit.config import LoggerConfig, WandbMode
from vlmkit.paths import RunPaths, whole_file

STEP_KEY = "global_step"


class Tracker(Protocol):
    """Takes metrics of a step."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one set of metrics."""

    def close(self) -> None:
        """Write out what is left."""


class JsonlTracker:
    """RUN/metrics.jsonl: one object a line. Lines after the step that a run resumes from are taken out."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        if path.exists():
            keep_lines_up_to(path, resumed_step, STEP_KEY)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line; NaN and infinities become null, as JSON has none."""
        finite = {key: finite_or_none(value) for key, value in metrics.items()}
        self._file.write(json.dumps({STEP_KEY: step, **finite}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandbTracker:
    """The same metrics in wandb, over ``global_step``; never with wandb's own step, which drops late rows."""

    def __init__(self, config: LoggerConfig, paths: RunPaths, run_config: dict[str, Any]) -> None:
        import wandb

        mode = wandb_mode(config.wandb)
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            dir=str(paths.root),
            id=wandb_run_id(paths),
            name=paths.root.name,
            # Offline, wandb has nothing to resume and says so: each start is a file of its own under the same id.
            resume="allow" if (mode or os.environ["WANDB_MODE"]) == "online" else None,
            mode=mode,
            config=run_config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric(STEP_KEY)
        self._run.define_metric("*", step_metric=STEP_KEY)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log one row."""
        self._run.log({STEP_KEY: step, **metrics})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Give the metrics to every tracker."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def end_step(self) -> None:
        """Write the row."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close every tracker."""
        for tracker in self._trackers:
            tracker.close()


def build_tracker(
    config: LoggerConfig, paths: RunPaths, run_config: dict[str, Any], resumed_step: int, is_main: bool
) -> Trackers:
    """The trackers of this process: only the main process has any."""
    if not is_main:
        return Trackers([])
    trackers: list[Tracker] = [JsonlTracker(paths.metrics, resumed_step)]
    if config.wandb is not WandbMode.disabled:
        trackers.append(WandbTracker(config, paths, run_config))
    return Trackers(trackers)


def wandb_mode(mode: WandbMode) -> Literal["online", "offline"] | None:
    """Online only where an API key is: wandb would ask for one otherwise. None: WANDB_MODE decides."""
    if mode is WandbMode.auto and "WANDB_MODE" in os.environ:
        return None
    return "online" if mode is WandbMode.online or (mode is WandbMode.auto and has_wandb_key()) else "offline"


def has_wandb_key() -> bool:
    """Whether wandb could log in without asking: WANDB_API_KEY, or an entry for its host in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return host is not None and netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_run_id(paths: RunPaths) -> str:
    """Made once for each run directory, so that a resumed run goes on in the same wandb run."""
    if not paths.wandb_run_id.exists():
        with whole_file(paths.wandb_run_id) as temporary:
            temporary.write_text(os.urandom(6).hex())
    return paths.wandb_run_id.read_text()


def finite_or_none(value: float) -> float | None:
    """A number that JSON has: None for NaN and infinities."""
    return value if math.isfinite(value) else None


def keep_lines_up_to(path: Path, step: int, step_key: str) -> None:
    """Rewrite a file of JSON objects without later steps and without a half-written last line."""
    with path.open(encoding="utf-8") as old, whole_file(path) as temporary, temporary.open("w") as new:
        for line in old:
            if line.endswith("\n") and json.loads(line)[step_key] <= step:
                new.write(line)
