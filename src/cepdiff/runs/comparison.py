"""The comparison of runs that every problem has: metrics by guidance scale and method, over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cepdiff.figures import GUIDE, new_panels, save_figure, shared_legend, styled
from cepdiff.runs.report import Section, refuse_twins, total
from cepdiff.runs.results import Results, Row
from cepdiff.runs.statistics import Measured, winner
from cepdiff.tables import Table, finite, in_order, number

OURS = "CEP"
# The order of rows; other objectives follow by name.
METHODS = (OURS, "CEP (tempered)", "NoisyClassifier", "ExponentialMSE", "MSE", "DPSClassifier", "DPS", "DPS (analytic)")
PRIOR = "prior"
TITLES = {
    "ExponentialMSE": "E-MSE",
    "NoisyClassifier": "noisy classifier",
}  # as the paper and the pages call them


@dataclass(frozen=True)
class Cell:
    """A number of a method, by seed, shown with the format `form`; `noise` is the standard error of a single value."""

    values: Mapping[int, float]
    form: str = ".2f"
    noise: float | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for one seed."""
        values = list(self.values.values())
        return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None for one seed."""
        return None if self.std is None else self.std / math.sqrt(len(self.values))

    @property
    def measured(self) -> Measured:
        """Mean and error over the seeds; of one seed, the noise of its value."""
        if len(self.values) < 2:
            return Measured(self.mean, self.noise)
        return Measured(self.mean, self.standard_error, len(self.values))

    def __str__(self) -> str:
        return number(self.mean, self.form, self.std)

    def to_json(self) -> dict[str, Any]:
        """The cell in plain values."""
        values = {str(seed): finite(value) for seed, value in self.values.items()}
        return {"mean": finite(self.mean), "std": self.std, "values": values}


@dataclass(frozen=True)
class Comparison:
    """Metrics of runs that are comparable: (guidance scale, method) -> metric -> cell.

    Scale 0 is the prior for every method: runs that share its weights count once. A metric with a noise floor is
    shown as a multiple of it.

    Args:
        name: what the runs have in common.
        runs: sorted by seed.
        note: at the end of the title.
    """

    name: str
    runs: Sequence[Results]
    note: str = ""

    @cached_property
    def columns(self) -> dict[str, tuple[str, str]]:
        """Metric -> (title, format)."""
        titles = {metric: (title, form) for run in self.runs for metric, (title, form) in run.columns.items()}
        floors = self.floors
        plain = {metric: about for metric, about in titles.items() if metric not in floors}
        return plain | {metric: (f"{titles[metric][0]}, x floor", ".2f") for metric in titles if metric in floors}

    @cached_property
    def floors(self) -> set[str]:
        """Metrics with a noise floor."""
        return {row.metric for run in self.runs for row in run.rows if row.floor is not None}

    @cached_property
    def methods(self) -> list[str]:
        """In the order of rows, without the prior."""
        return in_order((run.method for run in self.runs), METHODS)

    @cached_property
    def rows(self) -> dict[tuple[float, str], dict[str, Cell]]:
        """(guidance scale, method) -> metric -> cell."""
        found: dict[tuple[float, str], dict[str, Cell]] = {}
        with_prior = [run for run in reversed(self.runs) if 0.0 in run.scales]
        priors = {run.made_from.get("behavior_checkpoint", str(run.folder)): run for run in with_prior}
        if priors:
            found[0.0, PRIOR] = self.cells(list(priors.values())[::-1], 0.0)
        for scale in sorted({scale for run in self.runs for scale in run.scales if scale}):
            for method in self.methods:
                here = [run for run in self.runs if run.method == method and scale in run.scales]
                if here:
                    found[scale, method] = self.cells(here, scale)
        return found

    def cells(self, runs: Sequence[Results], scale: float) -> dict[str, Cell]:
        """A cell per metric; several runs of one seed count by their mean."""
        cells = {}
        for metric, (_, form) in self.columns.items():
            by_seed: dict[int, list[float]] = {}
            noise = None
            for run in runs:
                row = run.row(scale, metric)
                noise = noise if row is None else noise_of(row)
                value = None if row is None else row.multiple if metric in self.floors else row.value
                if value is not None and not math.isnan(value):
                    by_seed.setdefault(run.seed, []).append(value)
            if by_seed:
                cells[metric] = Cell({seed: fmean(values) for seed, values in by_seed.items()}, form, noise)
        return cells

    @cached_property
    def real(self) -> dict[str, Cell]:
        """Metrics of real data, which depend on the seed only; at the noise floor by definition."""
        known = {run.seed: {**run.real, **dict.fromkeys(self.floors, 1.0)} for run in self.runs if run.real}
        values = {
            metric: {seed: real[metric] for seed, real in known.items() if metric in real} for metric in self.columns
        }
        return {metric: Cell(found, self.columns[metric][1]) for metric, found in values.items() if found}

    def best(self, scale: float, metric: str) -> str | None:
        """The method closest to the noise floor, or the most accurate; None if none leads by more than the noise."""
        if metric not in self.floors | {"accuracy"}:
            return None
        found = {m: cells[metric].measured for (s, m), cells in self.rows.items() if s == scale and metric in cells}
        return winner(found, smallest=metric in self.floors)

    def table(self) -> Table:
        """The cells as text; the best of a scale, if there is one, has a star."""
        columns, rows, real = self.columns, self.rows, self.real
        lines = [["scale", "method", *(f"{title}  " for title, _ in columns.values())]]
        for (scale, method), cells in rows.items():
            texts = [starred(cells.get(metric), method == self.best(scale, metric)) for metric in columns]
            lines.append([f"{scale:g}", TITLES.get(method, method), *texts])
        if real:
            lines.append(["", "real data", *(starred(real.get(metric), False) for metric in columns)])
        spread = spread_of(cell for cells in rows.values() for cell in cells.values())
        return Table(lines, f"{self.name}{self.note}{spread}", labels=2)

    def to_json(self) -> dict[str, Any]:
        """Every number of the table in plain values."""
        return {
            "rows": [
                {"scale": scale, "method": method, "metrics": {name: cell.to_json() for name, cell in cells.items()}}
                for (scale, method), cells in self.rows.items()
            ],
            "real": {name: cell.to_json() for name, cell in self.real.items()},
            "best": {
                f"{scale:g}": {metric: self.best(scale, metric) for metric in self.columns}
                for scale in sorted({scale for scale, _ in self.rows if scale})
            },
        }

    @styled()
    def plot(self, path: Path) -> None:
        """A panel per metric: mean over the seeds against guidance scale, one line per method, from the prior on.

        Dashed: the value of real or exactly reweighted data, and a multiple of 1.
        """
        names = [name for name in self.columns if not name.endswith("_exact")]
        figure, panels = new_panels(len(names), 3, 3.4, 2.6)
        rows, real = self.rows, self.real
        for axes, name in zip(panels, names, strict=True):
            for method in self.methods:
                here = [(s, c[name].mean) for (s, m), c in rows.items() if m in (PRIOR, method) and name in c]
                here = [(scale, mean) for scale, mean in here if math.isfinite(mean)]
                axes.plot([s for s, _ in here], [v for _, v in here], marker="o", label=TITLES.get(method, method))
            exact = {s: c[f"{name}_exact"].mean for (s, _), c in rows.items() if f"{name}_exact" in c}
            if name in self.floors:
                axes.axhline(1.0, label="noise floor", **GUIDE)
                log_scale(axes)
            elif name in real:
                axes.axhline(real[name].mean, label="real data", **GUIDE)
            elif exact:
                axes.plot(list(exact), list(exact.values()), label="reweighted data", **GUIDE)
            axes.set(xlabel="guidance scale", ylabel=self.columns[name][0])
            axes.grid()
        shared_legend(figure, panels)
        figure.suptitle(self.name)
        save_figure(figure, path)


def log_scale(axes: Any) -> None:
    """A logarithmic y axis with plain numbers, if all values are above 0."""
    from matplotlib.ticker import LogFormatter

    if all(value > 0.0 for value in axes.dataLim.intervaly):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # 2 and not 2 x 10^0
        axes.yaxis.set_minor_formatter(LogFormatter())


def noise_of(row: Row) -> float | None:
    """Standard error of one run's value: its own, or for a multiple of the noise floor the floor's deviation."""
    if row.floor and row.floor_error is not None:
        return row.floor_error / row.floor
    return row.error


def spread_of(cells: Iterable[Cell]) -> str:
    """The meaning of ± for a table's title; "" if no cell has one."""
    return ", mean ± standard deviation over the seeds" if any(len(cell.values) > 1 for cell in cells) else ""


def starred(cell: Cell | None, best: bool) -> str:
    """A cell with a mark for the best of its column, or space for one."""
    return f"{'-' if cell is None else cell}{' *' if best else '  '}"


def file_name(text: str) -> str:
    """The text as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", text)


def compare_runs(runs: Sequence[Results], output: Path) -> list[Section]:
    """A section per dataset and inverse temperature, with a figure and a table."""
    refuse_twins(runs, [run.title for run in runs])
    groups: dict[str, list[Results]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        beta = "" if run.inverse_temperature is None else f", beta {run.inverse_temperature:g}"
        groups.setdefault(f"{run.dataset}{beta}", []).append(run)
    sections = []
    for name, here in groups.items():
        comparison, figure = Comparison(name, here), f"{file_name(name)}.png"
        comparison.plot(output / figure)
        sections.append(Section(name, [figure], [comparison.table()], comparison.to_json(), total(here, name)))
    return sections
