"""Locks, as several processes see them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Held, command_environment
from vlmkit.paths import held_lock, is_locked, lock_holder

HOLD = "with held_lock(lock, wait=False): print('ready', flush=True); sys.stdin.read()"
LOOK = "print('ready', flush=True)\nwhile True: is_locked(lock)"
TELL = "print('locked' if is_locked(lock) else 'free', flush=True)"


@contextmanager
def another_process(code: str, lock: Path) -> Iterator[str]:
    """One that works on a lock file until the block ends; gives the first line that it prints."""
    imports = "import sys; from pathlib import Path; from vlmkit.paths import held_lock, is_locked"
    command = [sys.executable, "-c", f"{imports}; lock = Path(sys.argv[1])\n{code}", str(lock)]
    environment = command_environment() | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_lock_is_seen_as_long_as_another_process_holds_it_and_may_be_read_only(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    assert not is_locked(lock)
    with another_process(HOLD, lock):
        lock.chmod(0o444)
        assert is_locked(lock)
        with pytest.raises(BlockingIOError), held_lock(lock, wait=False):
            pass
    assert not is_locked(lock)


def test_who_looks_keeps_nobody_from_taking_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch()
    with another_process(LOOK, lock):
        for _ in range(2000):
            with held_lock(lock, wait=False):
                pass


def test_who_holds_a_lock_may_look_and_still_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with held_lock(lock, wait=False):
        assert not is_locked(lock)  # by another process
        with another_process(TELL, lock) as told:
            assert told == "locked"
    with another_process(TELL, lock) as told:
        assert told == "free"


def test_the_holder_of_a_lock_is_known_by_what_it_has_open(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert lock_holder(lock) is None
    held = Held(lock)
    with held:
        assert lock_holder(lock) == held.process.pid
    assert lock_holder(lock) is None
    with held_lock(lock, wait=False):
        assert lock_holder(lock) is None  # one's own
