"""``python -m vlmkit.compare``: the table, the notes, the samples that changed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Run, command_environment
from tests.evaluation.cells_on_disk import done_cell
from vlmkit.compare import compare, format_p, format_score
from vlmkit.config import CompareConfig
from vlmkit.evaluation.cells import Aggregation
from vlmkit.tracking.console import Screen

EVIL = "\x1b[31m[bold]red\nline"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs with results for the same step."""
    for name, shift in (("a", 0), ("b", 1)):
        folder = tmp_path / name / "evals" / "step_500"
        scores = [float((i + shift * (i % 4 == 0)) % 2) for i in range(40)]
        lines = [{"answer": EVIL, "prompt": "x" * 1000}]
        done_cell(folder, "textvqa_val", scores, lines=lines, fingerprint=name)
        pairs = [200.0 if shift and i < 30 else 50.0 for i in range(40)]
        clusters, strata = [str(i // 2) for i in range(40)], [f"part {i // 20}" for i in range(40)]
        how = Aggregation.sum_of_strata
        done_cell(folder, "mme", pairs, "mme_perception_score", how, strata, clusters, limit=40, fingerprint=name)
    return tmp_path / "a", tmp_path / "b"


def test_the_table_the_notes_and_the_samples_are_printed_and_written(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "changed.jsonl"
    compare(CompareConfig(a=str(runs[0]), b=str(runs[1]), show=1, out=str(out)), Screen())
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    header = next(line for line in lines if line.startswith("task metric"))
    assert "95 %" in header
    [row] = [line for line in lines if line.startswith("mme mme_perception_score ")]
    assert row.split()[2:5] == ["100.00", "325.00", "-225.00"]
    assert row.split()[-3:] == ["0/15/5", "40", "20"]
    assert "mme: of the first 40 samples only" in lines
    assert "textvqa_val: 10 of 40 samples have another exact_match: 0 better in a, 10 better in b" in lines
    assert any(
        line.startswith("mme: 15 of 20 pairs of samples have another mme_perception_score: 0 ") for line in lines
    )
    assert printed.count("    target   'right'") == 3  # one sample, and one pair of MME
    assert f"    question '{'x' * 299}…" in lines
    assert f"    a        0.0000  {EVIL!r}" in lines
    assert "\x1b" not in printed
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["task"], line["metric"]) for line in written].count(("textvqa_val", "exact_match")) == 10
    assert [len(line["samples"]) for line in written] == [2] * 15 + [1] * 10
    assert written[15]["samples"][0]["answer_a"] == EVIL
    assert written[0].keys() == {"task", "metric", "score_a", "score_b", "samples"}
    assert written[0]["samples"][0].keys() == {"doc_id", "prompt", "pictures", "target", "answer_a", "answer_b"}


def test_a_narrow_terminal_gets_two_tables_and_a_pipe_gets_one(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CompareConfig(a=str(runs[0]), b=str(runs[1]), show=0)
    monkeypatch.setenv("COLUMNS", "80")
    compare(config, Screen())
    assert capsys.readouterr().out.count("task metric") == 1
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    compare(config, Screen())
    printed = capsys.readouterr().out
    tables = [
        line for line in printed.splitlines() if line.startswith(("\x1b[1mtask metric", "mme mme", "textvqa_val e"))
    ]
    assert len(tables) == 6
    assert max(len(line) for line in tables if not line.startswith("\x1b")) <= 80


def test_the_command_compares_without_heavy_imports_and_ends_with_its_reader(tmp_path: Path) -> None:
    """What it has to say is more than a pipe holds."""
    for name, score in (("a", 1.0), ("b", 0.0)):
        lines = [{"prompt": f"{number} {'x' * 1000}"} for number in range(400)]
        done_cell(tmp_path / name / "evals" / "step_500", "mmstar", [score] * 400, lines=lines, fingerprint=name)
    for name in ("torch", "transformers", "lmms_eval"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmkit.compare", "a=a", "b=b", "show=400"],
        cwd=tmp_path,
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.read(16) == b"\nvlmkit.compare\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.wait(timeout=60) != 0


def test_a_mistake_is_one_line(vlmkit: Run, runs: tuple[Path, Path]) -> None:
    done = vlmkit("compare", f"a={runs[0]}", "b=nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: b=nowhere: has no finished evaluation: ")
    assert len(done.stderr.splitlines()) == 1


def test_numbers_are_readable() -> None:
    assert [format_score(0.41236, sign=True), format_score(1234.5), format_score(-0.0)] == [
        "+0.4124",
        "1234.50",
        "-0.0000",
    ]
    assert [format_p(None), format_p(0.00001), format_p(0.04)] == ["-", "<0.0001", "0.0400"]
