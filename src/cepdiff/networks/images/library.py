"""The library that image networks come from, imported late: it takes seconds."""

from __future__ import annotations

import importlib
from typing import Any

from cepdiff.errors import MissingExtraError


def image_library(name: str = "diffusers") -> Any:
    """The package `name` of the extra "images"; raises MissingExtraError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError("An image network", "images") from error
