"""Figures over runs: densities side by side as in Fig. 2 of Lu et al. 2023, and scores against guidance scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cepdiff.data.densities.densities import DENSITIES
from cepdiff.data.rl.tasks import TASKS
from cepdiff.files import written_aside
from cepdiff.stages.distances import scatter
from cepdiff.stages.report_runs import DensityRun, PolicyRun
from cepdiff.stages.report_tables import METHODS, density_title, in_order

COLUMNS = 3  # tasks side by side
MARGIN = 0.04  # around the data, as a share of their range


def plot_densities(runs: Sequence[DensityRun], path: Path) -> None:
    """Runs of one beta: a column a density, a row a method, below the data and exact samples of p.

    Of several seeds the lowest is shown. The cell of a method without a run is empty.
    """
    runs = sorted(runs, key=lambda run: run.seed, reverse=True)  # the lowest seed is the last, and stays
    cells = {(run.method, run.dataset): run for run in runs}
    densities = in_order((run.dataset for run in runs), DENSITIES)
    methods = in_order((run.method for run in runs), METHODS)
    figure = _figure(1.75 * len(densities) + 0.9, 1.75 * (len(methods) + 2) + 0.4)
    grid = figure.subplots(len(methods) + 2, len(densities), squeeze=False)
    coloured: Any = None
    for column, density in enumerate(densities):
        first = next(cells[method, density] for method in methods if (method, density) in cells)
        data = first.samples["data"]
        room = MARGIN * (data.max(0) - data.min(0))
        low, high = data.min(0) - room, data.max(0) + room
        coloured = scatter(grid[0, column], data, low, high, first.samples["energies"])
        scatter(grid[1, column], first.exact, low, high)
        for axes, method in zip(grid[2:, column], methods, strict=True):
            if (method, density) in cells:
                scatter(axes, cells[method, density].guided, low, high)
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
    figure.suptitle(f"β = {runs[0].beta:g}", fontsize=12)
    _save(figure, path)


def plot_policies(runs: Sequence[PolicyRun], path: Path) -> None:
    """A panel a task: score against guidance scale of each seed, their mean, and the offline choices.

    Needs at least one run with episodes. The mean is taken at the scales that all seeds have.
    """
    runs = [run for run in runs if any(row.episodes for row in run.rows)]
    tasks = in_order((run.task for run in runs), TASKS)
    columns = min(COLUMNS, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = _figure(3.6 * columns + 0.6, 2.8 * lines + 0.7)
    grid = figure.subplots(lines, columns, squeeze=False)
    entries: dict[str, Any] = {}
    for axes, task in zip(grid.flat, tasks, strict=False):
        _plot_task(axes, [run for run in runs if run.task == task])
        axes.set_title(task, fontsize=10)
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=2 if columns == 1 else 4, frameon=False
    )
    _save(figure, path)


def _plot_task(axes: Any, runs: Sequence[PolicyRun]) -> None:
    curves = [{row.guidance_scale: row.score for row in run.rows if row.episodes} for run in runs]
    shared = [scale for scale in sorted(curves[0]) if all(scale in curve for curve in curves)]
    means = [fmean(curve[scale] for curve in curves) for scale in shared]
    if 0.0 in shared:
        axes.axhline(means[0], color="0.5", linestyle="--", linewidth=1, label="behavior policy (scale 0)")
    if len(curves) > 1:
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color="tab:blue", alpha=0.4, linewidth=0.8, label="a seed")
    label = "mean of the seeds" if len(curves) > 1 else "guided policy"
    axes.plot(shared, means, color="tab:blue", linewidth=2.5, marker="o", markersize=4, label=label)
    for run, curve in zip(runs, curves, strict=True):
        chosen = [row.guidance_scale for row in run.rows if row.offline_choice and row.episodes]
        axes.plot(
            chosen,
            [curve[scale] for scale in chosen],
            color="tab:orange",
            linestyle="none",
            marker="*",
            markersize=11,
            markeredgecolor="white",
            zorder=3,
            label="offline choice" if chosen else None,
        )
    known = all(row.normalized_score is not None for run in runs for row in run.rows if row.episodes)
    axes.set_xlabel("guidance scale")
    axes.set_ylabel("normalized score" if known else "mean return")
    axes.grid(alpha=0.3)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    with written_aside(path) as file:
        figure.savefig(file, dpi=150, format="png")
