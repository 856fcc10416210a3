"""Scores of offline RL over tasks, seeds and settings: means and statistics with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cepdiff.data.rl.tasks import TASKS
from cepdiff.problems.offline.published import is_of_d4rl, published
from cepdiff.problems.offline.score_figures import plot_profiles, plot_statistics
from cepdiff.runs.comparison import Cell
from cepdiff.runs.report import BEST, OFFLINE, Section
from cepdiff.runs.results import Results
from cepdiff.runs.settings import Settings
from cepdiff.runs.statistics import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    STATISTICS,
    Array,
    Estimate,
    Scores,
    bootstrap_note,
    estimate,
    estimates,
    improvement,
    profile,
)
from cepdiff.tables import Table, in_order, number

MOST_PAIRS = 5  # settings that are all compared with each other; more are compared with the best only
THRESHOLDS = 61  # of a performance profile
NONE = "-"


def score_metric(run: Results) -> str:
    """The normalised score, or the mean return if no reference is known."""
    return "mean_return" if run.values("mean_return") and not run.values("normalized_score") else "normalized_score"


@dataclass(frozen=True)
class ScoreTable:
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
                measured = [curve for curve in curves.values() if curve]
                shared = sorted(set.intersection(*map(set, measured))) if measured else []
                best = max(shared, key=lambda s: (fmean(curve[s] for curve in measured), -s), default=None)
                wanted = dict.fromkeys(curves, best)
            found[place] = {seed: wanted[seed] for seed, curve in curves.items() if wanted[seed] in curve}
        return found

    @cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """(task, setting) -> scores by seed; none without a score."""
        found = {}
        for place, runs in self.groups.items():
            curves = {run.seed: run.values(score_metric(run)) for run in runs}
            scores = {seed: curves[seed][scale] for seed, scale in sorted(self.scales[place].items())}
            if scores:
                found[place] = Cell(scores, ".1f")
        return found

    @cached_property
    def expected(self) -> int:
        """Seeds of a complete cell: as many as the largest cell has, or as the sweep plans."""
        return max([*(len(runs) for runs in self.groups.values()), *self.settings.planned])

    def unscored(self) -> list[Results]:
        """Runs without a score at the chosen scale."""
        return [
            run
            for run, label in zip(self.runs, self.settings.labels, strict=True)
            if run.seed not in self.scales[run.dataset, label]
        ]

    def is_normalised(self, task: str) -> bool:
        """True if all scores of the task are normalised."""
        return all(score_metric(run) == "normalized_score" for run in self.runs if run.dataset == task)

    @cached_property
    def scored(self) -> list[str]:
        """Settings with a score."""
        return [label for label in self.settings.order if any(setting == label for _, setting in self.cells)]

    @cached_property
    def shared(self) -> list[str]:
        """Tasks with a normalised score of every setting that has scores: statistics are over them."""
        return [
            task
            for task in self.tasks
            if self.is_normalised(task) and all((task, label) in self.cells for label in self.scored)
        ]

    def samples(self, label: str) -> Scores:
        """The scores of a setting, an array per shared task."""
        return [np.array(list(self.cells[task, label].values.values())) for task in self.shared]

    def average(self, label: str) -> float | None:
        """Mean over the shared tasks of the mean over the seeds."""
        return fmean(self.cells[task, label].mean for task in self.shared) if self.shared else None

    def table(self) -> Table:
        """A row per task, and for each setting its mean ± standard error and its number of seeds."""
        lines = [["task", *(name for label in self.scored for name in (f"{label}, {self.chosen}", "n"))]]
        for task in self.tasks:
            lines.append([task if self.is_normalised(task) else f"{task} (return)"])
            for label in self.scored:
                cell = self.cells.get((task, label))
                count = 0 if cell is None else len(cell.values)
                shown = NONE if cell is None else f"{number(cell.mean, '.1f')} ± {number(cell.standard_error, '.1f')}"
                lines[-1] += [shown, str(count) if count == self.expected else f"{count} of {self.expected}"]
        if len(self.shared) > 1:
            average = [cell for label in self.scored for cell in (number(self.average(label), ".1f"), "")]
            lines.append([f"mean of {len(self.shared)} tasks", *average])
        return Table(lines, "normalised score, mean ± standard error over n seeds", self.notes(), labels=1)

    def notes(self) -> list[str]:
        """What a reader must know of the choice of the scale, of missing seeds and of the settings."""
        notes = []
        if self.scale == BEST:
            notes.append(
                "Best in hindsight: for each task and setting the scale with the highest mean over the seeds, chosen "
                "by these scores themselves. It is an upper bound, not what a user would get."
            )
        if unscored := self.unscored():
            named = ", ".join(str(run.folder) for run in unscored[:5]) + (", ..." if len(unscored) > 5 else "")
            notes.append(f"Without a score at this scale ({self.chosen}), not counted: {len(unscored)} runs, {named}.")
        if any(len(cell.values) < self.expected for cell in self.cells.values()):
            notes.append(f"Seeds are missing where n is less than {self.expected}: these means are of fewer seeds.")
        if any(len(cell.values) == 1 for cell in self.cells.values()):
            notes.append("One seed has no standard error over seeds.")
        if self.settings.between_tasks:
            notes.append(f"Differs between tasks only: {', '.join(self.settings.between_tasks)}.")
        return notes

    @cached_property
    def statistics(self) -> dict[str, dict[str, Estimate]]:
        """Setting -> statistic over the shared tasks."""
        return {label: estimates(self.samples(label)) for label in self.scored} if self.shared else {}

    def statistics_table(self) -> Table:
        """A row per setting, a column per statistic."""
        lines = [["setting", *STATISTICS]]
        lines += [[label, *(e.text(".1f") for e in found.values())] for label, found in self.statistics.items()]
        notes = [bootstrap_note([self.samples(label) for label in self.scored])]
        if others := [task for task in self.tasks if task not in self.shared]:
            notes.append(f"Not counted, as a setting has no normalised score there: {', '.join(others)}.")
        counts = {len(task) for label in self.scored for task in self.samples(label)}
        if len(counts) > 1:
            notes.append(
                f"Tasks have {min(counts)} to {max(counts)} seeds; the interquartile mean weighs runs equally."
            )
        tasks = f"{len(self.shared)} task{'s' if len(self.shared) > 1 else ''}"
        return Table(lines, f"over {tasks}, {self.chosen}; the optimality gap is to a score of 100", notes, labels=1)

    @cached_property
    def improvements(self) -> list[tuple[str, str, Estimate]]:
        """(X, Y, probability that X improves on Y) for pairs of settings; with many settings, X is the best."""
        if not self.shared:
            return []
        pairs: Iterable[tuple[str, str]] = combinations(self.scored, 2)
        if len(self.scored) > MOST_PAIRS:
            best = max(self.scored, key=lambda label: self.statistics[label]["interquartile mean"].value)
            pairs = [(best, label) for label in self.scored if label != best]
        return [(x, y, self.improvement(x, y)) for x, y in pairs]

    def improvement(self, first: str, second: str) -> Estimate:
        """Probability that `first` improves on `second`; both are resampled."""
        x, y = self.samples(first), self.samples(second)

        def statistic(*tasks: Array) -> Array:
            return improvement(tasks[: len(x)], tasks[len(x) :])

        return estimate(statistic, [*x, *y])[0]

    def improvement_table(self) -> Table:
        """A row per pair."""
        rows = [[x, y, found.text(".2f")] for x, y, found in self.improvements]
        note = "0.5: neither is better. Significant if the interval does not contain 0.5."
        lines = [["X", "Y", "P(X > Y)"], *rows]
        return Table(lines, f"probability that X improves on Y on the same task, {self.chosen}", [note], labels=2)

    @cached_property
    def thresholds(self) -> Array:
        """Scores at which the performance profiles are measured: from the lowest to the highest, and 0 to 100."""
        scores = [score for label in self.scored for task in self.samples(label) for score in task]
        return np.linspace(min(0.0, *scores), max(100.0, *scores), THRESHOLDS)

    @cached_property
    def profiles(self) -> dict[str, list[Estimate]]:
        """Setting -> performance profile at the thresholds."""
        found = {}
        for label in self.scored if self.shared else []:
            found[label] = estimate(lambda *tasks: profile(tasks, self.thresholds), self.samples(label))
        return found

    @cached_property
    def of_d4rl(self) -> list[str]:
        """Tasks whose runs are all on D4RL's dataset and that a published table has."""
        known = {task for table in published() for task in table.scores}
        theirs = {task: [run for run in self.runs if run.dataset == task] for task in self.tasks if task in known}
        return [task for task, runs in theirs.items() if all(map(is_of_d4rl, runs))]

    def published_table(self) -> Table:
        """Our means beside published ones."""
        tables = [table for table in published() if any(task in table.scores for task in self.of_d4rl)]
        lines = [["task", *(f"{label}, {self.chosen}" for label in self.scored), *(table.method for table in tables)]]
        for task in self.of_d4rl:
            cells = [self.cells.get((task, label)) for label in self.scored]
            ours = [NONE if cell is None else number(cell.mean, ".1f") for cell in cells]
            lines.append([task, *ours, *(number(table.scores.get(task), ".1f") for table in tables)])
        return Table(lines, "normalised score beside published ones", [table.note for table in tables], labels=1)

    def to_json(self) -> dict[str, Any]:
        """Every number in plain values."""
        places = [(task, label) for task in self.tasks for label in self.scored if (task, label) in self.cells]
        profiles = {label: [vars(found) for found in curve] for label, curve in self.profiles.items()}
        return {
            "scale": self.chosen,
            "seeds": self.expected,
            "settings": self.settings.values,
            "scores": [
                {
                    "task": task,
                    "setting": label,
                    "unit": "points" if self.is_normalised(task) else "return",
                    "mean": self.cells[task, label].mean,
                    "standard_error": self.cells[task, label].standard_error,
                    "seeds": len(self.cells[task, label].values),
                    "by_seed": {
                        str(seed): {"score": score, "scale": self.scales[task, label][seed]}
                        for seed, score in self.cells[task, label].values.items()
                    },
                }
                for task, label in places
            ],
            "tasks": self.shared,
            "statistics": {
                label: {name: vars(e) for name, e in found.items()} for label, found in self.statistics.items()
            },
            "improvement": [{"x": x, "y": y, **vars(found)} for x, y, found in self.improvements],
            "profiles": {"thresholds": self.thresholds.tolist(), **profiles} if profiles else {},
            "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "confidence": CONFIDENCE},
            "published": {
                table.method: {task: table.scores[task] for task in self.of_d4rl if task in table.scores}
                for table in published()
            },
        }


def score_section(runs: Sequence[Results], settings: Settings, scale: float | str, output: Path) -> list[Section]:
    """Scores over seeds, tasks and settings, with figures in `output`; nothing if no run was rolled out."""
    if not any(run.values(score_metric(run)) for run in runs):
        return []
    scores = ScoreTable(runs, settings, scale)
    title = f"Scores over seeds, {scores.chosen}"
    if not scores.cells:
        hint = "choose another with --scale: a guidance scale, offline or best"
        return [
            Section(
                title, [], [], {"scale": scores.chosen}, f"No run has a score at this scale ({scores.chosen}); {hint}."
            )
        ]
    tables, figures = [scores.table()], []
    if scores.shared:
        tables.append(scores.statistics_table())
        tables += [scores.improvement_table()] if scores.improvements else []
        figures = ["statistics.png", "profiles.png"]
        plot_statistics(scores.statistics, scores.chosen, output / figures[0])
        plot_profiles(scores.thresholds, scores.profiles, scores.chosen, output / figures[1])
    if scores.of_d4rl:
        tables.append(scores.published_table())
    return [Section(title, figures, tables, scores.to_json())]
