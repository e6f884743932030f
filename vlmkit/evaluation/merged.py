"""The file evals/step_N.json: all results of a checkpoint. It is a superset of the reference's, which is read too.

{"global_step": 500, "results": {"mmstar_average": 0.41}, "stderr": {…}, "n": {…}, "limit": {"mmstar": 100} or null,
 "complete": false, "missing": ["mme"], "why_missing": {"mme": "begun"}, "provenance": {"mmstar": {…}},
 "superseded": {…}}
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmkit.evaluation.typed import checked, is_finite_number, typed
from vlmkit.paths import first_free, whole_file

Numbers = dict[str, float]
IMPORTED = "imported"  # where the file says what comes from files of the reference
STEP_FILE = re.compile(r"step_(\d+)(_.+)?\.json")  # as the reference names its files, those of single tasks too


@dataclass(frozen=True, slots=True)
class Source:
    """The cell that the results of a task come from."""

    results: list[str]  # their keys
    limit: int | None  # samples, from the task's start; None: all
    key: str  # of what was ordered
    checkpoint: str
    fingerprint: str  # of the checkpoint
    errors: int  # samples that could not be answered; the results are of the others
    made_with: dict[str, Any]  # the cell's provenance
    cell_is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Merged:
    """All results of a checkpoint. Their keys are TASK_METRIC."""

    path: Path
    step: int | None = None  # None outside a run
    results: Numbers = field(default_factory=dict)
    stderr: Numbers = field(default_factory=dict)  # where it is known
    n: dict[str, int] = field(default_factory=dict)  # samples
    missing: dict[str, str] = field(default_factory=dict)  # task that was ordered and has no score → why
    sources: dict[str, Source] = field(default_factory=dict)  # of each task
    imported: dict[str, str] = field(default_factory=dict)  # key of a result that no cell gave → the file it was in
    superseded: dict[str, Numbers] = field(default_factory=dict)  # fingerprint, or "imported" → former results

    @property
    def limit(self) -> dict[str, int]:
        """Task whose result is of its first samples only → how many."""
        return {task: source.limit for task, source in self.sources.items() if source.limit is not None}

    @property
    def complete(self) -> bool:
        """Whether all that was ordered has a score."""
        return not self.missing

    def write(self) -> None:
        """Write the file, whole, if it is not the same already. One that cannot be read is kept under another name."""
        text = json.dumps(self._to_json(), indent=2, ensure_ascii=False) + "\n"
        if self.path.exists() and read_merged(self.path) is None:
            self.path.rename(first_free(lambda number: self.path.with_name(f"{self.path.name}.unreadable{number}"), 1))
        if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
            with whole_file(self.path) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def _to_json(self) -> dict[str, Any]:
        provenance: dict[str, Any] = {task: asdict(source) for task, source in self.sources.items()}
        return {
            "global_step": self.step,
            "results": self.results,
            "stderr": self.stderr,
            "n": self.n,
            "limit": self.limit or None,
            "complete": self.complete,
            "missing": list(self.missing),
            "why_missing": self.missing,
            "provenance": provenance | ({IMPORTED: self.imported} if self.imported else {}),
            "superseded": self.superseded,
        }


def merged_path(folder: Path) -> Path:
    """The file with the results of a folder of cells."""
    return folder.with_name(f"{folder.name}.json")


def read_merged(path: Path) -> Merged | None:
    """The results in a file, also in the reference's form; None if there are none that can be read.

    A result that is of no cell is taken for imported, from this file itself if it names no other.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        provenance = dict(checked(said.get("provenance", {}), dict, "provenance"))
        imported = checked(provenance.pop(IMPORTED, {}), dict[str, str], IMPORTED)
        results = finite_numbers(said["results"])
        sources = {task: typed(Source, **source) for task, source in provenance.items()}
        of_cells = {key for source in sources.values() for key in source.results}
        return typed(
            Merged,
            path=path,
            step=said["global_step"],
            results=results,
            stderr=finite_numbers(said.get("stderr", {})),
            n=said.get("n", {}),
            missing=said.get("why_missing", {}),
            sources=sources,
            imported={key: imported.get(key, path.name) for key in results if key not in of_cells},
            superseded={name: finite_numbers(former) for name, former in said.get("superseded", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def finite_numbers(values: dict[str, Any]) -> Numbers:
    """What is a number, neither NaN nor infinite, nor too large for a float."""
    return {key: value for key, value in values.items() if is_finite_number(value)}
