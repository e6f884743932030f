"""What is printed is readable in a terminal, in a narrow one, and in a file."""

import pytest

from vlmkit.tracking.console import Screen

COLUMNS = ("task", "score", "samples", "state")
ROWS = [("mmstar", "0.41", "1,500", "[bold]done"), ("日本", "0.5", "10", "running")]


def table(capsys: pytest.CaptureFixture[str]) -> list[str]:
    Screen().table(COLUMNS, ROWS)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_table_in_a_file_is_as_wide_as_it_needs_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    assert table(capsys) == [
        "task    score  samples  state",
        "mmstar  0.41   1,500    [bold]done",
        "日本    0.5    10       running",
    ]


def test_in_a_narrow_terminal_the_columns_follow_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "25")
    plain = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in table(capsys)]
    assert plain == [
        "task    score  samples",
        "mmstar  0.41   1,500",
        "日本    0.5    10",
        "",
        "task    state",
        "mmstar  [bold]done",
        "日本    running",
    ]
