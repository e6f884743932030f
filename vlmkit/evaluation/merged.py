"""The file evals/step_N.json: all results of a checkpoint. It is a superset of the reference's, which is read too.

{"global_step": 500, "results": {"mmstar_average": 0.41}, "stderr": {…}, "n": {…}, "limit": {"mmstar": 100} or null,
 "complete": false, "missing": ["mme"], "why_missing": {"mme": "begun"}, "provenance": {"mmstar": {…}},
 "superseded": {…}}
"""

import json
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from vlmkit.paths import first_free, whole_file

T = TypeVar("T")
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
        provenance = dict(_require(said.get("provenance", {}), dict))
        imported = _of_type(provenance.pop(IMPORTED, {}), str)
        results = finite_numbers(said["results"])
        sources = {task: _read_source(source) for task, source in provenance.items()}
        of_cells = {key for source in sources.values() for key in source.results}
        return Merged(
            path=path,
            step=_require(said["global_step"], int, NoneType),
            results=results,
            stderr=finite_numbers(said.get("stderr", {})),
            n=_of_type(said.get("n", {}), int),
            missing=_of_type(said.get("why_missing", {}), str),
            sources=sources,
            imported={key: imported.get(key, path.name) for key in results if key not in of_cells},
            superseded={name: finite_numbers(former) for name, former in said.get("superseded", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def finite_numbers(values: dict[str, Any]) -> Numbers:
    """What is a number, neither NaN nor infinite, nor too large for a float."""
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    }


def _read_source(said: dict[str, Any]) -> Source:
    """A source as the file has it.

    Raises:
        TypeError: It is none.
    """
    source = Source(**said)
    for result in _require(source.results, list):
        _require(result, str)
    _require(source.limit, int, NoneType)
    for text in (source.key, source.checkpoint, source.fingerprint):
        _require(text, str)
    _require(source.errors, int)
    _require(source.made_with, dict)
    _require(source.cell_is_gone, bool)
    return source


def _of_type(values: dict[str, Any], kind: type[T]) -> dict[str, T]:
    return {key: _require(value, kind) for key, value in values.items()}


def _require(value: Any, *kinds: type) -> Any:
    """The value, if it is of one of these types.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{value!r} is none of {kinds}")
    return value
