"""Where the files of lmms-eval's tasks are, by name: found in a moment, without importing lmms-eval."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

OWN_TASKS = Path(__file__).parent / "lmms_tasks"  # the tasks that ship with vlmkit, in lmms-eval's format
NAME_LINE = re.compile(r"""^["']?task["']?[ \t]*:[ \t]*["']?([\w.+-]+)["']?[ \t]*(?:\#.*)?$""", re.MULTILINE)


def lmms_eval_folder() -> Path | None:
    """Where lmms-eval is installed; None if it is not."""
    package = find_spec("lmms_eval")
    return Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else None


def find_task_folder(name: str) -> Path | None:
    """The folder whose yaml files describe a task; None if none does (a group of tasks has none either)."""
    return _task_folders().get(name)


@cache
def _task_folders() -> dict[str, Path]:
    installed = lmms_eval_folder()
    roots = [*([installed / "tasks"] if installed else []), OWN_TASKS]
    paths = [path for root in roots for path in sorted(root.rglob("*.yaml"))]
    return {name: path.parent for path in paths for name in NAME_LINE.findall(path.read_text(encoding="utf-8"))}


def is_own(name: str) -> bool:
    """Whether a task ships with vlmkit, its data too."""
    folder = find_task_folder(name)
    return folder is not None and folder.is_relative_to(OWN_TASKS)
