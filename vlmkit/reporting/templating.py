"""Templates of this package. The only use of jinja2."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def load_template(name: str, functions: Mapping[str, Callable[..., object]] = {}, **options: Any) -> Template:
    """A template, ready to be rendered; a name in it that is not given is an error.

    Args:
        name: Of its file.
        functions: What it may call, as filters and as functions.
        **options: Of jinja2's Environment.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters |= functions
    environment.globals |= functions
    return environment.get_template(name)
