"""``python -m vlmkit.inspect``: the figures in the terminal and the page."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import Run, command_environment
from tests.reporting.rated_data import EVIL, NO_TEXTS, SETTINGS, write_rated

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (320, 390, 1280)
MEASURE = """<script>
addEventListener("load", () => {
  const pages = [...document.querySelectorAll("iframe")].map((frame) => frame.contentDocument);
  const seen = pages.map((page) => ({
    title: page.title,
    scripts: page.scripts.length,
    samples: page.querySelectorAll("article").length,
    width: page.documentElement.scrollWidth,
    right: Math.max(...[...page.querySelectorAll("main *")]
      .filter((one) => !one.closest(".scrolls, .unseen"))
      .map((one) => one.getBoundingClientRect().right)),
  }));
  document.body.remove();
  document.title = JSON.stringify(seen);
});
</script>"""


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the command prints about the rated data, and its page, with every readable sample on it."""
    folder = tmp_path_factory.mktemp("inspected")
    data = folder / "data"
    data.mkdir()
    write_rated(data)
    done = subprocess.run(
        [sys.executable, "-m", "vlmkit.inspect", *SETTINGS, f"dataset.path={data}", "samples=50", "out=page.html"],
        cwd=folder,
        env=command_environment() | {"HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "page.html"


class Page(HTMLParser):
    """What the tests look for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text_of: dict[str, list[str]] = {}  # tag → texts directly in such an element
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.text_of.setdefault(self._open, []).append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_figures_are_printed_and_the_page_is_named(inspected: tuple[str, Path]) -> None:
    printed, _ = inspected
    assert "local         40 rows: 38 samples" in printed
    assert f"bad           1 no texts, as local/{NO_TEXTS}" in printed
    for word in ("ratings", "thresholds", "filter", "left out", "trained on", "tokens", "pictures", "tiles", "packs"):
        assert re.search(rf"^{word}\b", printed, re.MULTILINE), word
    assert printed.endswith("page          page.html\n")
    assert "\x1b" not in printed


def test_the_page_needs_nothing_else(inspected: tuple[str, Path]) -> None:
    page = Page(inspected[1])
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    pictures = page.attributes("img")
    assert len(pictures) > 100
    assert all(str(picture["src"]).startswith("data:image/webp;base64,") for picture in pictures)
    assert all(picture["alt"] for picture in pictures)
    links = {str(link["href"]) for link in page.attributes("a")}
    anchors = {f"#{attributes['id']}" for _, attributes in page.tags if attributes.get("id")}
    assert links
    assert links <= anchors
    assert not re.search(r"url\(|@import|https?://", inspected[1].read_text())


def test_the_page_shows_samples_tokens_ratings_tiles_and_packs(inspected: tuple[str, Path]) -> None:
    page, source = Page(inspected[1]), inspected[1].read_text()
    assert source.startswith("<!doctype html>")
    assert len(page.attributes("article")) == 38
    assert re.search(r"16 \u00d7 &lt;\|image\|&gt;", source)
    assert "".join(page.text_of["b"]).count("It is 0. ") > 5
    assert "<del><p>" in source
    assert "below 3" in source
    assert "Left out: longer than dataset.max_sample_length" in source
    assert "Left out: cannot read the picture" in source
    alts = {str(picture["alt"]) for picture in page.attributes("img")}
    assert {"Global tile", "Tile at row 3, column 4", "The only tile"} <= alts
    classes = [str(attributes.get("class")) for _, attributes in page.tags]
    assert {"heat", "chart", "bars", "packs"} <= set(classes)
    assert classes.count("pack") >= 2
    assert "python -m vlmkit.inspect dataset=local" in source


def test_text_of_the_data_cannot_become_markup(inspected: tuple[str, Path]) -> None:
    source = inspected[1].read_text()
    assert "<script" not in source
    assert html.escape(EVIL, quote=False).split("&amp;")[0].strip() in source.replace("&#39;", "'")


@pytest.mark.slow
def test_easyvqa_and_a_sweep_have_a_page_for_each_job(vlmkit: Run, tmp_path: Path) -> None:
    done = vlmkit("inspect", "-m", "seed=0,1", "samples=1", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    logs = [log.read_text() for log in (tmp_path / "sweep" / "logs").glob("*_*.log")]
    assert len(logs) == 2
    for log in logs:
        assert "easyvqa       4,000 rows: 4,000 samples, 38,575 turns, 4,000 pictures" in log
        assert "ratings       no turn has any" in log
    pages = sorted((tmp_path / "sweep").glob("*/easyvqa.html"))
    assert len(pages) == 2
    assert pages[0].read_text() != pages[1].read_text()
    assert all(page.stat().st_size < 100_000 for page in pages)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["samples=-1"], ["samples=-1", "0 or more"]),
        (["sample=3"], ["sample: unknown key", "did you mean samples?"]),
        (["out=."], ["out=.", "must be a file"]),
        (["out=/dev/null/page.html"], ["out=/dev/null/page.html", "cannot write"]),
        (["dataset=local", "dataset.path=/nowhere"], ["dataset.path=/nowhere"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_heavy_is_imported(
    vlmkit: Run, tmp_path: Path, arguments: list[str], told: list[str]
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = vlmkit("inspect", *arguments)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert all(text in line for text in told), line


def test_training_does_not_know_the_keys_of_inspection(vlmkit: Run) -> None:
    done = vlmkit("train", "samples=3")
    assert "samples: unknown key" in done.stderr
    assert "did you mean" not in done.stderr


def test_the_module_does_not_shadow_the_standard_library() -> None:
    code = "import vlmkit.inspect, inspect; print(inspect.signature(vlmkit.inspect.main), inspect.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("() -> None")
    assert "vlmkit" not in done.stdout.rpartition("/python")[2]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page_without_scrolling_sideways(inspected: tuple[str, Path], tmp_path: Path) -> None:
    """The page in frames of several widths, as a window cannot be as narrow as a phone."""
    source = html.escape(inspected[1].read_text())
    frames = [f'<iframe style="width: {width}px; height: 900px" srcdoc="{source}"></iframe>' for width in WIDTHS]
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f'<!doctype html><meta charset="utf-8"><title>waiting</title>{"".join(frames)}{MEASURE}')
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
        "--disable-sync --no-first-run --window-size=1600,1000 --dump-dom"
    )
    done = subprocess.run(
        [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", wrapper.as_uri()],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    for seen, width in zip(json.loads(html.unescape(title[1])), WIDTHS, strict=True):
        assert seen["title"] == "local: what the data look like"  # no text of the data has changed it
        assert (seen["scripts"], seen["samples"]) == (0, 38)
        assert seen["width"] <= width
        assert seen["right"] <= width
