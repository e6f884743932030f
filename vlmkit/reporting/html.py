"""A page: one HTML file that needs nothing else, no network and no script."""

from collections.abc import Callable, Mapping
from pathlib import Path

from vlmkit.paths import whole_file
from vlmkit.reporting.templating import load_template


def write_html(path: Path, template: str, functions: Mapping[str, Callable[..., object]], **content: object) -> None:
    """Write a page of a template of this package; all text that comes from data is escaped.

    Args:
        path: Where to.
        template: Its file name.
        functions: What the template may call, as filters and as functions.
        content: What it says.
    """
    html = load_template(template, functions, autoescape=True).render(**content)
    with whole_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="replace")  # half of a character, of a model's answer
