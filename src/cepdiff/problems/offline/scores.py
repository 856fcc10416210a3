"""Scores of offline RL by task, seed and setting, at one choice of the guidance scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from cepdiff.data.rl.tasks import TASKS
from cepdiff.runs.comparison import Cell
from cepdiff.runs.report import BEST, OFFLINE
from cepdiff.runs.results import Results, Row
from cepdiff.runs.settings import Settings
from cepdiff.runs.statistics import Measured, Samples, winner
from cepdiff.tables import MISSING, Table, in_order, number

POINTS = "points"
UNITS = {"normalized_score": POINTS, "success_rate": "success rate, %", "mean_return": "return"}
NAMED = 5  # runs or keys that a note names before it counts the rest


def score_metric(run: Results) -> str:
    """The normalised score, else the success rate, else the mean return; the first if there was no rollout."""
    return next((metric for metric in UNITS if run.values(metric)), "normalized_score")


def leading_scale(rows: Sequence[Row]) -> float | None:
    """The guidance scale that is the best by more than the noise, see `winner`; None if there is none."""
    metric = next((metric for metric in UNITS if any(row.metric == metric for row in rows)), "")
    episodes = {row.scale: row.value for row in rows if row.metric == "episodes"}
    scores = {
        row.scale: Measured(row.value, row.error, episodes.get(row.scale, 1)) for row in rows if row.metric == metric
    }
    return winner(scores)


@dataclass(frozen=True)
class Scores:
    """Scores at one choice of the guidance scale.

    Args:
        runs: finished runs.
        settings: theirs.
        scale: a guidance scale, "offline" (each run's offline choice) or "best" (the scale with the highest mean over
            the seeds of a task and setting: chosen by the scores that it is judged by).
    """

    runs: Sequence[Results]
    settings: Settings
    scale: float | str

    @property
    def chosen(self) -> str:
        """How the scale was chosen, in words."""
        names = {OFFLINE: "offline choice", BEST: "best in hindsight"}
        return names[self.scale] if isinstance(self.scale, str) else f"scale {self.scale:g}"

    @cached_property
    def tasks(self) -> list[str]:
        """In the registry's order, then by name."""
        return in_order((run.dataset for run in self.runs), TASKS)

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[Results]]:
        """(task, setting) -> runs."""
        found: dict[tuple[str, str], list[Results]] = {}
        for run, label in zip(self.runs, self.settings.labels, strict=True):
            found.setdefault((run.dataset, label), []).append(run)
        return found

    @cached_property
    def scales(self) -> dict[tuple[str, str], dict[int, float]]:
        """(task, setting) -> seed -> guidance scale, for the runs that were rolled out at the chosen one."""
        found = {}
        for place, runs in self.groups.items():
            curves = {run.seed: run.values(score_metric(run)) for run in runs}
            wanted: Mapping[int, Any] = dict.fromkeys(curves, self.scale)
            if self.scale == OFFLINE:
                wanted = {run.seed: run.about.get("offline_choice") for run in runs}
            elif self.scale == BEST:
                wanted = dict.fromkeys(curves, best_scale([curve for curve in curves.values() if curve]))
            found[place] = {seed: wanted[seed] for seed, curve in sorted(curves.items()) if wanted[seed] in curve}
        return found

    @cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """(task, setting) -> scores by seed; without those that have no score."""
        found = {}
        for place, runs in self.groups.items():
            curves = {run.seed: run.values(score_metric(run)) for run in runs}
            if scales := self.scales[place]:
                found[place] = Cell({seed: curves[seed][scale] for seed, scale in scales.items()}, ".1f")
        return found

    @cached_property
    def labels(self) -> list[str]:
        """The settings that have scores."""
        return [label for label in self.settings.order if any(setting == label for _, setting in self.cells)]

    @cached_property
    def expected(self) -> int:
        """The number of seeds of a complete cell: that of the largest cell, or what the sweep plans."""
        return max([*map(len, self.groups.values()), *self.settings.planned])

    @cached_property
    def shared(self) -> list[str]:
        """Tasks in which every setting has a normalised score: statistics are over them."""
        return [
            task
            for task in self.tasks
            if self.unit(task) == POINTS and all((task, label) in self.cells for label in self.labels)
        ]

    def unit(self, task: str) -> str:
        """Of the task's scores: `POINTS` if all are normalised."""
        return " or ".join(in_order((UNITS[score_metric(run)] for run in self.runs if run.dataset == task), ()))

    def samples(self, label: str) -> Samples:
        """The scores of a setting, an array per shared task."""
        return [np.array(list(self.cells[task, label].values.values())) for task in self.shared]

    @property
    def header(self) -> list[str]:
        """Titles of `texts`."""
        return [name for label in self.labels for name in (f"{label}, {self.chosen}", "n")]

    def texts(self, task: str) -> list[str]:
        """For each setting its mean ± standard error over the seeds, and how many they are ("2 of 3")."""
        found = []
        for label in self.labels:
            cell = self.cells.get((task, label))
            count = 0 if cell is None else len(cell.values)
            error = None if cell is None else cell.standard_error
            known = math.nan if error is None else error
            found.append(MISSING if cell is None else number(cell.mean, ".1f", known))
            found.append(str(count) if count == self.expected else f"{count} of {self.expected}")
        return found

    def table(self) -> Table:
        """A row per task, and the mean over the shared tasks."""
        lines = [["task", *self.header]]
        lines += [
            [task if self.unit(task) == POINTS else f"{task} ({self.unit(task)})", *self.texts(task)]
            for task in self.tasks
        ]
        if len(self.shared) > 1:
            means = [fmean(self.cells[task, label].mean for task in self.shared) for label in self.labels]
            cells = [cell for mean in means for cell in (number(mean, ".1f"), "")]
            lines.append([f"mean of {len(self.shared)} tasks", *cells])
        return Table(lines, "normalised score, mean ± standard error over n seeds", self.notes(), labels=1)

    def notes(self) -> list[str]:
        """Remarks on the choice of the scale, on missing seeds and on the settings."""
        notes = []
        if self.scale == BEST:
            notes.append(
                "Best in hindsight: for each task and setting, the scale with the highest mean over the seeds. It is "
                "chosen by the scores it is judged by, so that these are higher than a user would get."
            )
        places = zip(self.runs, self.settings.labels, strict=True)
        without = [run for run, label in places if run.seed not in self.scales[run.dataset, label]]
        if without:
            more = ", ..." if len(without) > NAMED else ""
            named = ", ".join(str(run.folder) for run in without[:NAMED])
            notes.append(f"Not counted, without a score at the {self.chosen}: {len(without)} runs ({named}{more}).")
        counts = [len(self.cells[place].values) if place in self.cells else 0 for place in self.groups]
        if min(counts) < self.expected:
            notes.append(f"Where n is less than {self.expected}, seeds are missing, and the mean is over fewer.")
        if 1 in counts:
            notes.append("One seed has no standard error over seeds.")
        if keys := self.settings.between_tasks:
            more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
            notes.append(f"These settings differ between tasks only: {', '.join(keys[:NAMED])}{more}.")
        return notes


def best_scale(curves: Sequence[Mapping[float, float]]) -> float | None:
    """The scale with the highest mean score over the curves that all have it, the smallest among equals."""
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    return max(shared, key=lambda scale: (fmean(curve[scale] for curve in curves), -scale), default=None)
