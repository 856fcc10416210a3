"""What `cepdiff report` does: finished runs as tables and figures, on the screen and in a folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepdiff import __version__
from cepdiff.errors import ConfigError, RunError
from cepdiff.files import write_json, write_text
from cepdiff.stages.report_choices import policies_to_json, policy_rows, policy_table
from cepdiff.stages.report_figures import plot_densities, plot_policies
from cepdiff.stages.report_images_figures import plot_methods, plot_metrics
from cepdiff.stages.report_images_runs import ImageRun
from cepdiff.stages.report_images_tables import image_tables, images_to_json
from cepdiff.stages.report_runs import SCALE, DensityRun, Found, PolicyRun, find_runs
from cepdiff.stages.report_tables import Table, densities_to_json, distance_tables, training_seconds

NAMED = 5  # folders that a line names before it counts the others


@dataclass(frozen=True)
class Section:
    """A part of the report: figures, if there is something to draw, and tables; `closing` is a line below them."""

    title: str
    figures: Sequence[str]
    tables: Sequence[Table]
    closing: str = ""

    def text(self) -> str:
        """For a terminal."""
        return "\n\n".join([*(table.text() for table in self.tables), *filter(None, [self.closing])])

    def markdown(self) -> str:
        """For a page."""
        figures = [f"![{self.title}]({figure})" for figure in self.figures]
        tables = [table.markdown() for table in self.tables]
        return "\n\n".join([f"## {self.title}", *figures, *tables, *filter(None, [self.closing])])


def report(folders: Sequence[Path], output: Path) -> None:
    """Writes `report.md`, `report.json` and figures about the finished runs among `folders` to `output`, and prints
    the tables.

    Raises:
        ConfigError: `output` cannot be a folder.
        RunError: no folder is a finished run, one is not there or damaged, or two hold the same run.
    """
    found = find_runs(folders)
    _warn(found)
    if not (found.densities or found.images or found.policies):
        raise RunError(
            "there is no finished run among these folders; one has distances.json (of a density) or images.json (of "
            "images) and samples.npz, or scores.json (of offline RL), which `cepdiff fit` leaves at its end"
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
    if found.images:
        sections += image_sections(found.images, output)
        facts["images"] = images_to_json(found.images)
    if found.policies:
        sections.append(policy_section(found.policies, output))
        facts["policies"] = policies_to_json(found.policies)
    page = output / "report.md"
    write_json(output / "report.json", facts)
    write_text(page, "\n\n".join(["# Report", *(section.markdown() for section in sections)]) + "\n")
    print("\n\n".join(section.text() for section in sections))
    figures = [figure for section in sections for figure in section.figures]
    print("\n" + ", ".join([f"report {page}", "report.json", *figures]))


def density_sections(runs: Sequence[DensityRun], output: Path) -> list[Section]:
    """A section a beta, with its figure."""
    sections = []
    betas = sorted({run.beta for run in runs})
    tables = distance_tables(runs)
    total = _total(runs, "densities")
    for beta in betas:
        figure = f"densities-beta{beta:g}.png"
        plot_densities([run for run in runs if run.beta == beta], output / figure)
        here = [table.table() for table in tables if table.beta == beta]
        sections.append(Section(f"Densities, beta {beta:g}", [figure], here, total if beta == betas[-1] else ""))
    return sections


def image_sections(runs: Sequence[ImageRun], output: Path) -> list[Section]:
    """A section for each set of runs that compare, with its figures."""
    sections = []
    tables = image_tables(runs)
    for table in tables:
        target = table.target
        shape = "x".join(map(str, target.shape))
        name = re.sub(r"[^\w.-]+", "-", f"images-{target.dataset}-{shape}-{target.energy}-beta{target.beta:g}")
        figures = [f"{name}.png"]
        plot_metrics(table, output / figures[0])
        if any(SCALE in run.samples for run in table.runs):
            figures.append(f"{name}-grids.png")
            plot_methods(table, output / figures[1])
        closing = _total(runs, "images") if table is tables[-1] else ""
        sections.append(Section(f"Images: {target}", figures, [table.table()], closing))
    return sections


def policy_section(runs: Sequence[PolicyRun], output: Path) -> Section:
    """The section of offline RL, with its figure where anything was rolled out."""
    figures = []
    if any(row.episodes for run in runs for row in run.rows):
        figures.append("scores.png")
        plot_policies(runs, output / figures[0])
    return Section("Offline RL", figures, [policy_table(policy_rows(runs))])


def _total(runs: Sequence[DensityRun] | Sequence[ImageRun], what: str) -> str:
    """How many runs these are, and how long they were trained."""
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {what}"
    return f"{count}, {training_seconds(runs):,.0f} s of training (a stage that runs share counts once)."


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
    _warn_of_sizes(len(run.guided) for run in found.densities)
    for target in dict.fromkeys(run.target for run in found.images):
        _warn_of_sizes(run.num_samples for run in found.images if run.target == target)


def _warn_of_sizes(counts: Iterable[int]) -> None:
    sizes = sorted(set(counts))
    if len(sizes) > 1:
        print(
            f"cepdiff: runs with {', '.join(map(str, sizes))} samples side by side: "
            "the noise floor falls with their number, so multiples of it do not compare",
            file=sys.stderr,
        )
