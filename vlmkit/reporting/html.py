"""A page: one HTML file that needs nothing else, no network and no script. The only use of jinja2 for HTML."""

from collections.abc import Callable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vlmkit.paths import whole_file


def write_html(path: Path, template: str, functions: Mapping[str, Callable[..., object]], **content: object) -> None:
    """Write a page of a template of this package; all text that comes from data is escaped.

    Args:
        path: Where to.
        template: Its file name.
        functions: What the template may call, as filters and as functions.
        content: What it says.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= functions
    environment.globals |= functions
    html = environment.get_template(template).render(**content)
    with whole_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="replace")  # half of a character, of a model's answer
