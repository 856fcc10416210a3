"""Reports of densities: points by distance and density as in Fig. 2 of Lu et al. 2023, images by metric and scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cepdiff.data.densities.densities import DENSITIES
from cepdiff.errors import RunError
from cepdiff.figures import PAGE, new_figure, save_figure, styled
from cepdiff.problems.density.gallery import plot_grids, shown_heads
from cepdiff.problems.density.samples import (
    COLUMNS,
    EXACT,
    EXACT_SAMPLES,
    GUIDED,
    Samples,
    bounds,
    read_samples,
    scatter,
)
from cepdiff.runs.comparison import (
    METHODS,
    OURS,
    PRIOR,
    TITLES,
    Cell,
    Comparison,
    file_name,
    noise_of,
    spread_of,
    starred,
)
from cepdiff.runs.folder import RunFolder
from cepdiff.runs.report import Section, refuse_twins, total, warn_of_sizes
from cepdiff.runs.results import Results
from cepdiff.runs.search import warn
from cepdiff.runs.statistics import winner
from cepdiff.tables import Table, finite, in_order

SCALE = 1.0  # the guidance scale at which densities are compared: the exact one
INCHES = 0.3  # of an image in a grid


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
        compared = [compare_distances([run for run, _ in here], name, f"beta {beta:g}") for name in COLUMNS]
        tables = [found for found in compared if found is not None]
        facts = {"tables": [plain for _, plain in tables]}
        closing = total(runs, "densities") if beta == betas[-1] else ""
        title = f"Densities, beta {beta:g}"
        sections.append(Section(title, [figure], [table for table, _ in tables], facts, closing))
    return sections


def compare_distances(runs: Sequence[Results], distance: str, title: str) -> tuple[Table, dict[str, Any]] | None:
    """Methods by densities: multiples of the noise floor at `SCALE` as a table and as facts; None if there are none.

    Medians are over the densities that a method has. The best of a density leads by more than the noise. The last note
    counts the densities on which CEP is at least as good as every baseline there.
    """
    values: dict[str, dict[str, dict[int, float]]] = {}
    noise: dict[tuple[str, str], float | None] = {}
    for run in runs:
        judged = run.row(SCALE, distance)
        if judged is not None and judged.multiple is not None:
            values.setdefault(run.method, {}).setdefault(run.dataset, {})[run.seed] = judged.multiple
            noise[run.method, run.dataset] = noise_of(judged)
    if not values:
        return None
    names = in_order((run.dataset for run in runs), DENSITIES)
    cells = {
        method: {name: Cell(found, noise=noise[method, name]) for name in names if (found := values[method].get(name))}
        for method in in_order(values, METHODS)
    }
    means = {method: {name: cell.mean for name, cell in row.items()} for method, row in cells.items()}
    medians = {method: median(row.values()) for method, row in means.items()}
    best = {
        name: winner({method: row[name].measured for method, row in cells.items() if name in row}, smallest=True)
        for name in names
    }
    baselines = [row for method, row in means.items() if method != OURS]
    rivals = {name: [row[name] for row in baselines if name in row] for name in means.get(OURS, {})}
    wins = [means[OURS][name] <= min(others) for name, others in rivals.items() if others]

    lines = [["method", *(f"{density_title(name)}  " for name in names), "median  "]]
    for method, row in cells.items():
        part = "" if len(row) == len(names) else f" ({len(row)} of {len(names)})"
        texts = [starred(row.get(name), method == best[name]) for name in names]
        lines.append([TITLES.get(method, method), *texts, f"{medians[method]:.2f}{part}  "])
    share = f"{OURS} is at least as good as every baseline on {sum(wins)} of {len(wins)} densities"
    notes = [f"{share} ({sum(wins) / len(wins):.0%})."] if wins else []
    spread = spread_of(cell for row in cells.values() for cell in row.values())
    title = f"{title}, {COLUMNS[distance][0]} as a multiple of the noise floor{spread}"
    return Table(lines, title, notes, labels=1), {
        "beta": runs[0].inverse_temperature,
        "distance": distance,
        "cells": {method: {name: cell.to_json() for name, cell in row.items()} for method, row in cells.items()},
        "median": {method: finite(value) for method, value in medians.items()},
        "best": best,
        "cep_at_least_as_good": {
            "densities": sum(wins), "of": len(wins), "share": sum(wins) / len(wins) if wins else None
        },
    }  # fmt: skip


def samples_of(run: Results) -> Samples:
    """The samples of a run; raises RunError if some are missing."""
    path = RunFolder(run.folder).samples
    found = read_samples(path)
    points = [found.get(name, np.empty(0)) for name in ("data", EXACT.format(SCALE), GUIDED.format(SCALE))]
    energies = found.get("energies", np.empty(0))
    if any(sample.ndim != 2 or sample.size == 0 for sample in points) or energies.shape != (len(points[0]),):
        raise RunError(f"{path} lacks samples; delete it and run the same `cepdiff fit` again")
    return found


@styled()
def plot_densities(runs: Sequence[tuple[Results, Samples]], path: Path) -> None:
    """Runs of one beta: a column per density, a row per method, below the data and exact samples of p.

    Of several seeds the lowest is shown. The cell of a method without a run is empty.
    """
    cells = {(run.method, run.dataset): samples for run, samples in reversed(runs)}  # the lowest seed last: it stays
    densities = in_order((run.dataset for run, _ in runs), DENSITIES)
    methods = in_order((run.method for run, _ in runs), METHODS)
    side = min(1.75, (PAGE - 0.9) / len(densities))
    figure = new_figure(side * len(densities) + 0.9, side * (len(methods) + 2) + 0.6)
    grid = figure.subplots(len(methods) + 2, len(densities), squeeze=False)
    coloured: Any = None
    for column, density in enumerate(densities):
        first = next(cells[method, density] for method in methods if (method, density) in cells)
        low, high = bounds(first["data"])
        coloured = scatter(grid[0, column], first["data"], low, high, first["energies"])
        scatter(grid[1, column], first[EXACT.format(SCALE)], low, high)
        for axes, method in zip(grid[2:, column], methods, strict=True):
            if (method, density) in cells:
                scatter(axes, cells[method, density][GUIDED.format(SCALE)], low, high)
            else:
                axes.set(xticks=[], yticks=[], box_aspect=1, facecolor="0.97")
        grid[0, column].set_title(density_title(density))
    titles = (TITLES.get(method, method) for method in methods)
    for axes, name in zip(grid[:, 0], ("data by energy", EXACT_SAMPLES, *titles), strict=True):
        axes.set_ylabel(name)
    for axes in grid.flat:
        for spine in axes.spines.values():
            spine.set_color("0.8")
    bar = figure.colorbar(coloured, cax=grid[0, -1].inset_axes((1.06, 0.0, 0.07, 1.0)))
    bar.solids.set_alpha(1)
    bar.set_ticks([coloured.norm.vmin, coloured.norm.vmax], labels=["low E", "high E"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    figure.suptitle(f"β = {runs[0][0].inverse_temperature:g}")
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
    """The name of runs on images that can be compared: dataset, size, energy and beta."""
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
    grids = []
    for method in (PRIOR, *comparison.methods):
        scale = 0.0 if method == PRIOR else SCALE
        runs = [run for run in comparison.runs if method in (PRIOR, run.method) and scale in pictures[run.folder]]
        if runs:
            heads = runs[0].about["heads"]
            rows = [heads[head] for head in shown_heads(len(heads))]
            grids.append((TITLES.get(method, method), pictures[runs[0].folder][scale], rows))
    plot_grids(grids, path, f"{comparison.name}, guidance scale {SCALE:g}", INCHES)
