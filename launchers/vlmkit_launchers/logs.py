"""What jobs print."""

import os
from pathlib import Path

from vlmkit.redact import redact

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
