"""Metrics in wandb: online or offline without a question, each step once, however often the run was stopped."""

import math
import netrc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from vlmkit.config import LoggerConfig, WandbMode
from vlmkit.paths import RunPaths, whole_file
from vlmkit.redact import redact
from vlmkit.tracking.jsonl import STEP_KEY, read_rows

Row = dict[str, Any]


class WandbTracker:
    """The rows of metrics.jsonl in wandb, over ``global_step``; never with wandb's own step, which drops late rows.

    wandb's service loses what it has not yet sent or written when a run is killed, and it keeps the steps that a
    resumed run repeats. So the start asks what wandb has: rows of metrics.jsonl that it lacks are handed in, and
    steps that it has are not sent again (they are the same ones).
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
        self._had: dict[int, frozenset[str]] = {}
        self._hand_in(paths, online, say)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Log what wandb lacks of a row."""
        new = {key: value for key, value in metrics.items() if key not in self._had.get(step, ())}
        if new:
            self._run.log({STEP_KEY: step, **new})

    def flush(self) -> None:
        """Nothing: wandb writes when it likes; what it loses to a kill the next start hands in."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()

    def _hand_in(self, paths: RunPaths, online: bool, say: Callable[[str], None]) -> None:
        """Find out what wandb has and send what it lacks of metrics.jsonl."""
        try:
            self._had = keys_of_steps(_rows_that_wandb_has(self._run, paths, online))
        except Exception as error:  # what is read is wandb's own format, or comes over the network
            say(f"warning: wandb: cannot tell which steps it has ({error}): some may be missing or twice there")
            return
        for row in read_rows(paths.metrics):
            if (step := row.pop(STEP_KEY, None)) is not None:
                self.write(step, {key: math.nan if value is None else value for key, value in row.items()})

    @staticmethod
    def abandon() -> None:
        """Let go of wandb's service, which would raise again at the end of the process if it is gone."""
        import wandb

        with suppress(Exception):
            wandb.teardown(exit_code=1)


def keys_of_steps(rows: Iterable[Row]) -> dict[int, frozenset[str]]:
    """What wandb has of each step; nearly all steps have the same keys, which are kept once."""
    same: dict[frozenset[str], frozenset[str]] = {}
    found: dict[int, frozenset[str]] = {}
    for row in rows:
        if STEP_KEY in row:
            step = int(row[STEP_KEY])
            keys = found.get(step, frozenset()).union(row)
            found[step] = same.setdefault(keys, keys)
    return found


def _rows_that_wandb_has(run: Any, paths: RunPaths, online: bool) -> Iterator[Row]:
    """The rows of earlier starts: those that were kept offline, and those on the server."""
    # A folder run-… is of a start online; how much of it arrived is the server's to say, where it can be asked.
    started = "offline-run-*" if online else "*run-*"
    yield from chain.from_iterable(map(read_wandb_file, (paths.root / "wandb").glob(f"{started}-{run.id}/*.wandb")))
    if online and run.resumed:
        import wandb

        yield from wandb.Api().run(f"{run.entity}/{run.project}/{run.id}").scan_history()


def read_wandb_file(path: Path) -> Iterator[Row]:
    """The history in a file that wandb's service wrote, up to where a kill tore it; values are left as JSON text.

    Raises:
        ImportError: This wandb keeps its format elsewhere.
    """
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    try:
        store.open_for_scan(path)
        while (data := store.scan_data()) is not None:
            record = Record.FromString(data)
            if record.HasField("history"):
                yield {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
    except AssertionError:  # how the reader says that a block is not whole
        pass
    finally:
        store.close()


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
