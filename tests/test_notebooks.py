"""The notebooks run, each on a sweep of its own kind made small, and show what they promise."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import Run

ROOT = Path(__file__).parents[1]


def run_notebook(name: str, **environment: str) -> nbformat.NotebookNode:
    """Execute a notebook in its folder, in a kernel of this Python; an exception in a cell is raised here."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    NotebookClient(notebook, timeout=600, resources=resources).execute(env=os.environ | environment)
    return notebook


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """All that cells displayed of a MIME type."""
    found = (output.get("data", {}).get(kind) for cell in notebook.cells for output in cell.get("outputs", ()))
    return [text for text in found if text]


def printed(notebook: nbformat.NotebookNode, stream: str) -> list[str]:
    """All that cells wrote to a stream."""
    found = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return [output.text for output in found if output.get("name") == stream]


@pytest.mark.slow
def test_the_rating_ablation_reads_a_sweep(vlmkit: Run, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    small = ["trainer.max_training_steps=4", "trainer.eval_interval=2", "evals.schedule=[{from_step:2}]"]
    small += ["filter=default,all_3", "seed=0,1", "eval_suite.limit=64"]
    done = vlmkit("train", "-m", "experiment=rating_ablation_quick", *small, f"hydra.sweep.dir={sweep}")
    assert done.returncode == 0, done.stderr

    notebook = run_notebook("rating_ablation.ipynb", SWEEP=str(sweep))

    assert not [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("name") == "stderr"
    ]
    assert len(outputs(notebook, "image/png")) >= 6, "differences, thresholds, three curves, turns kept"
    html = "".join(outputs(notebook, "text/html"))
    assert "all ratings ≥ 3" in html
    assert "relevance" in html
    assert html.count("data:image/png;base64,") == 3, "rows of the training data"
