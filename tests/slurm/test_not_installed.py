"""Where there is no SLURM its tests are skipped, and the user is told."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_skipped_tests_are_counted_in_a_line_that_says_what_to_install(tmp_path: Path) -> None:
    for program in ("bash", "env", "id", "ls", "mkdir", "realpath"):  # enough to look for SLURM
        (tmp_path / program).symlink_to(shutil.which(program))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "slurm", "--numprocesses=1", "tests/slurm/test_cluster.py"],
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = r"^tests/slurm: [1-9]\d* tests skipped: SLURM is not installed: apt install .*slurm-wlm .*mariadb-server"
    assert re.search(told, done.stdout, re.MULTILINE), done.stdout + done.stderr
