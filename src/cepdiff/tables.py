"""Tables of text cells, for a terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text, the header first; `notes` are lines below.

    Args:
        labels: how many leading columns are names, aligned left.
        remarks: whether the last column is free text, aligned left.
    """

    lines: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()
    labels: int = 0
    remarks: bool = False

    def text(self) -> str:
        """The table for a terminal."""
        widths = [max(map(len, column)) for column in zip(*self.lines, strict=True)]
        left = {*range(self.labels), *([len(widths) - 1] if self.remarks else [])}
        aligned = [
            "  ".join(
                cell.ljust(width) if index in left else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in self.lines
        ]
        return "\n".join([*filter(None, [self.title]), *aligned, *self.notes])

    def markdown(self) -> str:
        """The table for a page."""
        rows = ["| " + " | ".join(cell.strip().replace("|", r"\|") for cell in line) + " |" for line in self.lines]
        rule = "|" + "|".join(" --- " if index < self.labels else " ---: " for index in range(len(self.lines[0]))) + "|"
        title = [f"**{self.title}**\n"] if self.title else []
        return "\n".join([*title, rows[0], rule, *rows[1:], *(f"\n{note}" for note in self.notes)])


def number(value: float | None, form: str, error: float | None = None) -> str:
    """`value` by the format `form`, with its error if there is one; "-" for None and NaN."""
    if value is None or math.isnan(value):
        return "-"
    text = format(int(value), form) if form == "d" else format(value, form)
    return text if error is None else f"{text} ± {error:{form}}"


def finite(value: float | None) -> float | None:
    """`value`, or None for NaN and infinity, which JSON lacks."""
    return value if value is not None and math.isfinite(value) else None


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The distinct `names`: those in `known` in that order, then the others sorted."""
    distinct, known = set(names), list(known)
    return [*(name for name in known if name in distinct), *sorted(distinct.difference(known))]
