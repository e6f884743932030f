"""An installed wheel works from any folder, without the clone."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import command_environment

ROOT = Path(__file__).parents[1]


def test_a_wheel_brings_its_configs_and_assets(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(tmp_path / "site")]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=120)
    done = subprocess.run(
        [sys.executable, "-m", "vlmkit.train", "--cfg", "job"],
        cwd=tmp_path,
        env=command_environment() | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "tokenizer: tiny" in done.stdout, done.stderr
    assert (tmp_path / "site" / "vlmkit" / "conf" / "train.yaml").is_file()
    assert (tmp_path / "site" / "vlmkit" / "conf" / "hydra" / "launcher" / "slurm.yaml").is_file()
    assert (tmp_path / "site" / "hydra_plugins" / "vlmkit_plugin.py").is_file()  # where Hydra looks for launchers
    assert (tmp_path / "site" / "vlmkit" / "assets" / "tiny_tokenizer" / "tokenizer.json").is_file()
    assert (tmp_path / "site" / "vlmkit" / "reporting" / "templates" / "inspect.css").is_file()
    tasks = tmp_path / "site" / "vlmkit" / "evaluation" / "lmms_tasks"
    assert {path.name for path in (tasks / "easyvqa").iterdir()} >= {"easyvqa.yaml", "task.py"}
