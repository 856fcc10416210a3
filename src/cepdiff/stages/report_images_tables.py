"""Tables over runs on images: metrics by guidance scale and method, the distance in multiples of its noise floor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cepdiff.stages.report_images_runs import ANALYTIC, ImageRun, Target
from cepdiff.stages.report_tables import OURS, Cell, Table, finite, in_order, starred, training_seconds

PRIOR = "prior"
# The order of rows; other objectives follow by name.
METHODS = (OURS, "NoisyClassifier", "ExponentialMSE", "MSE", "DPSClassifier", "DPS", ANALYTIC.format("DPS"))
DIGITS = 3
MULTIPLE_DIGITS = 2

Cells = Mapping[str, Cell]
"""Metric -> cell."""


@dataclass(frozen=True)
class ImageTable:
    """Metrics of runs with one target: (guidance scale, method) -> metric -> cell, where there are runs.

    Scale 0 is the prior, whatever the method: runs that share its weights count once. `columns` are the shown metrics
    and their titles, `distance` the one of which multiples are shown, `real` the metrics of real images.
    """

    target: Target
    runs: Sequence[ImageRun]
    distance: str
    columns: Mapping[str, str]
    rows: Mapping[tuple[float, str], Cells]
    real: Cells

    @property
    def multiple(self) -> str:
        """The metric that says how far samples are off."""
        return f"{self.distance}_multiple"

    @property
    def methods(self) -> list[str]:
        """In the order of rows; without the prior."""
        return in_order((run.method for run in self.runs), METHODS)

    @property
    def scales(self) -> list[float]:
        """Ascending."""
        return sorted({scale for scale, _ in self.rows})

    def best(self, scale: float, metric: str) -> list[str]:
        """The methods with the highest accuracy or the lowest multiple; none where nothing is to be compared."""
        choose: Callable[[Iterable[float]], float] | None = {"accuracy": max, self.multiple: min}.get(metric)
        means = {
            method: cells[metric].mean for (s, method), cells in self.rows.items() if s == scale and metric in cells
        }
        if choose is None or len(means) < 2:
            return []
        return [method for method, mean in means.items() if mean == choose(means.values())]

    def table(self) -> Table:
        """As text; the best of a scale has a star."""
        lines = [["scale", "method", *(f"{title}  " for title in self.columns.values())]]
        for (scale, method), cells in self.rows.items():
            texts = [
                starred(str(cells[name]) if name in cells else "-", method in self.best(scale, name))
                for name in self.columns
            ]
            lines.append([f"{scale:g}", method, *texts])
        if self.real:
            texts = [starred(str(self.real[name]) if name in self.real else "-", False) for name in self.columns]
            lines.append(["", "real images", *texts])
        seeds = any(len(cell.values) > 1 for cells in self.rows.values() for cell in cells.values())
        spread = ", mean ± standard deviation of the seeds" if seeds else ""
        return Table(f"{self.target}: means over {self._sizes()}{spread}", lines, labels=2)

    def to_json(self) -> dict[str, Any]:
        """Every number of the table in plain types."""
        return {
            "dataset": self.target.dataset,
            "shape": list(self.target.shape),
            "energy": self.target.energy,
            "beta": self.target.beta,
            "distance": self.distance,
            "rows": [
                {"guidance_scale": scale, "method": method, "metrics": _cells_to_json(cells)}
                for (scale, method), cells in self.rows.items()
            ],
            "real": _cells_to_json(self.real),
            "best": {
                f"{scale:g}": {name: self.best(scale, name) for name in ("accuracy", self.multiple)}
                for scale in self.scales
                if scale
            },
        }

    def _sizes(self) -> str:
        heads = "1 head" if self.runs[0].num_heads == 1 else f"{self.runs[0].num_heads} heads"
        samples = "/".join(f"{count:,}" for count in sorted({run.num_samples for run in self.runs}))
        return f"{heads} of {samples} images each"


def image_tables(runs: Sequence[ImageRun]) -> list[ImageTable]:
    """One a target, by dataset, energy and beta."""
    targets = sorted({run.target for run in runs}, key=lambda t: (t.dataset, t.shape, t.energy, t.beta))
    return [_table_of([run for run in runs if run.target == target]) for target in targets]


def images_to_json(runs: Sequence[ImageRun]) -> dict[str, Any]:
    """Every number of the tables and figures in plain types."""
    return {
        "tables": [table.to_json() for table in image_tables(runs)],
        "training_seconds": training_seconds(runs),
        "runs": [
            {
                "folder": str(run.folder),
                "dataset": run.target.dataset,
                "energy": run.target.energy,
                "method": run.method,
                "beta": run.target.beta,
                "seed": run.seed,
                "seconds": dict(run.seconds),
                "scales": [
                    {"guidance_scale": scale, **{name: finite(value) for name, value in metrics.items()}}
                    for scale, metrics in run.metrics.items()
                ],
            }
            for run in runs
        ],
    }


def _table_of(runs: Sequence[ImageRun]) -> ImageTable:
    """Of runs with one target."""
    runs = sorted(runs, key=lambda run: run.seed)
    distance = runs[0].distance
    rows: dict[tuple[float, str], Cells] = {}
    priors = list({run.prior: run for run in reversed(runs) if 0.0 in run.metrics}.values())[::-1]
    if priors:
        rows[0.0, PRIOR] = _cells([(run, run.metrics[0.0]) for run in priors], distance)
    methods = in_order((run.method for run in runs), METHODS)
    for scale in sorted({scale for run in runs for scale in run.metrics if scale}):
        for method in methods:
            here = [(run, run.metrics[scale]) for run in runs if run.method == method and scale in run.metrics]
            if here:
                rows[scale, method] = _cells(here, distance)
    # What real images reach hangs on the seed alone, which draws them and trains the classifier; the floor is theirs.
    real = list({run.seed: (run, {**run.real, f"{distance}_multiple": 1.0}) for run in runs if run.real}.values())
    return ImageTable(
        target=runs[0].target,
        runs=runs,
        distance=distance,
        columns=_columns(runs, distance),
        rows=rows,
        real=_cells(real, distance),
    )


def _columns(runs: Sequence[ImageRun], distance: str) -> dict[str, str]:
    """The metrics to show, and their titles: of the distance its multiples alone."""
    titles = {name: title for run in runs for name, title in run.columns.items()}
    multiple = f"{distance}_multiple"
    shown = {name: title for name, title in titles.items() if name not in (distance, f"{distance}_floor", multiple)}
    return {**shown, multiple: f"{titles.get(distance, distance)}, x floor"}


def _cells(found: Sequence[tuple[ImageRun, Mapping[str, float]]], distance: str) -> dict[str, Cell]:
    """A cell a metric; several runs of one seed (priors that are not shared) give their mean."""
    names = list(dict.fromkeys(name for _, metrics in found for name in metrics))
    cells = {}
    for name in names:
        by_seed: dict[int, list[float]] = {}
        for run, metrics in found:
            if name in metrics:
                by_seed.setdefault(run.seed, []).append(metrics[name])
        digits = MULTIPLE_DIGITS if name == f"{distance}_multiple" else DIGITS
        cells[name] = Cell({seed: fmean(values) for seed, values in by_seed.items()}, digits)
    return cells


def _cells_to_json(cells: Cells) -> dict[str, Any]:
    return {
        name: {
            "mean": finite(cell.mean),
            "std": cell.std,
            "values": {str(seed): finite(value) for seed, value in cell.values.items()},
        }
        for name, cell in cells.items()
    }
