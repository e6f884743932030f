"""Links lead somewhere, and commands of the README and of docs/slurm.md compose."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Run

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def commands() -> list[str]:
    """Every ``-m vlmkit.…``, also under torchrun; in a block without what two spaces or more set off from it."""
    text = "".join((ROOT / page).read_text() for page in ("README.md", "docs/slurm.md"))
    found = re.findall(r"-m (vlmkit\.[^`|\n]*?)(?:`| {2,}|\||\n)", text)
    return sorted({command.strip().replace("mysite", "example_gpu") for command in found})


@pytest.mark.parametrize("command", commands())
def test_a_command_composes(vlmkit: Run, command: str) -> None:
    module, *arguments = shlex.split(command)
    single = [re.sub(r",.*", "", argument) for argument in arguments if argument != "-m"]
    extra = [] if "--cfg" in single else ["--cfg", "job"]
    done = vlmkit(module.removeprefix("vlmkit."), *single, *extra)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\w+:", done.stdout), done.stdout
