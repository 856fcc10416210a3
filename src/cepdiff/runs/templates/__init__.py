"""The Jinja templates of pages, and how they are filled."""

from __future__ import annotations

from importlib.resources import files
from typing import Any


def template_text(name: str) -> str:
    """The text of a file of this folder."""
    return (files(__name__) / name).read_text(encoding="utf-8")


def rendered(name: str, **values: Any) -> str:
    """Fill the template `name` of this folder; values are escaped in HTML. An unknown name is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("cepdiff.runs", "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(values)
