"""How a failure is told from the end of a log."""

from pathlib import Path

import pytest

from vlmkit.logs import START, how_it_failed


@pytest.mark.parametrize(
    ("code", "printed", "told"),
    [
        (1, "Traceback\nValueError: no good\n\n", "ValueError: no good (ended with 1)"),
        (1, "", "the command failed (ended with 1)"),
        (-11, "step 7\n", "ended by SIGSEGV; it said last: step 7"),
        (-9, "", "ended by SIGKILL, perhaps as memory ran out"),
        (-40, "", "ended by signal 40"),
    ],
)
def test_a_failure_is_told_in_one_line(tmp_path: Path, code: int, printed: str, told: str) -> None:
    (tmp_path / "log").write_text(f"{START} 1: python -m vlmkit.train\n{printed}")
    assert how_it_failed(code, tmp_path / "log") == told
