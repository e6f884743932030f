"""``python -m vlmkit.merge``: a line for each step."""

import json
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.evaluation.cells_on_disk import done_cell, unfinished_cell
from vlmkit.config import MergeConfig
from vlmkit.errors import ConfigError, UserError
from vlmkit.evaluation.cells import CellState
from vlmkit.merge import merge
from vlmkit.paths import RunPaths
from vlmkit.preflight import check_merge
from vlmkit.tracking.console import Screen


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "filter.relevance_min_rating=3,seed=1")  # as a sweep names it


def test_each_step_has_a_line_with_what_is_missing(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    done_cell(paths.cells(500), "mmstar", [1, 0])
    done_cell(paths.cells(1000), "mmstar", [1, 0])
    done_cell(paths.cells(1000), "mme", [1, 0] * 600, limit=1200)
    unfinished_cell(paths.cells(1000), "docvqa_val", CellState.failed)
    unfinished_cell(paths.cells(1000), "textvqa_val", CellState.begun)
    merge(paths, None, Screen())
    assert capsys.readouterr().out.splitlines() == [
        "step 500: complete: 1 task",
        "step 1000: incomplete: 2 tasks; missing: docvqa_val (failed: ValueError: no such thing), textvqa_val (begun); "
        "of the first samples only: mme (1,200)",
    ]


def test_the_command_imports_nothing_heavy_and_reads_the_reference_s_files(
    vlmkit: Run, paths: RunPaths, tmp_path: Path
) -> None:
    for name in ("torch", "transformers", "lmms_eval", "scipy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    done_cell(paths.cells(500), "mmstar", [1, 0])
    theirs = tmp_path / "eval_results"
    theirs.mkdir()
    for step in (500, 2000):
        said = {"global_step": step, "results": {"mmstar_exact_match": 0.9, "ocrbench_ocrbench_accuracy": 0.3}}
        (theirs / f"step_{step}.json").write_text(json.dumps(said))
    done = vlmkit("merge", f"run={paths.root}", f"results={theirs}")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "step 500: complete: 1 task; imported results: 1",
        "step 2000: complete: 0 tasks; imported results: 2",
    ]
    results = json.loads((paths.evals / "step_500.json").read_text())["results"]
    assert results == {"mmstar_exact_match": 0.5, "ocrbench_ocrbench_accuracy": 0.3}
    assert len(list(theirs.iterdir())) == 2


def test_what_is_new_is_logged_once(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    done_cell(paths.cells(500), "mmstar", [1, 0])
    paths.config.write_text("logger: {wandb: disabled}")
    for _ in range(2):
        merge(paths, None, Screen())
    told = "evaluated step 500: mmstar_exact_match 0.5000 ± 0.5000"
    assert capsys.readouterr().out.replace("lmms_eval/", "").count(told) == 1
    [row] = map(json.loads, paths.metrics.read_text().splitlines())
    assert row["<lmms-eval-step>"] == 500
    assert row["lmms_eval/mmstar_exact_match"] == 0.5


def test_a_mistake_is_told_with_its_key(paths: RunPaths, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^run=.*nowhere: must be a run directory$"):
        check_merge(MergeConfig(run=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"^results=.*: must be a folder with step_N\.json or step_N_TASK\.json$"):
        check_merge(MergeConfig(run=str(tmp_path), results=str(tmp_path)))
    with pytest.raises(UserError, match=r"^run=.*: nothing was evaluated there yet"):
        merge(paths, None, Screen())
