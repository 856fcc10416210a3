"""Table, figure and JSON of the peers' scores by training time, with those of finished runs of `cepdiff fit`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cepdiff.data.rl.tasks import TASKS
from cepdiff.figures import new_panels, save_figure, shared_legend, styled
from cepdiff.files import write_json
from cepdiff.problems.offline.report import policy_row
from cepdiff.runs import statistics
from cepdiff.runs.comparison import Cell
from cepdiff.runs.report import refuse_twins
from cepdiff.runs.search import find_runs
from cepdiff.tables import Table, finite, in_order, number
from peers import ALGORITHMS

RESAMPLES = 10_000
CLOCKS = "Minutes of the peers are CPU time of one thread; those of cepdiff are the wall clock of its stages."
HINDSIGHT = "best in hindsight"


@dataclass(frozen=True)
class Point:
    """The normalised score of one policy after `minutes` of training; `error` is its standard error over episodes."""

    dataset: str
    method: str
    seed: int
    minutes: float
    score: float
    error: float


def peer_points(output: Path) -> list[Point]:
    """All checkpoints that `score` has scored."""
    points = []
    for path in sorted(output.glob("*/*/*/scores.json")):
        run = json.loads((path.parent / "training.json").read_text())
        points += [
            Point(run["dataset"], run["algorithm"], run["seed"], row["minutes"], row["normalized_score"],
                  row["normalized_standard_error"])
            for row in json.loads(path.read_text())["checkpoints"]
        ]  # fmt: skip
    return points


def our_points(label: str, folders: Sequence[Path], scales: Iterable[float]) -> list[Point]:
    """Runs of `cepdiff fit` at the offline choice, at each of `scales`, and at the best scale in hindsight."""
    points = []
    runs = find_runs(folders).runs
    refuse_twins(runs, [f"{label}, {run.dataset}, seed {run.seed}" for run in runs])
    for run in runs:
        row = policy_row(run)
        chosen = {"offline choice": row["choice_scale"], **{f"scale {s:g}": s for s in scales}}
        for name, scale in {**chosen, HINDSIGHT: row["best_scale"]}.items():
            found = None if scale is None else run.row(scale, "normalized_score")
            if found is not None:
                minutes = sum(run.seconds.values()) / 60
                method = f"{label}, {name}"
                points.append(Point(run.dataset, method, run.seed, minutes, found.value, found.error or 0.0))
    return points


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean without the lowest and highest quarter, each rounded down to whole values (Agarwal et al. 2021)."""
    return float(statistics.interquartile_mean([np.asarray(values)]))


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean; NaN for fewer than 2 values."""
    if len(values) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.quantile(statistics.interquartile_mean([drawn]), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Peers:
    """All points of a comparison; `budget` is in minutes."""

    points: Sequence[Point]
    budget: float

    @property
    def datasets(self) -> list[str]:
        """Names of buffers, in the order of rows."""
        return in_order((point.dataset for point in self.points), TASKS)

    @property
    def methods(self) -> list[str]:
        """The peers, then those of cepdiff in the order of the command line."""
        found = dict.fromkeys(point.method for point in self.points)
        return in_order(found, dict.fromkeys([*ALGORITHMS, *found]))

    def curve(self, dataset: str, method: str, seed: int) -> list[Point]:
        """The points of a run by time."""
        here = [p for p in self.points if (p.dataset, p.method, p.seed) == (dataset, method, seed)]
        return sorted(here, key=lambda point: point.minutes)

    def runs(self, method: str) -> dict[tuple[str, int], list[Point]]:
        """(buffer, seed) -> the points within the budget; runs of cepdiff count however long they took."""
        keys = sorted({(p.dataset, p.seed) for p in self.points if p.method == method})
        curves = {key: self.curve(key[0], method, key[1]) for key in keys}
        if method in ALGORITHMS:
            curves = {key: [p for p in curve if p.minutes <= self.budget] for key, curve in curves.items()}
        return {key: curve for key, curve in curves.items() if curve}

    def table(self) -> Table:
        """A line per buffer and method: the mean score over the seeds at each time."""
        times = sorted({p.minutes for p in self.points if p.method in ALGORITHMS})
        lines = [["buffer", "method", *(f"{time:g} min" for time in times), "later"]]
        for dataset in self.datasets:
            for method in self.methods:
                columns: dict[float, dict[int, Point]] = {}
                for point in self.points:
                    if (point.dataset, point.method) == (dataset, method):
                        column = next((time for time in times if time >= point.minutes), math.inf)
                        columns.setdefault(column, {})[point.seed] = point
                if columns:
                    lines.append([dataset, method, *(cell(columns.get(time, {})) for time in [*times, math.inf])])
        notes = [CLOCKS, "A run of cepdiff is in the first column whose time is not less than that of the run."]
        return Table(lines, "normalised score; ± over the episodes of one seed, or over the seeds", notes, labels=2)

    @property
    def ours(self) -> str | None:
        """The first method of cepdiff, with which the peers are compared."""
        return next((method for method in self.methods if method not in ALGORITHMS), None)

    def ends(self, method: str | None) -> dict[tuple[str, int], float]:
        """(buffer, seed) -> the last score within the budget."""
        return {} if method is None else {key: curve[-1].score for key, curve in self.runs(method).items()}

    def summary(self) -> list[dict[str, Any]]:
        """Interquartile means over the runs of each method, and of its differences from `ours`."""
        ours = self.ends(self.ours)
        rows = []
        for method in self.methods:
            curves = list(self.runs(method).values())
            if not curves:
                continue
            ends = self.ends(method)
            shared = [ours[key] - end for key, end in ends.items() if key in ours and method != self.ours]
            steps = [abs(after.score - before.score) for curve in curves for before, after in pairwise(curve)]
            rows.append({
                "method": method,
                "runs": len(curves),
                "minutes": fmean(curve[-1].minutes for curve in curves),
                "score": summarized(list(ends.values())),
                "later_half": summarized([fmean(p.score for p in curve[len(curve) // 2 :]) for curve in curves]),
                "best_checkpoint": summarized([max(p.score for p in curve) for curve in curves]),
                "swing": fmean(steps) if steps else None,
                "behind": {"shared": len(shared), **summarized(shared)} if shared else None,
            })  # fmt: skip
        return rows

    def wins(self) -> tuple[int, int]:
        """Number of buffers on which the mean score of `ours` is at least every peer's, and of the buffers of both."""
        peers = [mean_by_buffer(self.ends(method)) for method in ALGORITHMS]
        found = mean_by_buffer(self.ends(self.ours))
        best = {name: max(means[name] for means in peers if name in means) for means in peers for name in means}
        both = found.keys() & best.keys()
        return sum(found[name] >= best[name] for name in both), len(both)

    def summary_table(self) -> Table:
        """The summary as text."""
        lines = [["method", "runs", "minutes", "score", "later half", "best checkpoint", "swing", "behind"]]
        for row in self.summary():
            single = row["swing"] is None
            lines.append([
                row["method"], str(row["runs"]), number(row["minutes"], ".1f"), ranged(row["score"]),
                "-" if single else ranged(row["later_half"]), "-" if single else ranged(row["best_checkpoint"]),
                number(row["swing"], ".1f"), "-" if row["behind"] is None else ranged(row["behind"]),
            ])  # fmt: skip
        notes = [
            "later half: mean over the later half of the checkpoints. best checkpoint: chosen in hindsight. "
            "swing: mean absolute change from one checkpoint to the next."
        ]
        if self.ours is not None:
            won, of = self.wins()
            notes.append(f"behind: {self.ours} minus the method, over the buffers and seeds that both have.")
            notes.append(f"{self.ours} has at least every peer's score on {won} of {of} buffers.")
        title = f"interquartile mean [95% bootstrap interval] over buffers and seeds, within {self.budget:g} minutes"
        return Table(lines, title, notes, labels=1)

    @styled()
    def plot(self, path: Path) -> None:
        """A panel per buffer: the mean of each peer over its seeds, each seed as a thin line; cepdiff as points."""
        figure, panels = new_panels(len(self.datasets), 3, 3.6, 2.8)
        for axes, dataset in zip(panels, self.datasets, strict=True):
            for index, method in enumerate(self.methods):
                seeds = sorted({p.seed for p in self.points if (p.dataset, p.method) == (dataset, method)})
                curves = [self.curve(dataset, method, seed) for seed in seeds]
                if curves and method in ALGORITHMS:
                    draw_curves(axes, curves, method, f"C{index}")
                elif curves:
                    ends = [curve[-1] for curve in curves]
                    axes.errorbar(
                        [p.minutes for p in ends], [p.score for p in ends], [p.error for p in ends],
                        color=f"C{index}", marker="*", markersize=9, linestyle="", label=method,
                    )  # fmt: skip
            axes.axvline(self.budget, color="0.7", linewidth=0.8, zorder=0)
            axes.set_title(dataset)
            axes.set_xlabel("minutes of one core")
            axes.set_ylabel("normalised score")
            axes.set_xlim(left=0.0)
            axes.grid()
        figure.suptitle("CPU time for the peers, wall clock for cepdiff")
        shared_legend(figure, panels)
        save_figure(figure, path)


def mean_by_buffer(scores: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """(buffer, seed) -> score, as the mean over the seeds."""
    return {name: fmean(s for (other, _), s in scores.items() if other == name) for name, _ in scores}


def draw_curves(axes: Any, curves: Sequence[Sequence[Point]], label: str, color: str) -> None:
    """A thin line per seed and the mean where all seeds have a point; for one seed, its line with standard errors."""
    scores = [{p.minutes: p.score for p in curve} for curve in curves]
    times = [time for time in scores[0] if all(time in found for found in scores)]
    if len(curves) > 1:
        for found in scores:
            axes.plot(list(found), list(found.values()), color=color, alpha=0.4, linewidth=0.8)
    errors = [p.error for p in curves[0]] if len(curves) == 1 else None
    means = [fmean(found[time] for found in scores) for time in times]
    axes.errorbar(times, means, errors, color=color, marker="o", label=label)


def cell(points: dict[int, Point]) -> str:
    """Mean score, with the standard error of a single seed or the standard deviation over several."""
    if len(points) == 1:
        only = next(iter(points.values()))
        return number(only.score, ".1f", only.error)
    return str(Cell({seed: p.score for seed, p in sorted(points.items())}, ".1f")) if points else "-"


def summarized(values: Sequence[float]) -> dict[str, Any]:
    """Interquartile mean and its interval as plain values."""
    low, high = interval(values)
    return {"iqm": interquartile_mean(values), "low": finite(low), "high": finite(high)}


def ranged(found: dict[str, Any]) -> str:
    """Interquartile mean and interval as text."""
    low, high = (number(found[name], ".1f") for name in ("low", "high"))
    return f"{found['iqm']:.1f} [{low}, {high}]"


def report(args: Any) -> None:
    """Print the tables; write them, the points and the figure to the output folder."""
    points = peer_points(args.output)
    for label, *folders in args.runs:
        points += our_points(label, [Path(folder) for folder in folders], args.scales)
    if not points:
        raise SystemExit(f"{args.output} has no scores.json: run `train` and `score` first")
    found = Peers(points, args.minutes)
    found.plot(args.output / "peers.png")
    facts = {
        "budget": found.budget,
        "clocks": CLOCKS,
        "compared": found.ours,
        "wins": found.wins(),
        "summary": found.summary(),
        "points": [*map(asdict, points)],
    }
    write_json(args.output / "peers.json", facts)
    print(found.table().text(), found.summary_table().text(), sep="\n\n")
