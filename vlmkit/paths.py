"""Every file name of a run, once, and the way to write a file that matters."""

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path


def config_dir() -> Path:
    """The folder conf/: beside this package in a clone, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of one run directory."""

    root: Path

    @property
    def config(self) -> Path:
        """The composed config."""
        return self.root / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Git revision, versions, hardware and command of every start."""
        return self.root / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, one line a step at least."""
        return self.root / "metrics.jsonl"

    @property
    def bad_samples(self) -> Path:
        """One JSON object for each sample that could not be read."""
        return self.root / "bad_samples.jsonl"

    @property
    def bad_steps(self) -> Path:
        """One JSON object for each step whose loss or gradient could not be."""
        return self.root / "bad_steps.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the process that trains here."""
        return self.root / ".lock"

    @property
    def delivery_lock(self) -> Path:
        """Held by the process that logs late results, which holds the run for that time too; others wait for it."""
        return self.root / ".delivery.lock"

    @property
    def wandb_pending(self) -> Path:
        """There from before late results are logged until wandb has them too."""
        return self.root / ".wandb_pending"

    @property
    def wandb_run_id(self) -> Path:
        """The id under which wandb knows this run."""
        return self.root / "wandb_run_id"

    @property
    def checkpoints(self) -> Path:
        """The folder of the step_N folders."""
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after this step: a plain transformers folder."""
        return self.checkpoints / f"step_{step}"

    @property
    def all_checkpoints(self) -> dict[int, Path]:
        """Step → folder, of every whole checkpoint."""
        folders = [path for path in self.checkpoints.glob("step_*") if path.name[5:].isdecimal()]
        return {int(path.name[5:]): path for path in folders}

    @property
    def newest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step, or None."""
        found = self.all_checkpoints
        return found[max(found)] if found else None

    @property
    def evals(self) -> Path:
        """The folder of what was evaluated."""
        return self.root / "evals"

    def cells(self, step: int) -> Path:
        """The folder with the evaluation cells of a checkpoint, one for each task."""
        return self.evals / f"step_{step}"

    @property
    def evaluated_steps(self) -> list[int]:
        """Every step that has a folder of cells, in order."""
        names = [path.name for path in self.evals.glob("step_*") if path.is_dir()]
        return sorted(int(name[5:]) for name in names if name[5:].isdecimal())

    def test(self, step: int) -> Path:
        """The result of the final test."""
        return self.root / "test" / f"step_{step}.json"

    def test_samples(self, step: int) -> Path:
        """One line for each question of the final test."""
        return self.root / "test" / f"step_{step}_samples.jsonl"


TRAINER_STATE = "trainer_state"  # inside a checkpoint
PROCESSOR = "vlmkit_processor.json"  # inside a checkpoint
FLOCK = "hhqqi0q"  # struct flock of 64-bit Linux: type, whence, start, length (0: to the end), process


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; the file appears at ``path``, whole, only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def first_free(name: Callable[[int], Path], first: int = 0) -> Path:
    """Of names with a number the first that nothing has yet."""
    return next(path for number in count(first) if not (path := name(number)).exists())


def assets_dir() -> Path:
    """The folder of the data that ships with vlmkit."""
    return Path(__file__).resolve().parent / "assets"


def cache_dir() -> Path:
    """Where indexes are kept: VLMKIT_CACHE, or the user's cache folder. It may be read-only, or not be there."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("VLMKIT_CACHE", user_cache / "vlmkit"))


def is_writable(folder: Path) -> bool:
    """Whether files can be put into a folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


_held: set[tuple[int, int, int]] = set()  # locks, as _identity gives them


@contextmanager
def held_lock(path: Path, wait: bool) -> Iterator[None]:
    """Hold a lock file; the lock goes with the process, however it ends.

    Raises:
        BlockingIOError: Another process holds it, and ``wait`` is False.
        OSError: It cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        # Not flock: loader workers would inherit it.
        fcntl.lockf(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        identity = _identity(os.fstat(lock.fileno()))
        _held.add(identity)
        try:
            yield
        finally:
            _held.discard(identity)


def is_locked(path: Path) -> bool:
    """Whether another process holds a lock file. It is only looked at: nobody is kept from taking it meanwhile."""
    return _asked_lock(path) is not None


def lock_holder(path: Path) -> int | None:
    """The process on this machine that holds a lock file; None if none does, or none that can be seen from here.

    A number alone proves nothing, it may be of another machine of a network file system: the process must have the file
    open.
    """
    process = _asked_lock(path)
    if process is None or process <= 0:
        return None
    with suppress(OSError):  # it ends now, or is another user's
        if any(_is_same(opened, path) for opened in Path(f"/proc/{process}/fd").iterdir()):
            return process
    return None


def _asked_lock(path: Path) -> int | None:
    """The process that holds a lock file, 0 or less if it is on another machine; None if no other process does."""
    try:
        if _identity(path.stat()) in _held:  # to close the file a second time would give this process's lock away
            return None
        with path.open("rb") as lock:
            asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, *_, process = struct.unpack(FLOCK, fcntl.fcntl(lock, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return None
    return None if kind == fcntl.F_UNLCK else process


def _is_same(opened: Path, path: Path) -> bool:
    with suppress(OSError):  # closed meanwhile
        return opened.samefile(path)
    return False


def _identity(stat: os.stat_result) -> tuple[int, int, int]:
    """A file for this process: one that was forked does not hold its parent's locks."""
    return os.getpid(), stat.st_dev, stat.st_ino
