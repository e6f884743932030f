"""From cells to evals/step_N.json: truthful, the same however often, and nothing gets lost."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import command_environment
from tests.evaluation.cells_on_disk import done_cell, make_order, planned_cell, say_checkpoint, unfinished_cell
from vlmkit.evaluation.cells import CellState, Metric
from vlmkit.evaluation.merge import counted_cells, merge_run, merge_subject
from vlmkit.evaluation.merged import Merged, read_merged
from vlmkit.jobs import Job, JobPlace, JobReport, JobState, Launcher
from vlmkit.paths import RunPaths

UNFINISHED = (CellState.planned, CellState.begun, CellState.failed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the cells of step 500."""
    return RunPaths(tmp_path).cells(500)


def merged_json(folder: Path) -> Any:
    merge_subject(folder)
    return json.loads(folder.with_name("step_500.json").read_text())


def write_reference(folder: Path, name: str, results: dict[str, Any], step: int = 500) -> Path:
    """A file as nanoVLM writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({"global_step": step, "results": results}, indent=4))
    return path


def test_the_file_says_what_the_design_says(folder: Path) -> None:
    done_cell(folder, "mmstar", [1, 0, 1, 1], metric="average")
    done_cell(folder, "textvqa_val", [0.5, 1.0], limit=2)
    unfinished_cell(folder, "mme", CellState.failed)
    said = merged_json(folder)
    provenance = said.pop("provenance")
    assert said == {
        "global_step": 500,
        "results": {"mmstar_average": 0.75, "textvqa_val_exact_match": 0.75},
        "stderr": {"mmstar_average": pytest.approx(0.25), "textvqa_val_exact_match": pytest.approx(0.25)},
        "n": {"mmstar_average": 4, "textvqa_val_exact_match": 2},
        "limit": {"textvqa_val": 2},
        "complete": False,
        "missing": ["mme"],
        "why_missing": {"mme": "failed: ValueError: no such thing"},
        "superseded": {},
    }
    assert provenance["mmstar"] == {
        "results": ["mmstar_average"],
        "limit": None,
        "key": make_order("mmstar").key,
        "checkpoint": "checkpoints/step_500",
        "fingerprint": make_order("mmstar").fingerprint,
        "errors": 0,
        "made_with": {"finished": "2026-11-24"},
        "cell_is_gone": False,
    }


def test_without_a_limited_task_limit_is_null_and_all_done_is_complete(folder: Path) -> None:
    done_cell(folder, "mmstar", [1, 0])
    said = merged_json(folder)
    assert (said["limit"], said["complete"], said["missing"]) == (None, True, [])


def test_the_file_is_read_back_as_it_was_written(folder: Path) -> None:
    done_cell(folder, "mmstar", [1, 0])
    done_cell(folder, "mme", [1, 0], limit=2)
    planned_cell(folder, "mme")
    write_reference(folder.parent, "step_500_docvqa_val.json", {"docvqa_val_anls": 0.5})
    merged = merge_subject(folder)
    assert merged is not None
    assert read_merged(merged.path) == merged
    assert (merged.limit, merged.missing, merged.complete) == ({"mme": 2}, {"mme": "planned"}, False)


def test_a_merge_that_finds_nothing_new_does_not_touch_the_file(folder: Path) -> None:
    done_cell(folder, "mmstar", [1, 0])
    write_reference(folder.parent, "step_500_mme.json", {"mme_mme_cognition_score": 200})
    first = merge_subject(folder)
    assert first is not None
    before = first.path.stat()
    assert merge_subject(folder) == first
    after = first.path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_full_result_goes_before_a_limited_one_whichever_came_first(folder: Path) -> None:
    done_cell(folder, "mmstar", [1, 1], limit=2)
    done_cell(folder, "mmstar", [1, 0, 0, 0], limit=4)
    assert merged_json(folder)["results"] == {"mmstar_exact_match": 0.25}
    done_cell(folder, "mmstar", [0, 0, 0, 0])
    said = merged_json(folder)
    assert (said["results"], said["limit"]) == ({"mmstar_exact_match": 0}, None)
    done_cell(folder, "mmstar", [1] * 8, limit=8)
    assert merged_json(folder)["results"] == {"mmstar_exact_match": 0}


def test_a_limited_result_does_not_hide_that_the_full_one_is_missing(folder: Path) -> None:
    done_cell(folder, "mmstar", [1, 1], limit=2)
    unfinished_cell(folder, "mmstar", CellState.begun)
    said = merged_json(folder)
    assert said["results"] == {"mmstar_exact_match": 1}
    assert (said["limit"], said["missing"], said["why_missing"]) == ({"mmstar": 2}, ["mmstar"], {"mmstar": "begun"})


def test_a_limited_order_is_not_missing_beside_a_full_result(folder: Path) -> None:
    done_cell(folder, "mmstar", [1, 1])
    planned_cell(folder, "mmstar", limit=1)
    assert merged_json(folder)["missing"] == []


def test_a_cell_without_a_number_is_missing(folder: Path) -> None:
    cell = done_cell(folder, "mmstar", [1, 0])
    cell.changed(metrics={"average": Metric(float("nan"), 2)})
    said = merged_json(folder)
    assert (said["results"], said["why_missing"]) == ({}, {"mmstar": "gives no number"})
    done_cell(folder, "docvqa_test", [1]).changed(metrics={})
    assert merged_json(folder)["missing"] == ["docvqa_test", "mmstar"]


def test_results_of_cells_that_were_deleted_stay(folder: Path) -> None:
    done_cell(folder, "mmstar", [1, 0])
    done_cell(folder, "mme", [1, 1])
    before = merged_json(folder)
    shutil.rmtree(folder / "mmstar")
    after = merged_json(folder)
    kept = ("results", "stderr", "n", "missing")
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    assert {task: source["cell_is_gone"] for task, source in after["provenance"].items()} == {
        "mme": False,
        "mmstar": True,
    }
    shutil.rmtree(folder)
    assert merged_json(folder)["results"] == before["results"]


def test_a_cell_that_is_ordered_anew_is_missing_until_it_is_done(folder: Path) -> None:
    done_cell(folder, "mmstar", [1, 0])
    merge_subject(folder)
    planned_cell(folder, "mmstar", temperature=0.5)
    said = merged_json(folder)
    assert (said["results"], said["missing"]) == ({}, ["mmstar"])
    done_cell(folder, "mmstar", [1, 1], temperature=0.5)
    said = merged_json(folder)
    assert (said["results"], said["complete"]) == ({"mmstar_exact_match": 1}, True)


def test_checkpoints_of_the_same_name_are_never_mixed(folder: Path) -> None:
    old = done_cell(folder, "mmstar", [1, 1], fingerprint="old")
    done_cell(folder, "mme", [1, 1], fingerprint="old")
    say_checkpoint(folder, "old")
    assert merged_json(folder)["complete"]
    say_checkpoint(folder, "new")
    planned_cell(folder, "mme", fingerprint="new")
    said = merged_json(folder)
    assert said["results"] == {}
    assert said["why_missing"] == {"mme": "planned", "mmstar": "its cell is of another checkpoint"}
    former = {"old": {"mme_exact_match": 1.0, "mmstar_exact_match": 1.0}}
    assert said["superseded"] == former
    done_cell(folder, "mmstar", [0, 1], fingerprint="new")
    done_cell(folder, "mme", [0, 0], fingerprint="new")
    said = merged_json(folder)
    assert said["results"] == {"mme_exact_match": 0, "mmstar_exact_match": 0.5}
    assert (said["superseded"], said["complete"]) == (former, True)
    assert old.order.fingerprint != said["provenance"]["mmstar"]["fingerprint"]


def test_without_a_word_of_the_checkpoint_the_newest_cell_tells_it(folder: Path) -> None:
    first = done_cell(folder, "mmstar", [1, 1], fingerprint="old")
    done_cell(folder, "mme", [0, 0], fingerprint="new").changed()
    assert merged_json(folder)["results"] == {"mme_exact_match": 0}
    first.changed()
    assert merged_json(folder)["results"] == {"mmstar_exact_match": 1}
    assert list(counted_cells(folder)) == ["mmstar"]


def test_files_of_the_reference_are_imported_and_never_replace_a_cell_s(folder: Path, tmp_path: Path) -> None:
    done_cell(folder, "mmstar", [1, 0], metric="average")
    theirs = tmp_path / "eval_results"
    parts = {"mmstar_average": 0.9, "mmstar_average_stderr": 0.1, "textvqa_val_exact_match": 0.3, "mmstar_samples": 4}
    write_reference(folder.parent, "step_500_mmstar,textvqa_val.json", parts)
    write_reference(folder.parent, "step_500_docvqa_val.json", {"docvqa_val_anls": 0.1})
    write_reference(theirs, "step_500.json", {"docvqa_val_anls": 0.4, "chartqa_alias": "x", "mme_score": float("nan")})
    write_reference(theirs, "step_500_ocrbench.json", {"ocrbench_ocrbench_accuracy": 0.2})
    merge_run(RunPaths(tmp_path), theirs)
    for path in theirs.iterdir():
        path.unlink()
    [merged] = merge_run(RunPaths(tmp_path))
    assert merged.results == {
        "mmstar_average": 0.5,
        "docvqa_val_anls": 0.4,
        "ocrbench_ocrbench_accuracy": 0.2,
        "textvqa_val_exact_match": 0.3,
    }
    assert merged.imported == {
        "docvqa_val_anls": str(theirs / "step_500.json"),
        "ocrbench_ocrbench_accuracy": str(theirs / "step_500_ocrbench.json"),
        "textvqa_val_exact_match": "step_500_mmstar,textvqa_val.json",
    }
    said = json.loads(merged.path.read_text())
    assert said["provenance"]["imported"] == merged.imported
    assert list(said["stderr"]) == ["mmstar_average"]
    assert said["superseded"] == {"imported": {"mmstar_average": 0.9}}


def test_a_step_file_of_the_reference_is_taken_up_where_it_lies(folder: Path, tmp_path: Path) -> None:
    write_reference(folder.parent, "step_500.json", {"mmstar_average": 0.4})
    write_reference(folder.parent, "step_1000.json", {"mmstar_average": 0.5}, step=1000)
    steps = {merged.step: merged for merged in merge_run(RunPaths(tmp_path))}
    assert steps[500].results == {"mmstar_average": 0.4}
    assert steps[500].imported == {"mmstar_average": "step_500.json"}
    done_cell(folder, "textvqa_val", [1, 1])
    merged = merge_subject(folder)
    assert merged is not None
    assert merged.results == {"textvqa_val_exact_match": 1, "mmstar_average": 0.4}
    said = json.loads(merged.path.read_text())
    said["results"]["mme_score"] = 7.0  # as nanoVLM adds to a file that is there
    merged.path.write_text(json.dumps(said))
    again = merge_subject(folder)
    assert again is not None
    assert again.results == merged.results | {"mme_score": 7.0}
    assert again.imported == {"mmstar_average": "step_500.json", "mme_score": "step_500.json"}


def test_an_import_that_changed_is_imported_again(folder: Path) -> None:
    write_reference(folder.parent, "step_500_mmstar.json", {"mmstar_average": 0.4})
    assert merged_json(folder)["results"] == {"mmstar_average": 0.4}
    write_reference(folder.parent, "step_500_mmstar.json", {"mmstar_average": 0.6})
    assert merged_json(folder)["results"] == {"mmstar_average": 0.6}


def test_naming_the_run_s_own_folder_imports_nothing_twice(folder: Path, tmp_path: Path) -> None:
    done_cell(folder, "mmstar", [1, 0])
    merge_subject(folder)
    [merged] = merge_run(RunPaths(tmp_path), folder.parent / ".." / "evals")
    assert (merged.imported, merged.superseded) == ({}, {})


def test_a_file_of_another_step_is_not_imported(folder: Path) -> None:
    write_reference(folder.parent, "step_500_mmstar.json", {"mmstar_average": 0.4}, step=400)
    assert merge_subject(folder) is None


@pytest.mark.parametrize("torn", ["", "{", "[]", "null", '{"results": 3}', '{"global_step": 500, "results": {"a": 1'])
def test_what_cannot_be_read_in_the_place_of_the_file_is_kept(folder: Path, torn: str) -> None:
    done_cell(folder, "mmstar", [1, 0])
    path = folder.with_name("step_500.json")
    path.write_text(torn)
    assert merged_json(folder)["results"] == {"mmstar_exact_match": 0.5}
    assert path.with_name("step_500.json.unreadable1").read_text() == torn


def test_nothing_is_written_where_nothing_is_known(folder: Path, tmp_path: Path) -> None:
    assert merge_subject(folder) is None
    assert merge_run(RunPaths(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("foreign")
    assert merge_subject(folder) is None
    assert not folder.with_name("step_500.json").exists()


def test_a_folder_outside_a_run_has_no_step(tmp_path: Path) -> None:
    done_cell(tmp_path / "runs" / "evals" / "smolvlm-2.2b", "mmstar", [1], step=None)
    merged = merge_subject(tmp_path / "runs" / "evals" / "smolvlm-2.2b")
    assert merged is not None
    assert (merged.path.name, merged.step) == ("smolvlm-2.2b.json", None)
    assert read_merged(merged.path) == merged


def test_another_hand_that_writes_a_cell_is_not_disturbed(folder: Path) -> None:
    """POSIX locks are a process's: a merge in the process that answers must not let go of them."""
    cell = unfinished_cell(folder, "mmstar", CellState.begun)
    code = f"""
import sys; from pathlib import Path
from vlmkit.evaluation.cells import read_cell
print(read_cell(Path({str(cell.folder)!r})).is_held)
"""
    with cell.held():
        assert merged_json(folder)["why_missing"] == {"mmstar": "begun"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=command_environment()
        )
    assert done.stdout == "True\n"


SEVERAL = """
import sys; from pathlib import Path
from tests.evaluation.cells_on_disk import done_cell
from vlmkit.evaluation.merge import merge_subject
folder, name = Path(sys.argv[1]), sys.argv[2]
for number in range(10):
    done_cell(folder, f"task_{name}_{number}", [1, 0])
    merged = merge_subject(folder)
    assert {f"task_{name}_{before}" for before in range(number + 1)} <= set(merged.sources)
"""


def test_merges_at_once_lose_nothing(folder: Path) -> None:
    """Processes that finish cells and merge: if an older view could be written last, a result would be missing."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SEVERAL, str(folder), str(number)],
            env=command_environment(),
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    seen: set[str] = set()
    while any(worker.poll() is None for worker in workers):
        if folder.with_name("step_500.json").exists():
            now = set(json.loads(folder.with_name("step_500.json").read_text())["results"])
            assert seen <= now
            seen = now
    assert [worker.communicate()[1] for worker in workers] == ["", "", ""]
    assert len(json.loads(folder.with_name("step_500.json").read_text())["results"]) == 30


CELLS = st.fixed_dictionaries(
    {
        "state": st.sampled_from(list(CellState)),
        "limit": st.sampled_from([None, 2, 5]),
        "fingerprint": st.sampled_from(["new", "new", "old"]),
    }
)
BROKEN_CELLS = ("x/cell.json", "mmstar/cell.json")
FOREIGN = st.lists(
    st.tuples(
        st.sampled_from(
            ["mmstar/cell.json", "x/cell.json", ".hidden/cell.json", "notes.txt", "y/samples.jsonl", "z/z"]
        ),
        st.sampled_from(["", "{", "[]", '{"format": 99}', '{"format": 1, "order": 3}', "\x00\udc80"]),
    ),
    max_size=4,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c.d"]), st.lists(CELLS, max_size=3), max_size=3), FOREIGN)
def test_whatever_lies_there_the_file_is_truthful(
    tmp_path_factory: pytest.TempPathFactory, tasks: dict[str, list[dict[str, Any]]], foreign: list[tuple[str, str]]
) -> None:
    folder = RunPaths(tmp_path_factory.mktemp("run")).cells(500)
    say_checkpoint(folder, "new")
    for task, cells in tasks.items():
        for cell in cells:
            order = {"limit": cell["limit"], "fingerprint": cell["fingerprint"]}
            if cell["state"] is CellState.done:
                done_cell(folder, task, [1, 0], **order)
            else:
                unfinished_cell(folder, task, cell["state"], **order)
    for name, text in foreign:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    merged = merge_subject(folder)
    assert files == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # What counts on disk: the last order of each name.
    last = {(task, cell["limit"]): cell for task, cells in tasks.items() for cell in cells}
    results, limits, missing = (
        {},
        {},
        {name.split("/")[0] for name, _ in foreign if name in ("mmstar/cell.json", "x/cell.json")},
    )
    for task in {task for task, _ in last}:
        own = [cell for (name, _), cell in last.items() if name == task and cell["fingerprint"] == "new"]
        own.sort(key=lambda cell: cell["limit"] or 99, reverse=True)
        done = [cell for cell in own if cell["state"] is CellState.done]
        if not own or own[0]["state"] is not CellState.done:
            missing.add(task)
        if done:
            results[f"{task}_exact_match"] = 0.5
            if done[0]["limit"]:
                limits[task] = done[0]["limit"]
    found = merged or Merged(folder)
    assert (found.results, found.limit, set(found.missing)) == (results, limits, missing)
    assert found.complete == (not missing)
    assert merge_subject(folder) == merged


def places_of(said: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys to everything in an object."""
    inner = said.items() if isinstance(said, dict) else ()
    return [place, *(found for key, value in inner for found in places_of(value, (*place, key)))]


def with_value(said: Any, place: tuple[str, ...], value: Any) -> Any:
    return {**said, place[0]: with_value(said[place[0]], place[1:], value)} if place else value


@pytest.mark.parametrize("value", [None, "x", -1, 10**400, [5], [[5, {}]], {"a": []}], ids=str)
def test_whatever_an_earlier_file_says_does_not_keep_cells_from_being_merged(folder: Path, value: Any) -> None:
    done_cell(folder, "mmstar", [1, 0])
    done_cell(folder, "mme", [1, 1], limit=2, fingerprint="old")
    done_cell(folder, "mme", [1, 1])
    write_reference(folder.parent, "step_500_docvqa_val.json", {"docvqa_val_anls": 0.5})
    say_checkpoint(folder, make_order("mme").fingerprint)
    said = merged_json(folder)
    path = folder.with_name("step_500.json")
    for place in places_of(said):
        path.write_text(json.dumps(with_value(said, place, value)))
        merged = merge_subject(folder)
        assert merged is not None
        assert {key: merged.results[key] for key in said["results"]} == said["results"], place
        assert read_merged(path) == merged, place


def test_why_a_job_left_no_result_is_said_until_another_one_has_the_cell(folder: Path) -> None:
    cell = planned_cell(folder, "mmstar")
    place = JobPlace.of_cell(cell.folder)
    job = Job(Launcher.slurm, "12_3", ["python"], str(cell.folder), "12_3.log", 0.0)
    job.write(place)
    JobReport("12_3", JobState.failed, "error: no room (ended with 1)", None, 0.0).write(place)
    told = "planned; job 12_3 failed: error: no room (ended with 1); see 12_3.log"
    assert merged_json(folder)["why_missing"] == {"mmstar": told}
    replace(job, job_id="13").write(place)
    assert merged_json(folder)["why_missing"] == {"mmstar": "planned"}
