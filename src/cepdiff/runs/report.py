"""`cepdiff report`: finished runs as tables and figures, on the screen and in a folder."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cepdiff import __version__
from cepdiff.components import import_class
from cepdiff.errors import ConfigError, RunError
from cepdiff.files import check_output, write_json, write_text
from cepdiff.runs.results import Results
from cepdiff.runs.search import find_runs
from cepdiff.tables import Table
from cepdiff.trust import admit

HTML = "report.html"
OFFLINE, BEST = "offline", "best"  # ways to choose the guidance scale of a score, besides a fixed one


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        title: of the page's section.
        figures: file names in the report's folder.
        tables: below the figures.
        facts: the tables' numbers for `report.json`.
        closing: a last line.
    """

    title: str
    figures: Sequence[str]
    tables: Sequence[Table]
    facts: Mapping[str, Any] = field(default_factory=dict)
    closing: str = ""

    def text(self, form: str = "text") -> str:
        """The tables and the last line in one of the forms of `Table.shown`, for a terminal or a file."""
        comment = {"csv": "# ", "latex": "% "}.get(form, "")
        closing = [f"{comment}{self.closing}"] if self.closing else []
        return "\n\n".join([*(table.shown(form) for table in self.tables), *closing])

    def markdown(self) -> str:
        """The section for a page."""
        figures = [f"![{self.title}]({figure})" for figure in self.figures]
        tables = [table.markdown() for table in self.tables]
        return "\n\n".join([f"## {self.title}", *figures, *tables, *filter(None, [self.closing])])


def report(
    folders: Sequence[Path],
    output: Path,
    trust_sources: Sequence[str | Path] = (),
    scale: float | str = OFFLINE,
    html: bool = False,
) -> list[Section]:
    """Compare the finished runs in and below `folders`: `report.md`, `report.json` and figures in `output`.

    With `html` also `report.html`, one page with everything, see `runs.page`.

    Each problem compares its own runs, see `Problem.report`; your own problems are imported only from the folders
    `trust_sources`. A last section names the runs that are not finished.

    Raises:
        OutputError: nothing can be written to `output`.
        ConfigError: a problem is not trusted, or `scale` is neither a guidance scale nor "offline" or "best".
        RunError: no folder is a finished run, one is missing or damaged, or two hold the same run.
    """
    from cepdiff.runs.page import page as html_page  # imported here, as they import this module
    from cepdiff.runs.problem import Problem

    base: Any = Problem
    scale = chosen_scale(scale)
    found = find_runs(folders)
    runs = found.runs
    if not runs:
        raise RunError("there is no finished run among these folders; `cepdiff fit` leaves results.json at its end")
    page = output / "report.md"
    check_output(page)
    groups: dict[Any, tuple[Any, list[Results]]] = {}
    for run in runs:
        admit([run.problem], run.folder / "results.json", trust_sources, run.sources)
        problem = import_class(run.problem, base, str(run.folder))
        groups.setdefault(problem.report.__func__, (problem, []))[1].append(run)  # also subclasses with the same report
    sections: list[Section] = []
    for problem, here in groups.values():
        sections += problem.report(here, output, scale)
    if found.unfinished:
        sections.append(unfinished_section(found.unfinished))
    facts = {
        "cepdiff": __version__,
        "sections": [{"title": section.title, **section.facts} for section in sections],
        "training_seconds": training_seconds(runs),
        "runs": [run_facts(run) for run in runs],
    }
    write_json(output / "report.json", facts)
    write_text(page, "\n\n".join(["# Report", *(section.markdown() for section in sections)]) + "\n")
    if html:
        write_text(output / HTML, html_page(sections, runs, output))
    return sections


def chosen_scale(scale: float | str) -> float | str:
    """A guidance scale of 0 or more, or one of the ways to choose it. Raises ConfigError for anything else."""
    if scale in (OFFLINE, BEST):
        return scale
    try:
        if 0.0 <= (value := float(scale)) < math.inf:
            return value
    except ValueError:
        pass
    raise ConfigError(f"--scale is {scale}; expected a guidance scale of 0 or more, '{OFFLINE}' or '{BEST}'")


def unfinished_section(runs: Mapping[Path, str]) -> Section:
    """The runs that are not finished, none of which is in a table above."""
    rows = [[str(path), status] for path, status in runs.items()]
    table = Table([["run", "status"], *rows], "runs without results, in none of the other tables", labels=2)
    return Section("Not finished", [], [table], {"runs": {str(path): status for path, status in runs.items()}})


def warn_of_sizes(counts: Iterable[int]) -> None:
    """Print a line on stderr if runs that are compared have different numbers of samples."""
    sizes = sorted(set(counts))
    if len(sizes) > 1:
        print(
            f"note: runs with {', '.join(map(str, sizes))} samples side by side: the noise floor falls with their "
            "number, so their multiples of it cannot be compared",
            file=sys.stderr,
        )


def refuse_twins(runs: Sequence[Results], names: Sequence[str]) -> None:
    """Raise RunError for two runs of the same name: tables would average them as if they were seeds."""
    known: dict[str, Path] = {}
    for run, name in zip(runs, names, strict=True):
        if name in known:
            raise RunError(f"{known[name]} and {run.folder} are both {name}; leave one of them out")
        known[name] = run.folder


def training_seconds(runs: Sequence[Results]) -> float:
    """Wall clock of all training; a stage that runs share (`--reuse`) counts once."""
    stages = {
        (stage, run.made_from.get(f"{stage}_checkpoint", str(run.folder))): seconds
        for run in runs
        for stage, seconds in run.seconds.items()
    }
    return sum(stages.values())


def total(runs: Sequence[Results], what: str) -> str:
    """One line: how many runs, and how long they were trained."""
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {what}"
    return f"{count}, {training_seconds(runs):,.0f} s of training (a stage that runs share counts once)."


def run_facts(run: Results) -> dict[str, Any]:
    """A run in plain values."""
    facts = {name: getattr(run, name) for name in ("problem", "dataset", "method", "inverse_temperature", "seed")}
    rows = [row.to_json() for row in run.rows if not row.head]
    return {"folder": str(run.folder), **facts, "seconds": dict(run.seconds), "rows": rows}
