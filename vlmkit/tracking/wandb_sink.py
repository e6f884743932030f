"""Metrics in wandb: online or offline without a question, each step once, however often the run was stopped."""

import json
import math
import netrc
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from vlmkit.config import LoggerConfig, WandbMode
from vlmkit.paths import RunPaths, whole_file
from vlmkit.redact import redact
from vlmkit.tracking.jsonl import EVAL_STEP_KEY, STEP_KEY, finite_or_none, read_rows
from vlmkit.tracking.wandb_file import read_records

Row = dict[str, Any]
Result = tuple[int, str, float | None]  # step of the checkpoint, key, value; None for what is no number


class WandbTracker:
    """The rows of metrics.jsonl in wandb, over ``global_step``; never with wandb's own step, which drops late rows.

    wandb's service loses what it has not yet sent or written when a run is killed, and it keeps the steps that a
    resumed run repeats. So the start asks what wandb has: rows of metrics.jsonl that it lacks are handed in, and
    steps that it has are not sent again (they are the same ones). Rows of evaluation results are told apart by their
    values, which may change.
    """

    def __init__(
        self, config: LoggerConfig, paths: RunPaths, run_config: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        import wandb

        mode = wandb_mode(config.wandb)
        online = (mode or os.environ["WANDB_MODE"]) == "online"
        if online and not is_reachable(say):
            mode, online = "offline", False
        self._run = wandb.init(
            project=redact(config.project),
            entity=redact(config.entity),
            dir=str(paths.root),
            id=wandb_run_id(paths),
            name=paths.root.name,
            # Offline, wandb has nothing to resume and says so: each start is a file of its own under the same id.
            resume="allow" if online else None,
            mode=mode,
            config=run_config,
            # What wandb gathers by itself holds the command line, the git remote and its password, all packages;
            # provenance.json says what ran.
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        self._run.define_metric(STEP_KEY)
        self._run.define_metric("*", step_metric=STEP_KEY)
        self._run.define_metric(EVAL_STEP_KEY)
        self._on_eval_axis: set[str] = set()
        self._had: dict[int, frozenset[str]] = {}
        self._had_results: Counter[Result] = Counter()
        self._is_complete = self._hand_in(paths, online, say)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log what wandb lacks of a row."""
        new = {key: value for key, value in metrics.items() if key not in self._had.get(step, ())}
        if new:
            self._run.log({STEP_KEY: step, **new})

    def write_evaluation(self, step: int, results: dict[str, float]) -> None:
        """Log what wandb lacks of the results of a checkpoint, over the checkpoints' own axis."""
        new = {}
        for key, value in results.items():
            result = (step, key, finite_or_none(value))
            if self._had_results[result]:
                self._had_results[result] -= 1
            else:
                new[key] = value
        for key in new.keys() - self._on_eval_axis:  # by its full name: of patterns that fit wandb takes any, "*" too
            self._run.define_metric(key, step_metric=EVAL_STEP_KEY)
            self._on_eval_axis.add(key)
        if new:
            self._run.log({EVAL_STEP_KEY: step, **new})

    def flush(self) -> None:
        """Nothing: wandb writes when it likes; what it loses to a kill the next start hands in."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()

    @property
    def is_complete(self) -> bool:
        """Whether what wandb lacked at the start could be handed in."""
        return self._is_complete

    def _hand_in(self, paths: RunPaths, online: bool, say: Callable[[str], None]) -> bool:
        """Find out what wandb has and send what it lacks of metrics.jsonl; whether that can be told."""
        try:
            self._had, self._had_results = take_stock(_rows_that_wandb_has(self._run, paths, online))
        except Exception as error:  # what is read is wandb's own format, or comes over the network
            say(f"warning: wandb: cannot tell which steps it has ({error}): some may be missing or twice there")
            return False
        for row in read_rows(paths.metrics):
            step, eval_step = row.pop(STEP_KEY, None), row.pop(EVAL_STEP_KEY, None)
            values = {key: math.nan if value is None else value for key, value in row.items()}
            if step is not None:
                self.write(step, values)
            elif eval_step is not None:
                self.write_evaluation(eval_step, values)
        return True

    @staticmethod
    def abandon() -> None:
        """Let go of wandb's service, which would raise again at the end of the process if it is gone."""
        import wandb

        with suppress(Exception):
            wandb.teardown(exit_code=1)


def take_stock(rows: Iterable[Row]) -> tuple[dict[int, frozenset[str]], Counter[Result]]:
    """What wandb has: the keys of each step, and how often each evaluation result.

    Nearly all steps have the same keys, which are kept once. A result that came back after another one is there twice.
    """
    same: dict[frozenset[str], frozenset[str]] = {}
    keys_of_steps: dict[int, frozenset[str]] = {}
    results: Counter[Result] = Counter()
    for row in rows:
        if STEP_KEY in row:
            step = int(row[STEP_KEY])
            keys = keys_of_steps.get(step, frozenset()).union(row)
            keys_of_steps[step] = same.setdefault(keys, keys)
        elif EVAL_STEP_KEY in row:
            step = int(row[EVAL_STEP_KEY])
            own = (key for key in row if key != EVAL_STEP_KEY and not key.startswith("_"))
            results.update((step, key, _number(row[key])) for key in own)
    return keys_of_steps, results


def _number(value: Any) -> float | None:
    """A value as wandb's file (JSON text) or its server has it."""
    return finite_or_none(float(json.loads(value) if isinstance(value, str) else value))


def _rows_that_wandb_has(run: Any, paths: RunPaths, online: bool) -> Iterator[Row]:
    """The rows of earlier starts: those that were kept offline, and those on the server."""
    # A folder run-… is of a start online; how much of it arrived is the server's to say, where it can be asked.
    # Two starts within a second: wandb puts -1 behind the name of the second's.
    started = "offline-run-*" if online else "*run-*"
    yield from chain.from_iterable(map(read_wandb_file, (paths.root / "wandb").glob(f"{started}-{run.id}*/*.wandb")))
    if online and run.resumed:
        import wandb

        yield from wandb.Api().run(f"{run.entity}/{run.project}/{run.id}").scan_history()


def read_wandb_file(path: Path) -> Iterator[Row]:
    """The history in a file that wandb's service wrote, up to where a kill tore it; values are left as JSON text.

    Raises:
        ImportError: This wandb keeps its records elsewhere.
        ValueError: This wandb has another format.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for data in read_records(path):
        record = Record.FromString(data)
        if record.HasField("history"):
            yield {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}


def is_reachable(say: Callable[[str], None]) -> bool:
    """Whether the server answers at all: wandb would wait for it for minutes, at the start and at the end."""
    import httpx

    try:
        httpx.get(_base_url(), timeout=10)
    except httpx.HTTPError as error:
        say(f"warning: wandb: {_base_url()} cannot be reached ({error}): what follows is kept offline")
        return False
    return True


def wandb_mode(mode: WandbMode) -> Literal["online", "offline"] | None:
    """Online only where an API key is: wandb would ask for one otherwise. None: WANDB_MODE decides."""
    if mode is WandbMode.auto and "WANDB_MODE" in os.environ:
        return None
    return "online" if mode is WandbMode.online or (mode is WandbMode.auto and has_wandb_key()) else "offline"


def has_wandb_key() -> bool:
    """Whether wandb could log in without asking: WANDB_API_KEY, or an entry for its host in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(_base_url()).hostname
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


def _base_url() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
