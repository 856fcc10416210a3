"""Late import of the libraries behind image networks, which takes seconds."""

from __future__ import annotations

import importlib
from typing import Any

from cepdiff.errors import MissingExtraError


def image_library(name: str = "diffusers") -> Any:
    """Import the package `name` of the extra "images"; raises MissingExtraError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError("An image network", "images") from error
