"""What jobs print, and how they ended."""

import os
import signal
from pathlib import Path

from vlmkit.redact import redact

START = "== start"  # begins what a log says of each
TAIL = 16_384  # bytes of a log that are read for its last line


def last_line(log: Path) -> str:
    """The last line of a log that is not empty; "" if there is none, or no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except OSError:
        return ""
    return redact(next((line.strip() for line in reversed(lines) if line.strip()), ""))


def as_shells_do(code: int) -> int:
    """128 + N for a process that signal N ended, as many end themselves after a signal."""
    return 128 - code if code < 0 else code


def how_it_failed(code: int, log: Path) -> str:
    """One line about a command that failed.

    Args:
        code: How it ended, as subprocess has it: -N for signal N.
        log: What it printed, and what was said before it began.
    """
    line = last_line(log)
    said = "" if line.startswith(START) else line
    if code >= 0:
        return f"{said or 'the command failed'} (ended with {code})"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    perhaps = ", perhaps as memory ran out" if name == "SIGKILL" else ""
    return f"ended by {name}{perhaps}" + (f"; it said last: {said}" if said else "")
