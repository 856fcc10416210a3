"""The findings of a check."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Finding:
    """One finding of a check: `level` is "info" or "warning", `handling` says how this package deals with it."""

    level: str
    name: str
    message: str
    handling: str = ""


info = partial(Finding, "info")
warning = partial(Finding, "warning")
