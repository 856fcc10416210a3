"""Reports of densities: points by distance and density as in Fig. 2 of Lu et al. 2023, images by metric and scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cepdiff.data.densities.densities import DENSITIES
from cepdiff.errors import RunError
from cepdiff.figures import new_figure, save_figure
from cepdiff.policy.images import tiled
from cepdiff.problems.density.gallery import shown_heads
from cepdiff.problems.density.samples import COLUMNS, EXACT, GUIDED, Samples, read_samples, scatter
from cepdiff.runs.comparison import METHODS, OURS, PRIOR, Cell, Comparison, file_name, starred
from cepdiff.runs.folder import RunFolder
from cepdiff.runs.report import Section, refuse_twins, total, warn, warn_of_sizes
from cepdiff.runs.results import Results
from cepdiff.tables import Table, finite, in_order

SCALE = 1.0  # the guidance scale at which densities are compared: the exact one
MARGIN = 0.04  # around the data, as a share of their range
INCHES = 0.3  # of an image in a grid


@dataclass(frozen=True)
class DistanceTable:
    """Multiples of the noise floor of one distance at one beta: method -> density -> cell, if there are runs."""

    beta: float
    distance: str
    densities: Sequence[str]
    cells: Mapping[str, Mapping[str, Cell]]

    def median(self, method: str) -> float:
        """Median over the densities that the method has."""
        return median(cell.mean for cell in self.cells[method].values())

    def complete(self, method: str) -> bool:
        """True if the method has every density."""
        return len(self.cells[method]) == len(self.densities)

    def best(self, density: str) -> list[str]:
        """The methods with the lowest mean; none if there is only one."""
        return lowest({method: row[density].mean for method, row in self.cells.items() if density in row})

    def best_median(self) -> list[str]:
        """The methods with the lowest median, among those with all densities: other medians are not comparable."""
        return lowest({method: self.median(method) for method in self.cells if self.complete(method)})

    def ours_as_good(self) -> tuple[int, int]:
        """On how many densities CEP is at least as good as every baseline there, of how many with a baseline."""
        others = [row for method, row in self.cells.items() if method != OURS]
        means = {name: [row[name].mean for row in others if name in row] for name in self.cells.get(OURS, {})}
        wins = [self.cells[OURS][name].mean <= min(found) for name, found in means.items() if found]
        return sum(wins), len(wins)

    def table(self) -> Table:
        """The cells as text; the best of a column has a star."""
        lines = [["method", *(f"{density_title(name)}  " for name in self.densities), "median  "]]
        for method, row in self.cells.items():
            cells = [starred(row.get(name), method in self.best(name)) for name in self.densities]
            part = "" if self.complete(method) else f" ({len(row)} of {len(self.densities)})"
            mark = " *" if method in self.best_median() else "  "
            lines.append([method, *cells, f"{self.median(method):.2f}{part}{mark}"])
        seeds = any(len(cell.values) > 1 for row in self.cells.values() for cell in row.values())
        spread = ", mean ± standard deviation over the seeds" if seeds else ""
        wins, of = self.ours_as_good()
        share = f"{OURS} is at least as good as every baseline on {wins} of {of} densities ({wins / max(of, 1):.0%})."
        title = f"beta {self.beta:g}, {COLUMNS[self.distance][0]} as a multiple of the noise floor{spread}"
        return Table(lines, title, [share] if of else [], labels=1)

    def to_json(self) -> dict[str, Any]:
        """Every number of the table in plain values."""
        wins, of = self.ours_as_good()
        return {
            "beta": self.beta,
            "distance": self.distance,
            "cells": {
                method: {name: cell.to_json() for name, cell in row.items()} for method, row in self.cells.items()
            },
            "median": {method: finite(self.median(method)) for method in self.cells},
            "best": {name: self.best(name) for name in self.densities} | {"median": self.best_median()},
            "cep_at_least_as_good": {"densities": wins, "of": of, "share": wins / of if of else None},
        }


def lowest(means: Mapping[str, float]) -> list[str]:
    """The names with the lowest value; none if there is only one."""
    return [name for name, mean in means.items() if mean == min(means.values())] if len(means) > 1 else []


def density_title(name: str) -> str:
    """A density's name for readers."""
    return DENSITIES[name].title if name in DENSITIES else name


def point_sections(runs: Sequence[Results], output: Path) -> list[Section]:
    """A section per beta, with a figure of the samples and a table per distance."""
    without = [run.folder for run in runs if SCALE not in run.scales]
    if without:
        warn(f"not compared at guidance scale {SCALE:g}, skipped", without)
    runs = sorted((run for run in runs if SCALE in run.scales), key=lambda run: run.seed)
    if not runs:
        raise RunError(f"none of these runs was compared at guidance scale {SCALE:g}")
    refuse_twins(runs, [run.title for run in runs])
    samples = [samples_of(run) for run in runs]
    warn_of_sizes(len(found[GUIDED.format(SCALE)]) for found in samples)
    sections = []
    betas = sorted({run.inverse_temperature or 0.0 for run in runs})
    for beta in betas:
        here = [(run, found) for run, found in zip(runs, samples, strict=True) if run.inverse_temperature == beta]
        figure = f"densities-beta{beta:g}.png"
        plot_densities(here, output / figure)
        tables = distance_tables([run for run, _ in here], beta)
        closing = total(runs, "densities") if beta == betas[-1] else ""
        facts = {"tables": [table.to_json() for table in tables]}
        sections.append(
            Section(f"Densities, beta {beta:g}", [figure], [table.table() for table in tables], facts, closing)
        )
    return sections


def distance_tables(runs: Sequence[Results], beta: float) -> list[DistanceTable]:
    """One table per distance."""
    densities = in_order((run.dataset for run in runs), DENSITIES)
    tables = []
    for distance in COLUMNS:
        cells: dict[str, dict[str, Cell]] = {}
        for run in runs:
            row = run.row(SCALE, distance)
            if row is not None and row.multiple is not None:
                known = cells.setdefault(run.method, {}).get(run.dataset, Cell({}))
                cells[run.method][run.dataset] = Cell({**known.values, run.seed: row.multiple})
        if cells:
            ordered = {
                method: {name: cells[method][name] for name in densities if name in cells[method]}
                for method in in_order(cells, METHODS)
            }
            tables.append(DistanceTable(beta, distance, densities, ordered))
    return tables


def samples_of(run: Results) -> Samples:
    """The samples of a run; raises RunError if some are missing."""
    path = RunFolder(run.folder).samples
    found = read_samples(path)
    points = [found.get(name, np.empty(0)) for name in ("data", EXACT.format(SCALE), GUIDED.format(SCALE))]
    energies = found.get("energies", np.empty(0))
    if any(sample.ndim != 2 or sample.size == 0 for sample in points) or energies.shape != (len(points[0]),):
        raise RunError(f"{path} lacks samples; delete it and run the same `cepdiff fit` again")
    return found


def plot_densities(runs: Sequence[tuple[Results, Samples]], path: Path) -> None:
    """Runs of one beta: a column per density, a row per method, below the data and exact samples of p.

    Of several seeds the lowest is shown. The cell of a method without a run is empty.
    """
    cells = {(run.method, run.dataset): samples for run, samples in reversed(runs)}  # the lowest seed last: it stays
    densities = in_order((run.dataset for run, _ in runs), DENSITIES)
    methods = in_order((run.method for run, _ in runs), METHODS)
    figure = new_figure(1.75 * len(densities) + 0.9, 1.75 * (len(methods) + 2) + 0.4)
    grid = figure.subplots(len(methods) + 2, len(densities), squeeze=False)
    coloured: Any = None
    for column, density in enumerate(densities):
        first = next(cells[method, density] for method in methods if (method, density) in cells)
        data = first["data"]
        room = MARGIN * (data.max(0) - data.min(0))
        low, high = data.min(0) - room, data.max(0) + room
        coloured = scatter(grid[0, column], data, low, high, first["energies"])
        scatter(grid[1, column], first[EXACT.format(SCALE)], low, high)
        for axes, method in zip(grid[2:, column], methods, strict=True):
            if (method, density) in cells:
                scatter(axes, cells[method, density][GUIDED.format(SCALE)], low, high)
            else:
                axes.set(xticks=[], yticks=[], box_aspect=1, facecolor="0.97")
        grid[0, column].set_title(density_title(density), fontsize=11)
    for axes, name in zip(grid[:, 0], ("data by energy", "ground truth", *methods), strict=True):
        axes.set_ylabel(name, fontsize=11)
    for axes in grid.flat:
        for spine in axes.spines.values():
            spine.set_color("0.8")
    bar = figure.colorbar(coloured, cax=grid[0, -1].inset_axes((1.06, 0.0, 0.07, 1.0)))
    bar.solids.set_alpha(1)
    bar.set_ticks([coloured.norm.vmin, coloured.norm.vmax], labels=["low E", "high E"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    figure.suptitle(f"β = {runs[0][0].inverse_temperature:g}", fontsize=12)
    save_figure(figure, path)


def image_sections(runs: Sequence[Results], output: Path) -> list[Section]:
    """A section per dataset, size, energy and beta, with figures of the metrics and of the samples."""
    runs = sorted(runs, key=lambda run: (target(run), run.seed))
    refuse_twins(runs, [f"{target(run)}, {run.method}, seed {run.seed}" for run in runs])
    sections = []
    names = list(dict.fromkeys(map(target, runs)))
    for name in names:
        here = [run for run in runs if target(run) == name]
        pictures = {run.folder: pictures_of(run) for run in here}
        warn_of_sizes(run.about["num_samples"] for run in here)
        samples = "/".join(f"{count:,}" for count in sorted({run.about["num_samples"] for run in here}))
        heads = len(here[0].about["heads"])
        note = f": means over {heads} head{'s' if heads > 1 else ''} of {samples} images each"
        comparison = Comparison(name, here, note)
        stem = file_name(f"images-{name}")
        figures = [f"{stem}.png"]
        comparison.plot(output / figures[0])
        if any(SCALE in found for found in pictures.values()):
            figures.append(f"{stem}-grids.png")
            plot_methods(comparison, pictures, output / figures[1])
        closing = total(runs, "images") if name == names[-1] else ""
        sections.append(Section(f"Images: {name}", figures, [comparison.table()], comparison.to_json(), closing))
    return sections


def target(run: Results) -> str:
    """What comparable runs on images share: dataset, size, energy and beta."""
    try:
        shape, energy, *_ = (run.about[key] for key in ("image_shape", "energy", "heads", "num_samples"))
        channels, height, width = shape
        colours, beta = "grey" if channels == 1 else "RGB", run.inverse_temperature
        return f"{run.dataset} ({width}x{height}, {colours}), energy {energy}, beta {beta:g}"
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.folder} has damaged results; delete them and run the same `cepdiff fit` again") from error


def pictures_of(run: Results) -> dict[float, Tensor]:
    """Guidance scale -> some images (heads, M, C, H, W) uint8; raises RunError if they do not match the heads."""
    path = RunFolder(run.folder).samples
    found = read_samples(path)
    kept: dict[float, Tensor] = {}
    for scale in run.scales:
        images = found.get(GUIDED.format(scale))
        heads = len(shown_heads(len(run.about["heads"])))
        if images is None or images.ndim != 5 or not images.size or len(images) != heads:
            raise RunError(f"{path} lacks samples; delete it and run the same `cepdiff fit` again")
        kept[scale] = torch.from_numpy(images).to(torch.uint8)
    return kept


def plot_methods(comparison: Comparison, pictures: Mapping[Path, Mapping[float, Tensor]], path: Path) -> None:
    """Samples at scale 1, a grid per method with a row per head, after those of the prior.

    Of several seeds the lowest is shown. Images at the same place start from the same noise in runs of one seed.
    """
    grids: list[tuple[str, Results, float]] = []
    priors = [run for run in comparison.runs if 0.0 in pictures[run.folder]]
    if priors:
        grids.append((PRIOR, priors[0], 0.0))
    for method in comparison.methods:
        runs = [run for run in comparison.runs if run.method == method and SCALE in pictures[run.folder]]
        if runs:
            grids.append((method, runs[0], SCALE))
    images = [pictures[run.folder][scale] for _, run, scale in grids]
    widths = [found.shape[1] for found in images]
    rows = max(map(len, images))
    figure = new_figure(INCHES * sum(widths) + 0.3 * len(grids) + 0.7, INCHES * rows + 0.9)
    panels = figure.subplots(1, len(grids), squeeze=False, width_ratios=widths)[0]
    for axes, (name, run, _), found in zip(panels, grids, images, strict=True):
        axes.imshow(tiled(found).permute(1, 2, 0).numpy(), interpolation="nearest")
        height = found.shape[-2] + 1
        names = [run.about["heads"][head] for head in shown_heads(len(run.about["heads"]))]
        axes.set_yticks([height * row + height / 2 for row in range(len(names))], names, fontsize=7)
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.set_title(name, fontsize=9)
    figure.suptitle(f"{comparison.name}, guidance scale {SCALE:g}", fontsize=10)
    save_figure(figure, path)
