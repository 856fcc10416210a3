"""Tables of text cells, for a terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FORMS = ("text", "markdown", "csv", "latex")
MISSING, NO_ERROR = "-", "–"  # a value that was not measured; a standard error that one sample does not have
# A number with its error, the bounds of its interval, what it is a part of, and the mark of the best.
CELL = re.compile(
    r"(?P<value>.*?)(?: ± (?P<error>\S+))?(?: \[(?P<low>\S+), (?P<high>\S+)\])?(?: of (?P<of>\d+))?(?: (?P<mark>\*))?",
    re.DOTALL,  # matches any text
)
PARTS = {"value": "{}", "error": "{} ±", "low": "{} low", "high": "{} high", "of": "{} of", "mark": "{} best"}
LATEX = {
    NO_ERROR: "--", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": r"\textless{}", ">": r"\textgreater{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


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

    def shown(self, form: str) -> str:
        """The table in one of `FORMS`."""
        return dict(zip(FORMS, (self.text, self.markdown, self.csv, self.latex), strict=True))[form]()

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

    def csv(self) -> str:
        """Comma-separated values, empty where missing; errors, bounds and marks have their own columns.

        The title and the notes are lines that begin with #.
        """
        columns = []
        for title, *cells in zip(*self.lines, strict=True):
            parts = [match.groupdict() for cell in cells if (match := CELL.fullmatch(cell.strip()))]
            for part, name in PARTS.items():
                values = [cell[part] or "" for cell in parts]
                if part == "value" or any(values):
                    known = ("" if value in (MISSING, NO_ERROR) else value for value in values)
                    columns.append([name.format(title.strip()), *known])
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))
        comments = [f"# {line}\n" for line in filter(None, [self.title, *self.notes])]
        return "".join([*comments, file.getvalue()]).rstrip("\n")

    def latex(self) -> str:
        """A `tabular` for the package booktabs; the title and the notes are comments."""
        left = {*range(self.labels), *([len(self.lines[0]) - 1] if self.remarks else [])}
        alignment = "".join("l" if index in left else "r" for index in range(len(self.lines[0])))
        rows = [" & ".join(latex_text(cell.strip()) for cell in line) + r" \\" for line in self.lines]
        comments = [f"% {line}" for line in filter(None, [self.title, *self.notes])]
        begin, end = rf"\begin{{tabular}}{{{alignment}}}", r"\end{tabular}"
        return "\n".join([*comments, begin, r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", end])


def latex_text(text: str) -> str:
    """A cell with LaTeX's special characters escaped, minus signs, and dashes for missing values."""
    escaped = "".join(LATEX.get(sign, sign) for sign in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", re.sub(r"(?<![\w-])-(?![\w-])", "--", escaped))


def number(value: float | None, form: str, error: float | None = None) -> str:
    """`value` by the format `form`, with its error if there is one ("–" for NaN); "-" for None and NaN."""
    if value is None or math.isnan(value):
        return MISSING
    text = format(int(value), form) if form == "d" else format(value, form)
    return text if error is None else f"{text} ± {NO_ERROR if math.isnan(error) else format(error, form)}"


def finite(value: float | None) -> float | None:
    """`value`, or None for NaN and infinity, which JSON lacks."""
    return value if value is not None and math.isfinite(value) else None


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The distinct `names`: those in `known` in that order, then the others sorted."""
    distinct, known = set(names), list(known)
    return [*(name for name in known if name in distinct), *sorted(distinct.difference(known))]
