"""What `cepdiff report` does: finished runs as tables and figures, on the screen and in a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepdiff import __version__
from cepdiff.errors import ConfigError, RunError
from cepdiff.files import write_json, write_text
from cepdiff.stages.report_choices import policies_to_json, policy_rows, policy_table
from cepdiff.stages.report_figures import plot_densities, plot_policies
from cepdiff.stages.report_runs import SCALE, DensityRun, Found, PolicyRun, find_runs
from cepdiff.stages.report_tables import Table, densities_to_json, distance_tables, training_seconds

NAMED = 5  # folders that a line names before it counts the others


@dataclass(frozen=True)
class Section:
    """A part of the report: a figure, if there is something to draw, and tables; `closing` is a line below them."""

    title: str
    figure: str | None
    tables: Sequence[Table]
    closing: str = ""

    def text(self) -> str:
        """For a terminal."""
        return "\n\n".join([*(table.text() for table in self.tables), *filter(None, [self.closing])])

    def markdown(self) -> str:
        """For a page."""
        figure = [f"![{self.title}]({self.figure})"] if self.figure else []
        tables = [table.markdown() for table in self.tables]
        return "\n\n".join([f"## {self.title}", *figure, *tables, *filter(None, [self.closing])])


def report(folders: Sequence[Path], output: Path) -> None:
    """Writes `report.md`, `report.json` and figures about the finished runs among `folders` to `output`, and prints
    the tables.

    Raises:
        ConfigError: `output` cannot be a folder.
        RunError: no folder is a finished run, one is not there or damaged, or two hold the same run.
    """
    found = find_runs(folders)
    _warn(found)
    if not (found.densities or found.policies):
        raise RunError(
            "there is no finished run among these folders; one has distances.json and samples.npz (of a density) or "
            "scores.json (of offline RL), which `cepdiff fit` leaves at its end"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be a folder: {error.strerror}") from error
    facts: dict[str, Any] = {"cepdiff": __version__}
    sections: list[Section] = []
    if found.densities:
        sections += density_sections(found.densities, output)
        facts["densities"] = densities_to_json(found.densities)
    if found.policies:
        sections.append(policy_section(found.policies, output))
        facts["policies"] = policies_to_json(found.policies)
    page = output / "report.md"
    write_json(output / "report.json", facts)
    write_text(page, "\n\n".join(["# Report", *(section.markdown() for section in sections)]) + "\n")
    print("\n\n".join(section.text() for section in sections))
    figures = [section.figure for section in sections if section.figure]
    print("\n" + ", ".join([f"report {page}", "report.json", *figures]))


def density_sections(runs: Sequence[DensityRun], output: Path) -> list[Section]:
    """A section a beta, with its figure."""
    sections = []
    betas = sorted({run.beta for run in runs})
    tables = distance_tables(runs)
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of densities"
    total = f"{count}, {training_seconds(runs):,.0f} s of training (a stage that runs share counts once)."
    for beta in betas:
        figure = f"densities-beta{beta:g}.png"
        plot_densities([run for run in runs if run.beta == beta], output / figure)
        here = [table.table() for table in tables if table.beta == beta]
        sections.append(Section(f"Densities, beta {beta:g}", figure, here, total if beta == betas[-1] else ""))
    return sections


def policy_section(runs: Sequence[PolicyRun], output: Path) -> Section:
    """The section of offline RL, with its figure where anything was rolled out."""
    figure = None
    if any(row.episodes for run in runs for row in run.rows):
        figure = "scores.png"
        plot_policies(runs, output / figure)
    return Section("Offline RL", figure, [policy_table(policy_rows(runs))])


def _warn(found: Found) -> None:
    """A line for each kind of folder that is left out, and where samples do not compare."""
    for what, left_out in (
        ("no run folders, skipped", found.foreign),
        ("not finished, skipped (run the same `cepdiff fit` again)", found.unfinished),
        (f"not compared at guidance scale {SCALE:g}, skipped", found.without_scale),
    ):
        if left_out:
            more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
            print(f"cepdiff: {what}: {', '.join(map(str, left_out[:NAMED]))}{more}", file=sys.stderr)
    sizes = sorted({len(run.guided) for run in found.densities})
    if len(sizes) > 1:
        print(
            f"cepdiff: runs with {', '.join(map(str, sizes))} samples side by side: "
            "the noise floor falls with their number, so multiples of it do not compare",
            file=sys.stderr,
        )
