"""What the pages say is so: links lead somewhere, commands compose, keys, options and files that they name exist."""

import ast
import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from unittest.mock import patch

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from docs.make_configuration import COMMAND, NoCommentError, Writer, make_page
from tests.conftest import compose_as_hydra, composed
from vlmkit import entry
from vlmkit.config import SCHEMAS, TrainerConfig, as_override
from vlmkit.data.sources import build_sources
from vlmkit.errors import UserError
from vlmkit.processing.images import load_image

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
GROUPS = {group for group, _ in SCHEMAS.values() if group} | {"experiment"}
CODE_ROOTS = (ROOT / "vlmkit", ROOT / "launchers")
FILES = (".safetensors", ".json", ".jsonl", ".yaml")
CODE_FOLDERS = ("vlmkit/", "conf/", "docs/", "tests/", "benchmarks/", "launchers/", "notebooks/", ".ci/")
PATHS = ("a", "b", "run", "ckpt", "sweep", "out")  # keys whose values look like several if they are folders of a sweep


@dataclass(frozen=True)
class Page:
    """A page, read once."""

    path: Path

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def parts(self) -> Iterator[tuple[bool, str]]:
        """Whether it is code, and the text, of each paragraph and of each line of a block with commands."""
        language, paragraph = None, []
        for line in [*self.lines, ""]:
            if line.startswith("```"):
                language = line.removeprefix("```") or "commands" if language is None else None
            elif language == "commands" or (language is None and line.startswith("    ")):
                yield True, line.strip()
            elif language is None and line:
                paragraph.append(line)
            if paragraph and (language or not line or line.startswith("|")):
                yield False, " ".join(paragraph)
                paragraph = []

    def blocks(self, language: str) -> list[str]:
        """The blocks in a language."""
        return re.findall(rf"^```{language}\n(.*?)^```", self.path.read_text(), re.MULTILINE | re.DOTALL)

    def code(self) -> Iterator[str]:
        """Lines of blocks, without what two spaces or more set off from a command, and inline code."""
        for is_code, text in self.parts():
            if is_code:
                yield re.split(r" {2,}(?=\S)", text)[0]
            else:
                yield from (span.replace("\\|", "|") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))

    def links(self) -> list[str]:
        """The targets of its links and pictures."""
        text = "\n".join(re.sub(r"`[^`]*`", "", text) for is_code, text in self.parts() if not is_code)
        return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)

    @property
    def anchors(self) -> set[str]:
        """What GitHub calls its headings."""
        found: list[str] = []
        for line in self.lines:
            if heading := re.match(r"#+ (.*)", line):
                text = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
                found.append(f"{text}-{found.count(text)}" if text in found else text)
        return set(found)


def dead_links(page: Page) -> list[str]:
    """Links to files or headings that are not there; others' sites are not asked."""
    return [link for link in page.links() if "://" not in link and not leads_somewhere(page, link)]


def leads_somewhere(page: Page, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.path.parent / path).resolve() if path else page.path
    return target.exists() and (not anchor or anchor in Page(target).anchors)


def commands(page: Page) -> list[str]:
    """``vlmkit.COMMAND …`` of every ``-m vlmkit.COMMAND …``, also under torchrun, without what may be left out."""
    found = (re.search(r"-m (vlmkit\.[a-z].*)", code) for code in page.code())
    texts = (re.sub(r" \[.*?\](?= |$)", "", each[1]) for each in found if each)
    return [re.split(r" (?:&&|\|\||[|>]) |, ", text)[0].strip().replace("mysite", "example_gpu") for text in texts]


def complaint(command: str) -> str | None:
    """What is wrong with ``vlmkit.COMMAND …``."""
    module, *arguments = shlex.split(command)
    if find_spec(module) is None:
        return f"{module}: no such command"
    try:
        name, overrides = as_started(module, plain(arguments))
        for job in jobs(overrides, is_sweep=bool({"-m", "--multirun"} & set(arguments))):
            check(name, job)
    except (HydraException, OmegaConfBaseException, UserError) as error:
        return f"{error.__cause__ or error}"
    return None


def as_started(module: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The name of the config, and the arguments, with which a command starts Hydra."""
    begun: list[tuple[str, list[str]]] = []
    with (
        patch.object(entry, "run", lambda name, _: begun.append((name, sys.argv[1:]))),
        patch.object(sys, "argv", [module, *arguments]),
    ):
        import_module(module).main()
    [(name, rewritten)] = begun
    return name, list(map(as_path, rewritten))


def jobs(arguments: list[str], is_sweep: bool) -> Iterator[list[str]]:
    """The arguments of as many jobs as it takes to use each value of a sweep once."""
    parsed = OverridesParser.create().parse_overrides(arguments)
    values = [values_of(each) for each in parsed]
    count = max(map(len, values), default=1)
    if count > 1 and not is_sweep:
        raise UserError(f"several values without -m: {' '.join(arguments)}")
    for number in range(count):
        yield [each[number % len(each)] for each in values]


def values_of(override: Override) -> list[str]:
    """An argument, with each of its values by itself."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def plain(arguments: list[str]) -> list[str]:
    """Without flags and values that the reader fills in."""
    return [argument for argument in arguments if "=" in argument and not argument.endswith("=…")]


def as_path(argument: str) -> str:
    key, _, value = argument.partition("=")
    return f"{key}={as_override(value)}" if key in PATHS and value[:1] not in ("[", "'") else argument


@cache
def chosen(name: str, *choices: str) -> DictConfig:
    """Composed of these options: what takes Hydra half a second, and many commands choose the same."""
    return compose_as_hydra(name, *choices)


def is_setting(argument: str) -> bool:
    """Whether it gives a key a value and chooses no option; those of Hydra are Hydra's own."""
    key = argument.partition("=")[0]
    return re.fullmatch(r"(?!hydra\b)[a-z_]+(\.\w+)*", key) is not None and key not in GROUPS


def check(name: str, overrides: list[str]) -> None:
    """Compose and check the values, with something in the place of those that must be given."""
    config = copy.deepcopy(chosen(name, *(each for each in overrides if not is_setting(each))))
    for each in OverridesParser.create().parse_overrides(list(filter(is_setting, overrides))):
        OmegaConf.update(config, each.key_or_group, each.value())
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "FOLDER")
    OmegaConf.to_object(config)


@cache
def keys() -> frozenset[str]:
    """Every key, and every part of one, as docs/configuration.md has them."""
    table = (ROOT / "docs" / "configuration.md").read_text()
    found = {key.replace("[]", "") for key in re.findall(r"^\| `([\w.\[\]]+)` \|", table, re.MULTILINE)}
    of_job = {key.removeprefix("cluster.") for key in found if key.startswith("cluster.")}
    found |= {f"{job}.{key}" for job in ("evals.job", "hydra.launcher") for key in of_job}
    return frozenset(key.rsplit(".", count)[0] for key in found for count in range(key.count(".") + 1))


def wrong_names(page: Page) -> list[str]:
    """Keys, options, files and extras in its code that are not there, nor are options that it shows."""
    shown = {f"conf/{option_of(block)}" for block in page.blocks("yaml")}
    return [word for code in page.code() for word in code.split() if is_wrong(word.strip("',;:()"), shown)]


def is_wrong(word: str, shown: set[str]) -> bool:
    name, equals, value = word.lstrip("+'").partition("=")
    if re.search(r"[A-Z]{2}|…|mysite", name):  # for the reader to fill in
        return False
    if extras := re.search(r"(?:\.|vlmkit)\[([\w,]+)\]$", word):
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        return not set(extras[1].split(",")) <= set(known)
    if word.startswith(CODE_FOLDERS) or word.endswith(".py"):
        return word not in shown and not any((folder / word).exists() for folder in (ROOT, *CODE_ROOTS))
    if name in GROUPS and equals:
        return any(is_wrong(f"conf/{name}/{option}.yaml", shown) for option in options(value))
    return is_wrong_key(name)


def is_wrong_key(name: str) -> bool:
    of_config = name.split(".")[0] in GROUPS or name.startswith("hydra.launcher.")
    is_free = name.startswith("dataset.parts.") or re.search(r"\.(environment|additional_parameters)\.", name)
    if not of_config or is_free or name.endswith(FILES):
        return False
    return re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", name) is not None and name not in keys()


def options(value: str) -> list[str]:
    """Names of options, also of several."""
    names = re.split(r"[,|]", value)
    return [
        name for name in names if re.fullmatch(r"[a-z][a-z0-9_]*", name) and name not in ("null", "basic", "mysite")
    ]


def option_of(block: str) -> Path:
    """The file that a block of yaml says it is, in conf/."""
    return Path(block.splitlines()[0].removeprefix("# conf/"))


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(Page(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_keys_options_and_files_that_are_named_are_there(page: Path) -> None:
    assert wrong_names(Page(page)) == []


@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in commands(Page(page))}))
def test_a_command_composes(command: str) -> None:
    assert complaint(command) is None


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in Page(page).blocks(language)]


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: option_of(block).as_posix())
def test_an_option_that_a_page_shows_composes(block: str, tmp_path: Path) -> None:
    conf = shutil.copytree(ROOT / "conf", tmp_path / "conf")
    path = option_of(block)
    (conf / path).write_text(block.partition("\n")[2])
    OmegaConf.to_object(compose_as_hydra("train", f"{path.parent}={path.stem}", folder=conf))


@pytest.mark.parametrize("block", blocks("python"))
def test_python_that_a_page_shows_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {})
    for file in tmp_path.rglob("*.parquet"):  # what it wrote is data that can be read
        [source] = build_sources(composed("train", "dataset=local", f"dataset.path={file}").dataset)
        assert source.sample(0).turns[0].assistant == "red"


def copies_of_pictures() -> list[str]:
    return [code for page in PAGES for is_code, code in Page(page).parts() if is_code and "$(python" in code]


@pytest.mark.parametrize("line", copies_of_pictures())
def test_a_picture_that_a_page_copies_is_there(line: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # its python is this one
    subprocess.run(line, shell=True, check=True, cwd=tmp_path, env=os.environ | {"PATH": path})
    [picture] = tmp_path.iterdir()
    assert load_image(picture, picture.name).size == (64, 64)


def quoted(page: Page) -> list[str]:
    """What vlmkit is said to say: code with spaces in the first column of a table."""
    cells = [line.split(" | ")[0] for line in page.lines if line.startswith("| ")]
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell) if " " in code]


@cache
def texts_of_the_program() -> str:
    trees = [ast.parse(path.read_text()) for folder in CODE_ROOTS for path in folder.rglob("*.py")]
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\n".join(value for value in constants if isinstance(value, str))


def unsaid(page: Page) -> list[str]:
    """Quoted texts with a part that is in no text of the program."""
    return [
        text for text in quoted(page) if not all(part.strip() in texts_of_the_program() for part in text.split("…"))
    ]


def test_the_messages_of_the_troubleshooting_page_are_the_program_s() -> None:
    page = Page(ROOT / "docs" / "troubleshooting.md")
    assert unsaid(page) == []
    assert len(quoted(page)) > 40


def test_a_message_that_is_not_the_program_s_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "| you see |\n|---|\n| `run_dir=… holds a different config (…` | x |\n| `… is another thing` | y |\n"
    )
    assert unsaid(Page(page)) == ["… is another thing"]


def test_the_modules_in_pictures_are_there() -> None:
    texts = [picture.read_text() for picture in ROOT.glob("docs/pictures/*.svg")]
    modules = [module for text in texts for module in re.findall(r">([\w/]+\.py)<", text)]
    assert len(modules) > 9
    assert [module for module in modules if not (ROOT / "vlmkit" / module).exists()] == []


def test_the_configuration_page_is_what_its_script_makes() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == make_page(), f"run {COMMAND}"


def test_the_configuration_page_has_every_command() -> None:
    modules = [path for path in (ROOT / "vlmkit").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert len(modules) > 9
    anchors = Page(ROOT / "docs" / "configuration.md").anchors
    assert [path.stem for path in modules if f"vlmkit{path.stem}" not in anchors] == []


def test_the_mixture_of_the_configuration_page_can_be_copied(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    [block] = re.findall(r"^  ```yaml\n(.*?)^  ```$", page, re.MULTILINE | re.DOTALL)
    conf = shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (conf / "dataset" / "mine.yaml").write_text(f"defaults:\n  - mixture_schema\n{dedent(block)}")
    config = compose_as_hydra("train", "dataset=mine", folder=conf)
    assert {name: part["weight"] for name, part in config.dataset.parts.items()} == {"pictures": 3, "shapes": 1}


# ---- that these tests can fail -------------------------------------------------------------------------


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading: `code`\n\n# Twice\n\n# Twice\n")
    page = tmp_path / "page.md"
    good = "[a](other.md) [b](other.md#a-heading-code) [c](#here) [d](other.md#twice-1) [e](https://x.org/y)"
    page.write_text(f"# Here\n\n{good} `[in code](nowhere.md)`\n\n[f](gone.md)\n[g](other.md#gone) ![h](gone.png)\n")
    assert dead_links(Page(page)) == ["gone.md", "other.md#gone", "gone.png"]


def test_wrong_names_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`trainer.batch_size`, `model.vision`, `evals.job.KEY`, `RUN/config.yaml`,\n`data/rows.py`, `model=tiny`\n\n"
        "    pip install '.[eval,test]'\n\n"
        "`trainer.batchsize`, `model=huge`, `vlmkit/gone.py`,\n`hydra.launcher.cores=2`\n\n"
        "```\npip install 'vlmkit[everything]'\npython benchmarks/gone.py\n```\n\n"
        "```yaml\n# conf/model/mine.yaml\n```\n\n`model=mine` `conf/model/mine.yaml` `model=yours`\n"
    )
    assert wrong_names(Page(page)) == [
        "trainer.batchsize", "model=huge", "vlmkit/gone.py", "hydra.launcher.cores=2", "'vlmkit[everything]'",
        "benchmarks/gone.py", "model=yours",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("vlmkit.train trainer.batchsize=2", "trainer.batchsize"),
        ("vlmkit.train -m model=tiny,huge", "model/huge"),
        ("vlmkit.train seed=-1", "seed=-1: must be between"),
        ("vlmkit.train -m seed=0,x", "'x' of type 'str' could not be converted to Integer"),
        ("vlmkit.eval run=RUN steps=newest", "steps=newest: must be all"),
        ("vlmkit.train hydra.launcher.cores=1", "hydra.launcher.cores"),
        ("vlmkit.train seed=0,1", "several values without -m"),
        ("vlmkit.trian", "no such command"),
    ],
)
def test_wrong_commands_are_found(command: str, told: str) -> None:
    assert told in (complaint(command) or "")


def test_commands_are_found_in_blocks_and_in_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Say `python -m vlmkit.status\nrun=RUN`.\n\n    torchrun -m vlmkit.train seed=1 [seed=2]    a try\n"
    )
    assert commands(Page(page)) == ["vlmkit.status run=RUN", "vlmkit.train seed=1"]


def test_a_key_without_a_comment_is_found() -> None:
    writer = Writer(comments={})
    writer.table(TrainerConfig, ["batch_size", "precision"], "trainer.")
    assert writer.silent == ["TrainerConfig.batch_size"]  # what precision is, its own type says
    assert issubclass(NoCommentError, ValueError)
