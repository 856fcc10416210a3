"""Figures over runs on images: metrics by guidance scale and method, and samples of the methods side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cepdiff.policy.images import tiled
from cepdiff.stages.image_figures import new_figure, save
from cepdiff.stages.report_images_runs import ImageRun
from cepdiff.stages.report_images_tables import PRIOR, ImageTable
from cepdiff.stages.report_runs import SCALE

COLUMNS = 3  # panels side by side
INCHES = 0.3  # of an image in a grid


def plot_metrics(table: ImageTable, path: Path) -> None:
    """A panel a metric: means of the seeds against the guidance scale, a line a method, each beginning at the prior.

    Dashed: what real images have, the mean energy of exactly reweighted data, and a multiple of 1.
    """
    from matplotlib.ticker import LogFormatter

    names = [name for name in table.columns if not name.endswith("_exact")]
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure = new_figure(3.4 * columns + 0.5, 2.6 * lines + 0.8)
    panels = figure.subplots(lines, columns, squeeze=False)
    entries: dict[str, Any] = {}
    for axes, name in zip(panels.flat, names, strict=False):
        for method in table.methods:
            axes.plot(*_curve(table, name, method), marker="o", markersize=3.5, label=method)
        _plot_reference(axes, table, name)
        axes.set_xlabel("guidance scale")
        axes.set_title(table.columns[name], fontsize=10)
        axes.grid(alpha=0.3)
        if name == table.multiple and all(value > 0.0 for value in axes.dataLim.intervaly):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # 2 and not 2 x 10^0
            axes.yaxis.set_minor_formatter(LogFormatter())
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(str(table.target), fontsize=11)
    save(figure, path)


def plot_methods(table: ImageTable, path: Path) -> None:
    """Samples at scale 1, a grid a method with a row a head, and before them those of the prior.

    Of several seeds the lowest is shown. Images of one place start from the same noise in runs of one seed.
    """
    grids: list[tuple[str, ImageRun, float]] = []
    priors = [run for run in table.runs if 0.0 in run.samples]
    if priors:
        grids.append((PRIOR, priors[0], 0.0))
    for method in table.methods:
        runs = [run for run in table.runs if run.method == method and SCALE in run.samples]
        if runs:
            grids.append((method, runs[0], SCALE))
    widths = [run.samples[scale].shape[1] for _, run, scale in grids]
    rows = max(len(run.heads) for _, run, _ in grids)
    figure = new_figure(INCHES * sum(widths) + 0.3 * len(grids) + 0.7, INCHES * rows + 0.9)
    panels = figure.subplots(1, len(grids), squeeze=False, width_ratios=widths)[0]
    for axes, (name, run, scale) in zip(panels, grids, strict=True):
        images = run.samples[scale]
        axes.imshow(tiled(images).permute(1, 2, 0).numpy(), interpolation="nearest")
        height = images.shape[-2] + 1
        axes.set_yticks([height * row + height / 2 for row in range(len(run.heads))], run.heads, fontsize=7)
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.set_title(name, fontsize=9)
    figure.suptitle(f"{table.target}, guidance scale {SCALE:g}", fontsize=10)
    save(figure, path)


def _curve(table: ImageTable, name: str, method: str) -> tuple[list[float], list[float]]:
    """(scales, means) of a metric of a method, from the prior on."""
    here = {
        scale: cells[name].mean
        for (scale, row), cells in table.rows.items()
        if row in (PRIOR, method) and name in cells and math.isfinite(cells[name].mean)
    }
    return list(here), list(here.values())


def _plot_reference(axes: Any, table: ImageTable, name: str) -> None:
    """What samples should have of this metric, where that is known."""
    style: dict[str, Any] = {"color": "0.4", "linestyle": "--", "linewidth": 1.0, "zorder": 1}
    if name == table.multiple:
        axes.axhline(1.0, label="noise floor", **style)
    elif name in table.real:
        axes.axhline(table.real[name].mean, label="real images", **style)
    else:
        other = f"{name}_exact"
        exact = {scale: cells[other].mean for (scale, _), cells in table.rows.items() if other in cells}
        if exact:
            axes.plot(list(exact), list(exact.values()), label="reweighted data", **style)
