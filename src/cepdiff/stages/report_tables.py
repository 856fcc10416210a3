"""Tables over runs of densities: how far each method is from exact samples, in multiples of the noise floor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from cepdiff.data.densities.densities import DENSITIES
from cepdiff.stages.distances import DISTANCES, TITLES
from cepdiff.stages.report_images_runs import ImageRun
from cepdiff.stages.report_runs import DensityRun

OURS = "CEP"
METHODS = (OURS, "ExponentialMSE", "MSE", "DPS")  # the order of rows; other objectives follow by name


@dataclass(frozen=True)
class Table:
    """Cells as text, the header first; `notes` are lines below it."""

    title: str
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    labels: int = 1
    """The leading columns that are names: aligned left."""

    def text(self) -> str:
        """For a terminal."""
        widths = [max(map(len, column)) for column in zip(*self.lines, strict=True)]
        aligned = [
            "  ".join(
                cell.ljust(width) if index < self.labels else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in self.lines
        ]
        return "\n".join([self.title, *aligned, *self.notes])

    def markdown(self) -> str:
        """For a page."""
        rows = ["| " + " | ".join(cell.strip().replace("|", r"\|") for cell in line) + " |" for line in self.lines]
        rule = "|" + "|".join(" --- " if index < self.labels else " ---: " for index in range(len(self.lines[0]))) + "|"
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"**{self.title}**\n", rows[0], rule, *rows[1:], *notes])


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The distinct `names`: those `known` in their order, then the others by name."""
    distinct, known = set(names), list(known)
    return [*(name for name in known if name in distinct), *sorted(distinct.difference(known))]


def density_title(name: str) -> str:
    """A density's name for readers."""
    return DENSITIES[name].title if name in DENSITIES else name


@dataclass(frozen=True)
class Cell:
    """One number of a method, by seed: a multiple of the noise floor, or another metric; shown with `digits`."""

    values: Mapping[int, float]
    digits: int = 2

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """Over the seeds (n - 1); None for one seed."""
        values = list(self.values.values())
        return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None

    def __str__(self) -> str:
        mean = f"{self.mean:.{self.digits}f}"
        return mean if self.std is None else f"{mean} ± {self.std:.{self.digits}f}"


@dataclass(frozen=True)
class DistanceTable:
    """Multiples of the noise floor of one distance at one beta: method -> density -> cell, where there are runs."""

    beta: float
    distance: str
    densities: Sequence[str]
    cells: Mapping[str, Mapping[str, Cell]]

    def median(self, method: str) -> float:
        """Over the densities that the method has."""
        return median(cell.mean for cell in self.cells[method].values())

    def best(self, density: str) -> list[str]:
        """The methods with the lowest mean; none where there is only one to compare."""
        return _lowest({method: row[density].mean for method, row in self.cells.items() if density in row})

    def best_median(self) -> list[str]:
        """The methods with the lowest median, of those with all densities: other medians compare with nothing."""
        return _lowest({method: self.median(method) for method in self.cells if self.complete(method)})

    def complete(self, method: str) -> bool:
        """Whether the method has every density."""
        return len(self.cells[method]) == len(self.densities)

    def ours_as_good(self) -> tuple[int, int]:
        """On how many densities CEP is at least as good as every baseline there, of how many with a baseline."""
        others = [row for method, row in self.cells.items() if method != OURS]
        compared = {
            density: [row[density].mean for row in others if density in row] for density in self.cells.get(OURS, {})
        }
        wins = [self.cells[OURS][density].mean <= min(means) for density, means in compared.items() if means]
        return sum(wins), len(wins)

    def table(self) -> Table:
        """As text; the best of a column has a star."""
        lines = [["method", *(f"{density_title(name)}  " for name in self.densities), "median  "]]
        for method, row in self.cells.items():
            cells = [
                starred(str(row[name]) if name in row else "-", method in self.best(name)) for name in self.densities
            ]
            part = "" if self.complete(method) else f" ({len(row)} of {len(self.densities)})"
            lines.append([method, *cells, starred(f"{self.median(method):.2f}{part}", method in self.best_median())])
        seeds = any(len(cell.values) > 1 for row in self.cells.values() for cell in row.values())
        spread = ", mean ± standard deviation of the seeds" if seeds else ""
        wins, of = self.ours_as_good()
        notes = []
        if of:
            notes.append(f"{OURS} is at least as good as every baseline on {wins} of {of} densities ({wins / of:.0%}).")
        title = f"beta {self.beta:g}, {TITLES[self.distance]} as a multiple of the noise floor{spread}"
        return Table(title, lines, notes)

    def to_json(self) -> dict[str, Any]:
        """Every number of the table in plain types."""
        wins, of = self.ours_as_good()
        return {
            "beta": self.beta,
            "distance": self.distance,
            "cells": {
                method: {
                    name: {
                        "mean": finite(cell.mean),
                        "std": cell.std,
                        "multiples": {str(seed): finite(value) for seed, value in cell.values.items()},
                    }
                    for name, cell in row.items()
                }
                for method, row in self.cells.items()
            },
            "median": {method: finite(self.median(method)) for method in self.cells},
            "best": {name: self.best(name) for name in self.densities} | {"median": self.best_median()},
            "cep_at_least_as_good": {"densities": wins, "of": of, "share": wins / of if of else None},
        }


def distance_tables(runs: Sequence[DensityRun]) -> list[DistanceTable]:
    """One a beta and distance, by beta."""
    tables = []
    for beta in sorted({run.beta for run in runs}):
        here = sorted((run for run in runs if run.beta == beta), key=lambda run: run.seed)
        densities = in_order((run.dataset for run in here), DENSITIES)
        for distance in DISTANCES:
            cells: dict[str, dict[str, Cell]] = {}
            for method in in_order((run.method for run in here), METHODS):
                row = {name: _multiples(here, method, name, distance) for name in densities}
                cells[method] = {name: Cell(multiples) for name, multiples in row.items() if multiples}
            cells = {method: row for method, row in cells.items() if row}
            if cells:
                tables.append(DistanceTable(beta, distance, densities, cells))
    return tables


def training_seconds(runs: Sequence[DensityRun] | Sequence[ImageRun]) -> float:
    """Wall clock of all training; a stage that runs share (`--reuse`) counts once."""
    stages = {
        (stage, run.checkpoints.get(stage, str(run.folder))): seconds
        for run in runs
        for stage, seconds in run.seconds.items()
    }
    return sum(stages.values())


def densities_to_json(runs: Sequence[DensityRun]) -> dict[str, Any]:
    """Every number of the tables in plain types."""
    return {
        "tables": [table.to_json() for table in distance_tables(runs)],
        "training_seconds": training_seconds(runs),
        "runs": [
            {
                "folder": str(run.folder),
                "dataset": run.dataset,
                "method": run.method,
                "beta": run.beta,
                "seed": run.seed,
                "seconds": dict(run.seconds),
                "distances": {
                    name: {
                        "value": row.value,
                        "floor": row.floor,
                        "floor_std": row.floor_std,
                        "multiple": finite(row.multiple),
                    }
                    for name, row in run.distances.items()
                },
            }
            for run in runs
        ],
    }


def finite(value: float | None) -> float | None:
    """None instead of NaN or infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def _multiples(runs: Sequence[DensityRun], method: str, dataset: str, distance: str) -> dict[int, float]:
    mine = [run for run in runs if run.method == method and run.dataset == dataset and distance in run.distances]
    return {run.seed: run.distances[distance].multiple for run in mine}


def _lowest(means: Mapping[str, float]) -> list[str]:
    return [name for name, mean in means.items() if mean == min(means.values())] if len(means) > 1 else []


def starred(text: str, best: bool) -> str:
    """A cell with a mark of the best of its column, or the room of one."""
    return f"{text} *" if best else f"{text}  "
