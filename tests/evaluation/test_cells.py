"""What lies in a folder of cells may be foreign, torn or a copy; planners may come at the same time."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.cells_on_disk import done_cell, make_order
from vlmkit.evaluation.cells import CellState, plan_cell, read_cell, read_cells


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("order", "limit"), "100"),
        (("order", "task"), None),
        (("order", "temperature"), "hot"),
        (("metrics", "exact_match", "value"), None),
        (("metrics", "exact_match", "n"), "many"),
        (("metrics",), []),
        (("requests",), "all"),
        (("provenance",), None),
        (("state",), "finished"),
    ],
)
def test_a_file_that_says_something_else_is_no_cell(tmp_path: Path, place: tuple[str, ...], value: Any) -> None:
    cell = done_cell(tmp_path, "mmstar", [1.0, 0.0])
    assert read_cell(cell.folder) == cell
    said = inner = json.loads((cell.folder / "cell.json").read_text())
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (cell.folder / "cell.json").write_text(json.dumps(said))
    assert read_cell(cell.folder) is None


def test_a_copy_of_a_cell_is_none(tmp_path: Path) -> None:
    cell = done_cell(tmp_path, "mmstar", [1.0, 0.0])
    shutil.copytree(cell.folder, tmp_path / "mmstar_backup")
    assert read_cells(tmp_path) == [cell]


PLAN = """
import sys
from pathlib import Path
from tests.evaluation.cells_on_disk import make_order
from vlmkit.evaluation.cells import plan_cell
for _ in range(30):
    plan_cell(Path(sys.argv[1]), make_order("mmstar"), force=True)
"""


def test_planners_at_once_put_every_cell_aside_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PLAN, str(tmp_path)]
    planners = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [planner.wait() for planner in planners] == [0, 0]
    assert len(list(tmp_path.glob(".mmstar.*.*"))) == 2 * 30 - 1
    assert read_cells(tmp_path) == [plan_cell(tmp_path, make_order("mmstar"))]


def test_a_name_that_was_freed_is_taken_again(tmp_path: Path) -> None:
    for _ in range(3):
        plan_cell(tmp_path, make_order("mmstar"), force=True)
    first, second = sorted(tmp_path.glob(".mmstar.*.*"))
    shutil.rmtree(first)
    plan_cell(tmp_path, make_order("mmstar"), force=True)
    assert sorted(tmp_path.glob(".mmstar.*.*")) == [first, second]


def test_who_is_only_told_the_folder_finds_what_is_wanted_now(tmp_path: Path) -> None:
    """A result with errors that are not allowed any more goes on, with the checkpoint where it lies now."""
    made = done_cell(tmp_path, "mmstar", [1.0, 0.0], max_errors=1).changed(errors=1)
    wanted = make_order("mmstar", checkpoint="moved/step_500", max_errors=0)
    planned = plan_cell(tmp_path, wanted)
    assert (planned.order, planned.state) == (wanted, CellState.begun)
    assert read_cell(made.folder) == planned
