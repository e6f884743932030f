"""Imports point one way, and each foreign library has one home."""

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vlmkit"
LAUNCHERS = PACKAGE.parent / "launchers"

# Each may import those above it and its own kind. A module that is not named here belongs to its folder.
LAYERS = [
    {"errors", "paths", "redact"},
    {"config", "launched", "jobs", "logs"},
    {"types", "local_files", "special_tokens", "slurm_states"},
    {"pretrained", "job_standings"},
    {"processing", "distributed", "run_directory"},
    {"assets", "model", "tracking", "interrupt"},
    {"data"},
    {"training", "evaluation"},
    {"sweep_directory"},
    {"reporting"},
    {"preflight", "entry"},
    {"train", "index", "inspect", "generate", "eval", "merge", "compare", "status", "cancel", "report"},
]
OF_LMMS_EVAL = ("evaluation/tasks.py", "evaluation/lmms_tasks/easyvqa/task.py")  # its data are such datasets
HOMES = {
    "accelerate": {"distributed.py"},
    "wandb": {"tracking/wandb_sink.py"},
    "huggingface_hub": {"pretrained/files.py", "preflight.py", "reporting/hub.py"},
    "rich": {"tracking/console.py"},
    "hydra": {"entry.py"},
    "jinja2": {"reporting/templating.py"},
    "matplotlib": {"reporting/sweeps/figures.py"},
    "omegaconf": {"entry.py", "config.py"},
    "datasets": {"data/sources.py", "data/files.py", "tracking/quiet.py", *OF_LMMS_EVAL},
    "pyarrow": {"data/files.py", "data/sources.py"},
    "numba": {"data/best_fit.py"},
    "scipy": {"evaluation/statistics.py"},
    "lmms_eval": {
        "evaluation/lmms_model.py",
        "evaluation/lmms_plugin.py",
        "evaluation/lmms_tasks/easyvqa/task.py",
        "evaluation/tasks.py",
    },
    "tqdm": {"evaluation/lmms_model.py"},  # comes with lmms-eval
    "easy_vqa": {"data/sources.py", "assets/make_tiny_tokenizer.py"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))
OF_LAUNCHERS = sorted(LAUNCHERS.rglob("*.py"))
HOMES_IN_LAUNCHERS = {
    "submitit": {"vlmkit_launchers/slurm.py", "vlmkit_launchers/task.py"},
    "hydra": {"hydra_plugins/vlmkit_plugin.py"},
    "omegaconf": {"hydra_plugins/vlmkit_plugin.py"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def users(library: str, modules: Iterable[Path], root: Path) -> set[str]:
    """The modules that import a library."""
    found = (path for path in modules if any(module.split(".")[0] == library for module in imports(path)))
    return {str(path.relative_to(root)) for path in found}


def part(module: str) -> str:
    return module.split(".")[1]


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE.parent).with_suffix("").parts[1]
    if own == "__init__":
        return
    for module in imports(path):
        if module.startswith("vlmkit.") and part(module) != own:
            assert layer(part(module)) < layer(own), f"{own} imports {module}"


def test_training_never_imports_evaluation_nor_the_other_way() -> None:
    for folder, other in (("training", "evaluation"), ("evaluation", "training")):
        for path in (PACKAGE / folder).glob("*.py"):
            assert not any(module.startswith(f"vlmkit.{other}") for module in imports(path))


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_each_foreign_library_has_its_home(library: str, homes: set[str]) -> None:
    assert users(library, MODULES, PACKAGE) <= homes


def test_vlmkit_never_imports_launchers() -> None:
    for path in MODULES:
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & {"vlmkit_launchers", "hydra_plugins", "submitit"}, path


@pytest.mark.parametrize(("library", "homes"), HOMES_IN_LAUNCHERS.items())
def test_each_foreign_library_of_launchers_has_its_home(library: str, homes: set[str]) -> None:
    assert users(library, OF_LAUNCHERS, LAUNCHERS) == homes


def test_hydra_imports_nothing_heavy_to_know_the_launchers() -> None:
    """It does so whenever any of its commands starts."""
    plugin = ast.parse((LAUNCHERS / "hydra_plugins" / "vlmkit_plugin.py").read_text())
    at_once = [node for node in plugin.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in at_once}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"hydra", "omegaconf"}


def banned_calls(path: Path) -> set[str]:
    """Calls that run what a file or a repository brings along, or that a shell would read."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in ("eval", "exec", "os.system", "pickle.load", "pickle.loads", "pickle.Unpickler"):
                found.add(name)
            if name == "torch.load" and keywords.get("weights_only") != "True":
                found.add("torch.load without weights_only=True")
            found |= {key for key in ("trust_remote_code", "shell") if keywords.get(key, "False") != "False"}
    return found


@pytest.mark.parametrize("path", MODULES + OF_LAUNCHERS, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_nothing_that_is_loaded_is_run(path: Path) -> None:
    assert not banned_calls(path)


def test_banned_calls_are_found(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    for line, told in (
        ("torch.load(f)", "torch.load without weights_only=True"),
        ("torch.load(f, weights_only=False)", "torch.load without weights_only=True"),
        ("pickle.load(f)", "pickle.load"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code"),
        ("subprocess.run(x, shell=flag)", "shell"),
        ("eval(x)", "eval"),
    ):
        code.write_text(line)
        assert banned_calls(code) == {told}
    code.write_text("torch.load(f, weights_only=True); model.eval(); f(trust_remote_code=False)")
    assert banned_calls(code) == set()


def test_light_modules_import_nothing_heavy() -> None:
    """They are what runs before a mistake is answered."""
    names = (
        "entry",
        "preflight",
        "config",
        "paths",
        "run_directory",
        "errors",
        "local_files",
        "logs",
        "redact",
        "special_tokens",
    )
    for path in [*(PACKAGE / f"{name}.py" for name in names), *(PACKAGE / "pretrained").glob("*.py")]:
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & {"torch", "transformers", "numpy", "accelerate", "datasets"}


def test_every_module_is_on_the_map() -> None:
    text = (PACKAGE.parent / "docs" / "map.md").read_text()
    for path in MODULES + OF_LAUNCHERS:
        if path.stem != "__init__" and "assets" not in path.parts:
            assert path.stem in text, f"{path} is missing on docs/map.md"
