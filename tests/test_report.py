"""``python -m vlmkit.report``: what is refused in a line, how the command line is read, what it prints and writes."""

import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import Run, compose_as_hydra, composed
from tests.reporting.sweeps.made_up_sweep import RELEVANCE, MadeUpSweep, run_name
from vlmkit import entry
from vlmkit.config import ReportConfig
from vlmkit.errors import ConfigError
from vlmkit.preflight import check_report
from vlmkit.report import report
from vlmkit.tracking.console import Screen


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made_up = MadeUpSweep(axes={RELEVANCE: (1, 3)}, seeds=(0, 1), steps=(10,), questions=60, with_pictures=False)
    return made_up.write(tmp_path_factory.mktemp("sweeps") / "relevance")


def test_the_table_and_the_answer_are_printed_and_the_page_is_written(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(ReportConfig(sweep=str(sweep)), "python -m vlmkit.report", tmp_path / "out", Screen())
    printed = capsys.readouterr().out.splitlines()
    header = next(line for line in printed if line.startswith("variant "))
    assert header.split() == ["variant", "runs", "kept", "easyvqa", "exact_match", "validation", "loss"]
    assert any(re.match(r"relevance_min_rating 3 +2 +75.0% +0\.", line) for line in printed)
    assert any(line.startswith("relevance_min_rating 3 is best by easyvqa exact_match") for line in printed)
    assert printed[-1] == f"page        {tmp_path / 'out' / 'index.html'}"
    page = (tmp_path / "out" / "index.html").read_text().replace("<wbr>", "")
    assert "relevance_min_rating 3 is best" in page


def test_lists_of_settings_and_of_runs_need_no_quotes(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep)
    runs = [run_name({RELEVANCE: value}, seed) for value in (1, 3) for seed in (0, 1)]
    arguments = [f"runs=[{','.join(runs)}]", f"baseline=[{RELEVANCE}=3]", "tasks=[easyvqa]", 'out="a,b"']
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    entry.quote_lists("runs", "baseline")
    config = composed("report", *sys.argv[1:])
    assert (config.runs, config.baseline) == (runs, [f"{RELEVANCE}=3"])
    assert (config.tasks, config.out) == (["easyvqa"], "a,b")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[]", []),
        ("null", None),
        ("[a, b,]", ["a", "b"]),
        ("a,b", ["a", "b"]),
        ("['a,b']", ["a,b"]),
        ("[~/a/]", ["~/a/"]),
    ],
)
def test_a_list_is_read_as_it_is_written(written: str, read: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", f"runs={written}"])
    entry.quote_lists("runs")
    assert OmegaConf.select(compose_as_hydra("report", *sys.argv[1:]), "runs") == read


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "sweep, runs: give one of them"),
        ({"sweep": "a", "runs": ["b"]}, "sweep, runs: give one of them"),
        ({"sweep": "a", "confidence": 1.0}, "confidence=1.0: must be between 0 and 1"),
        ({"sweep": "a", "baseline": ["relevance"]}, "baseline=relevance: must be settings as in"),
        ({"sweep": "a", "tasks": []}, r"tasks=\[\]: must be some"),
    ],
)
def test_values_that_cannot_be_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ReportConfig(**given)


def test_what_is_not_there_is_refused_before_anything_is_read(sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for config, folder, told in (
        (ReportConfig(sweep="nowhere"), tmp_path, "sweep=nowhere: must be the folder of a sweep"),
        (ReportConfig(runs=["nowhere"]), tmp_path, "runs=nowhere: must be a run directory"),
        (ReportConfig(sweep=str(sweep)), file, f"out={file}: must be a folder, not a file"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_report(config, folder)


@pytest.mark.slow
def test_the_command_writes_into_the_sweep_and_a_mistake_is_one_line(vlmkit: Run, sweep: Path) -> None:
    done = vlmkit("report", f"sweep={sweep}", f"baseline=[{RELEVANCE}=1]", "samples=0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"page        {sweep / 'report' / 'index.html'}"
    done = vlmkit("report", f"sweep={sweep}", f"baseline=[{RELEVANCE}=2]")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: baseline=[{RELEVANCE}=2]: fits no variant; there are: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_written_in_is_one_line(vlmkit: Run, sweep: Path) -> None:
    """Nobody can make a folder in /proc, though root may seem to be allowed to."""
    done = vlmkit("report", f"sweep={sweep}", "out=/proc/report")
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: out=/proc/report")
    assert "Traceback" not in done.stderr
