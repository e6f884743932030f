"""The report as a folder: a page that needs nothing else, pictures, tables."""

import csv
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Browser
from tests.reporting.sweeps.made_up_report import EVIL, FEW, LARGE, made_up_report
from tests.reporting.sweeps.made_up_sweep import MadeUpSweep
from vlmkit.config import ReportConfig
from vlmkit.reporting.sweeps.build import build_report
from vlmkit.reporting.sweeps.content import Report
from vlmkit.reporting.sweeps.figures import COLOURS
from vlmkit.reporting.sweeps.page import write_report

TEMPLATES = Path(__file__).parents[3] / "vlmkit" / "reporting" / "templates"
VOID = {"meta", "img", "br", "wbr"}
TAB, ENTER = ("Tab", 9), ("Enter", 13, "\r")


@pytest.fixture(scope="module")
def evil() -> Report:
    """Two axes, a hole, and names that want to be markup, mathematics and control characters."""
    report = made_up_report(FEW, 2, tasks=(), without=[(4, 0, 0), (4, 1, 0), (3, 0, 0)], text=EVIL)
    few = report.curves[:2], report.thresholds[:2], report.heat_maps[:1]
    return replace(report, curves=few[0], thresholds=few[1], heat_maps=few[2])


@pytest.fixture(scope="module")
def written(evil: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page."""
    return write_report(evil, tmp_path_factory.mktemp("report"))


def bare() -> Report:
    """A report with few figures."""
    report = made_up_report({"filter.relevance_min_rating": (1, 2)}, 1, tasks=())
    return replace(report, curves=report.curves[:1], thresholds=(), measures=report.measures[:1], comparisons=())


def plain(report: Report) -> Report:
    """Without the figures that take long to draw."""
    return replace(report, curves=(), thresholds=(), heat_maps=())


class Page(HTMLParser):
    """Tags and texts; elements must nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def said(self) -> str:
        """All its text, in one line."""
        return " ".join("".join(self.texts).split())

    def values(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.tags if attribute in attributes]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_page_needs_nothing_else(written: Path) -> None:
    page = Page(written)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all(source.startswith("data:image/") for source in page.values("src"))
    names = page.values("id")
    assert len(names) == len(set(names))
    anchors = {f"#{name}" for name in names}
    links = {*page.values("href"), *page.values("xlink:href")}
    assert {link for link in links if link.startswith("#")} <= anchors
    assert all((written.parent / link).is_file() for link in links if not link.startswith("#"))
    text = written.read_text().replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert not re.search(r"url\((?!#)|@import|https?://", text)


def test_text_of_the_runs_cannot_become_markup(written: Path) -> None:
    page = Page(written)
    assert "<script" not in written.read_text()
    assert "alert('&amp;')" in "".join(page.texts)


def test_all_parts_are_there_in_their_order_and_named_in_the_navigation(evil: Report, written: Path) -> None:
    page = Page(written)
    order = ["answer", "differences", "results", "thresholds", "heat_maps", "curves", "kept", "comparisons", "flips",
             "holes", "runs", "reading"]  # fmt: skip
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == order
    assert [link for link in page.values("href") if link.startswith("#")][1:13] == [f"#{name}" for name in order]
    said = "".join(page.texts)
    for text in (evil.answer.headline, *evil.answer.points, evil.command, *evil.notes, "1 of 2", evil.holes[0].way_out):
        assert text.replace("\x07", "") in said.replace("\x07", "")
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert all(deeper <= level + 1 for level, deeper in pairwise(headings))


def test_each_figure_can_be_read_without_seeing_it_and_is_there_as_a_picture(written: Path) -> None:
    page = Page(written)
    figures = [tag for tag, _ in page.tags if tag == "figure"]
    drawn = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(drawn) == len(figures) == len(list((written.parent / "figures").glob("*.png")))
    described = " ".join(str(attributes["aria-labelledby"]) for attributes in drawn).split()
    assert set(described) <= set(page.values("id"))
    classes = [(set(str(attributes.get("class")).split()), attributes) for _, attributes in page.tags]
    scrolling = [attributes for names, attributes in classes if names & {"scrolls", "drawing"}]
    assert scrolling
    assert all(attributes.get("tabindex") == "0" and attributes.get("aria-label") for attributes in scrolling)
    heads = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all(attributes.get("scope") in ("col", "row") for attributes in heads)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_the_same_report_is_the_same_files_and_leaves_nothing_of_an_older_one(tmp_path: Path) -> None:
    report = bare()
    folder = tmp_path / "report"
    write_report(replace(report, title="older", curves=(replace(report.curves[0], key="older"),)), folder)
    stale = folder / "figures" / "curve_older.png"
    assert stale.is_file()
    (folder / "figures" / "mine.png").write_text("not the report's")
    write_report(report, folder)
    write_report(report, tmp_path / "other")
    assert not stale.exists()
    assert files(folder) == files(tmp_path / "other") | {"figures/mine.png": b"not the report's"}


def test_a_list_of_older_files_removes_nothing_outside(tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    kept.write_text("mine")
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / ".written").write_text(f"figures/../../kept.csv\n../kept.csv\n{kept}\n")
    write_report(bare(), folder)
    assert kept.is_file()


def test_one_variant_is_a_report_without_comparisons(tmp_path: Path) -> None:
    report = made_up_report({}, 1, tasks=())
    page = Page(write_report(replace(report, curves=report.curves[:1]), tmp_path))
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["answer", "results", "curves", "runs", "reading"]


def test_without_a_result_of_the_baseline_the_best_is_compared_all_the_same(tmp_path: Path) -> None:
    report = plain(made_up_report(FEW, 1, tasks=(), without=[(0, 0, 0), (0, 0, 1)]))
    assert report.against_best
    assert not report.comparisons
    page = Page(write_report(report, tmp_path))
    assert "comparisons" in page.values("id")
    assert [link for link in page.values("href") if "best" in link or "comparisons.csv" in link] == [
        "tables/against_best.csv"
    ]


def test_changed_answers_say_of_which_task_they_are(tmp_path: Path) -> None:
    tasks = ["easyvqa", "mmstar", "chartqa", "docvqa_val", "ocrbench"]
    made_up = MadeUpSweep(tasks=tasks, seeds=(0,), steps=(10,), questions=30, with_pictures=False)
    sweep = str(made_up.write(tmp_path / "sweep"))
    for asked, shown in ((tasks[1:], 3), (tasks[:1], 1)):
        report = plain(build_report(ReportConfig(sweep=sweep, tasks=asked)))
        said = Page(write_report(report, tmp_path / "report")).said
        named = re.findall(r" in (\w+) exact_match: \d+ gained, \d+ lost of 30 questions", said)
        assert len(named) == len(set(named)) == shown
        assert set(named) <= set(asked)
        assert ("Of the average at most 3 tasks are shown." in said) == (shown > 1)


def test_where_nothing_is_known_of_chance_no_p_is_claimed(tmp_path: Path) -> None:
    report = plain(made_up_report(FEW, 1, tasks=()))
    unknown = tuple(replace(each, low=None, high=None, p=None) for each in report.against_best)
    said = Page(write_report(replace(report, against_best=unknown), tmp_path)).said
    assert "5 variants may be as good (p, not corrected, is not below 0.05, or too little is there to tell)" in said
    sure = tuple(replace(each, p=0.0499) for each in report.against_best)
    said = Page(write_report(replace(report, against_best=sure), tmp_path)).said
    assert "told apart from each other variant with a result (p, not corrected, is below 0.05 for each)" in said


def test_what_all_runs_share_stands_above_their_cards_and_the_folder_once_on_each(tmp_path: Path) -> None:
    report = plain(bare())
    page = Page(write_report(report, tmp_path))
    of_runs = page.said.partition("All runs have this in common")[2]
    first = report.variants[0].runs[0]
    for name, text in report.shared:
        assert page.said.count(name + text) == 1
        assert of_runs.index(name + text) < of_runs.index(first.name)
    assert page.said.count(first.folder) == 1


def test_half_of_a_character_does_not_keep_a_report_from_being_written(tmp_path: Path) -> None:
    page = write_report(replace(bare(), title="half\ud83d"), tmp_path)
    assert "<h1>half?</h1>" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_hundred_runs_make_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    report = made_up_report(LARGE, 3, tasks=("mmstar average", "easyvqa exact_match", "chartqa relaxed_overall"))
    assert sum(len(variant.runs) for variant in report.variants) == 198
    assert write_report(report, tmp_path).stat().st_size < 5_000_000
    with (tmp_path / "tables" / "runs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 198


# ---- colours -------------------------------------------------------------------------------------------


def colours(dark: bool) -> dict[str, str]:
    """Variable → colour, as #rrggbb."""
    found = {}
    for name in ("base.css", "report.css"):
        light, _, rest = (TEMPLATES / name).read_text().partition("@media (prefers-color-scheme: dark)")
        found |= dict(re.findall(r"--([\w-]+): (#\w+);", light))
        if dark:
            found |= dict(re.findall(r"--([\w-]+): (#\w+);", rest.partition("\n}")[0]))
    return {name: colour if len(colour) == 7 else "#" + "".join(2 * one for one in colour[1:])
            for name, colour in found.items()}  # fmt: skip


def channels(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def luminance(parts: list[float]) -> float:
    """As WCAG 2 defines it."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_figures_are_drawn_in_the_colours_of_the_page() -> None:
    light = colours(dark=False)
    assert {name: light[name] for name in COLOURS} == COLOURS


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read(dark: bool) -> None:
    found = {name: channels(colour) for name, colour in colours(dark).items()}
    for text in ("ink", "faint", "wrong", *(f"series-{number}" for number in range(1, 6))):
        assert contrast(found[text], found["card"]) >= 4.5, text
    for text in ("ink", "faint", "wrong"):
        assert contrast(found[text], found["paper"]) >= 4.5, text
    for strongest in ("series-1", "series-2"):  # of a heat map, half of it over the card
        cell = [(one + other) / 2 for one, other in zip(found[strongest], found["card"], strict=True)]
        assert contrast(found["ink"], cell) >= 4.5, strongest


# ---- in a browser --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        limit = threading.Timer(120, browser.end)  # a browser that hangs fails the test
        limit.start()
        yield browser
        limit.cancel()


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("width", [1280, 375, 320])
def test_a_browser_shows_the_page_without_scrolling_sideways(browser: Browser, written: Path, width: int) -> None:
    browser.open(written, width)
    assert browser.ask("document.images.length") > 0
    assert browser.ask("[...document.images].every((one) => one.naturalWidth > 0)"), "also those far below, for print"
    browser.ask("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") <= width
    right = """Math.max(...[...document.querySelectorAll("main *")]
        .filter((one) => !one.closest(".scrolls, .drawing, .unseen"))
        .map((one) => one.getBoundingClientRect().right))"""
    assert browser.ask(right) <= width
    cut = "[...document.querySelectorAll('.drawing')].filter((one) => one.scrollWidth > one.clientWidth).length"
    assert browser.ask(cut) == 0 or width < 360
    assert browser.ask("document.title") == f"rating_ablation{EVIL}: report".replace("\x07", " ")
    assert browser.ask("document.scripts.length") == 0


@pytest.mark.browser
@needs_browser
def test_nothing_is_cut_off_on_paper(browser: Browser, written: Path) -> None:
    browser.open(written, width=700)  # of A4, between its margins
    browser.call("Emulation.setEmulatedMedia", media="print")
    wide = "[...document.querySelectorAll('.scrolls, .drawing')].filter((one) => one.scrollWidth > one.clientWidth)"
    assert browser.ask(f"{wide}.length") == 0
    long = (
        "[...document.querySelectorAll('.scrolls, .drawing')].filter((one) => one.scrollHeight > one.clientHeight + 1)"
    )
    assert browser.ask(f"{long}.length") == 0
    browser.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.browser
@needs_browser
def test_the_page_and_its_figures_are_dark_where_the_reader_wants_that(browser: Browser, written: Path) -> None:
    looks = []
    ask = """[document.body, document.querySelector(".drawing text"), document.querySelector(".drawn")].map(
        (one) => getComputedStyle(one)).flatMap((style) => [style.backgroundColor, style.fill])"""
    for dark in (False, True):
        browser.open(written, 1280, dark=dark)
        looks.append((browser.ask(ask), browser.picture()))
    (light_colours, light), (dark_colours, dark_picture) = looks
    assert light_colours[0] != dark_colours[0]
    assert light_colours[3] != dark_colours[3]
    assert light_colours[4] != dark_colours[4]
    assert light != dark_picture


@pytest.mark.browser
@needs_browser
def test_the_page_can_be_used_by_keyboard(browser: Browser, written: Path) -> None:
    browser.open(written, 1280)
    focused = "document.activeElement.matches(':focus-visible') && document.activeElement.textContent.trim()"
    browser.press(*TAB)
    assert browser.ask(focused) == "Skip to the answer"
    browser.press(*TAB)
    assert browser.ask(focused) == "Answer"
    browser.press(*TAB)
    browser.press(*ENTER)
    assert browser.ask("location.hash") == "#differences"
    browser.press(*TAB)
    assert browser.ask("document.activeElement.className") == "drawing"
    for _ in range(3):  # PNG, CSV, the table
        browser.press(*TAB)
    assert browser.ask("document.activeElement.tagName") == "SUMMARY"
    browser.press(*ENTER)
    assert browser.ask("document.activeElement.parentElement.open") is True
    browser.press(*TAB)
    assert browser.ask("document.activeElement.className") == "scrolls"
