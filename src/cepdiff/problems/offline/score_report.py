"""The report of scores over seeds, tasks and settings: tables, figures and plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cepdiff.problems.offline.published import is_of_d4rl, published
from cepdiff.problems.offline.score_figures import plot_profiles, plot_statistics
from cepdiff.problems.offline.scores import Scores, score_metric
from cepdiff.runs.report import Section
from cepdiff.runs.results import Results
from cepdiff.runs.settings import Settings
from cepdiff.runs.statistics import (
    CONFIDENCE,
    PROFILE_RESAMPLES,
    RESAMPLES,
    SEED,
    STATISTICS,
    Array,
    Estimate,
    bootstrap_note,
    estimate,
    estimates,
    improvement,
    profile,
)
from cepdiff.tables import Table, number

MOST_PAIRED = 5  # settings that are all compared with each other; of more, each is compared with the best
THRESHOLDS = 101  # of a performance profile


@dataclass(frozen=True)
class Aggregates:
    """Statistics of scores over the tasks that all settings share."""

    scores: Scores

    @cached_property
    def statistics(self) -> dict[str, dict[str, Estimate]]:
        """Setting -> statistic -> estimate."""
        return {label: estimates(self.scores.samples(label)) for label in self.scores.labels}

    @cached_property
    def improvements(self) -> list[tuple[str, str, Estimate]]:
        """(X, Y, probability that X improves on Y) for pairs of settings; of many settings, X is the best."""
        labels = self.scores.labels
        pairs: Iterable[tuple[str, str]] = combinations(labels, 2)
        if len(labels) > MOST_PAIRED:
            best = max(labels, key=lambda label: self.statistics[label]["interquartile mean"].value)
            pairs = [(best, label) for label in labels if label != best]
        return [(x, y, self.improvement(x, y)) for x, y in pairs]

    def improvement(self, first: str, second: str) -> Estimate:
        """Probability that `first` improves on `second`; the seeds of both are resampled."""
        x, y = self.scores.samples(first), self.scores.samples(second)

        def statistic(*tasks: Array) -> Array:
            return improvement(tasks[: len(x)], tasks[len(x) :])

        return estimate(statistic, [*x, *y])[0]

    @cached_property
    def thresholds(self) -> Array:
        """Scores at which performance profiles are measured: 0 to 100, and further where there are scores."""
        found = [score for label in self.scores.labels for task in self.scores.samples(label) for score in task]
        return np.linspace(min(0.0, *found), max(100.0, *found), THRESHOLDS)

    @cached_property
    def profiles(self) -> dict[str, list[Estimate]]:
        """Setting -> performance profile at the thresholds."""
        samples = {label: self.scores.samples(label) for label in self.scores.labels}

        def statistic(*tasks: Array) -> Array:
            return profile(tasks, self.thresholds)

        return {label: estimate(statistic, tasks, PROFILE_RESAMPLES) for label, tasks in samples.items()}

    def tables(self) -> list[Table]:
        """A row per setting with a column per statistic; a row per pair of settings."""
        scores = self.scores
        samples = [scores.samples(label) for label in scores.labels]
        notes = [bootstrap_note(samples)]
        if others := [task for task in scores.tasks if task not in scores.shared]:
            notes.append(f"Not counted, as not every setting has a normalised score there: {', '.join(others)}.")
        if len(counts := {task.shape[-1] for tasks in samples for task in tasks}) > 1:
            notes.append(
                f"Tasks have {min(counts)} to {max(counts)} seeds; in the interquartile mean each run counts the same."
            )
        lines = [[label, *(e.text(".1f") for e in found.values())] for label, found in self.statistics.items()]
        over = f"over {len(scores.shared)} task{'s' if len(scores.shared) > 1 else ''}"
        title = f"normalised score {over}, {scores.chosen}; the optimality gap is to a score of 100"
        tables = [Table([["setting", *STATISTICS], *lines], title, notes, labels=1)]
        if self.improvements:
            pairs = [[x, y, found.text(".2f")] for x, y, found in self.improvements]
            title = f"probability that a run of X scores higher than one of Y on the same task, {scores.chosen}"
            note = "0.5 is chance; X and Y differ significantly where the interval does not contain it."
            tables.append(Table([["X", "Y", "P(X > Y)"], *pairs], title, [note], labels=2))
        return tables

    def to_json(self) -> dict[str, Any]:
        """Every number in plain values."""
        return {
            "tasks": self.scores.shared,
            "statistics": {
                label: {name: vars(e) for name, e in found.items()} for label, found in self.statistics.items()
            },
            "improvement": [{"x": x, "y": y, **vars(found)} for x, y, found in self.improvements],
            "thresholds": self.thresholds.tolist(),
            "profiles": {label: [vars(found) for found in curve] for label, curve in self.profiles.items()},
            "bootstrap": {
                "resamples": RESAMPLES,
                "of_profiles": PROFILE_RESAMPLES,
                "seed": SEED,
                "confidence": CONFIDENCE,
            },
        }


def published_table(scores: Scores) -> Table | None:
    """Our scores beside published ones, for tasks whose runs are all on D4RL's dataset; None without such a task."""
    known = {task for table in published() for task in table.scores}
    runs = {task: [run for run in scores.runs if run.dataset == task] for task in scores.tasks if task in known}
    tasks = [task for task, here in runs.items() if all(map(is_of_d4rl, here))]
    tables = [table for table in published() if any(task in table.scores for task in tasks)]
    if not tables:
        return None
    lines = [["task", *scores.header, *(table.method for table in tables)]]
    for task in tasks:
        lines.append([task, *scores.texts(task), *(number(table.scores.get(task), ".1f") for table in tables)])
    return Table(lines, "normalised score beside published ones", [table.note for table in tables], labels=1)


def plain_scores(scores: Scores) -> dict[str, Any]:
    """The scores in plain values."""
    rows = [
        {
            "task": task,
            "setting": label,
            "unit": scores.unit(task),
            "mean": cell.mean,
            "standard_error": cell.standard_error,
            "seeds": len(cell.values),
            "by_seed": {
                str(seed): {"score": score, "scale": scores.scales[task, label][seed]}
                for seed, score in cell.values.items()
            },
        }
        for (task, label), cell in scores.cells.items()
    ]
    settings = {label: dict(values) for label, values in scores.settings.values.items()}
    return {"scale": scores.chosen, "seeds": scores.expected, "settings": settings, "scores": rows}


def score_section(runs: Sequence[Results], settings: Settings, scale: float | str, output: Path) -> list[Section]:
    """Scores over seeds, tasks and settings, with figures in `output`; nothing if no run was rolled out."""
    if not any(run.values(score_metric(run)) for run in runs):
        return []
    scores = Scores(runs, settings, scale)
    title, facts = f"Scores over seeds, {scores.chosen}", plain_scores(scores)
    if not scores.cells:
        advice = "choose another by --scale (a guidance scale, offline or best)"
        return [Section(title, [], [], facts, f"No run has a score at the {scores.chosen}; {advice}.")]
    tables, figures = [scores.table()], []
    if scores.shared:
        found = Aggregates(scores)
        tables += found.tables()
        facts |= found.to_json()
        figures = ["statistics.png", "profiles.png"]
        plot_statistics(found.statistics, scores.chosen, output / figures[0])
        plot_profiles(found.thresholds, found.profiles, scores.chosen, output / figures[1])
    if (beside := published_table(scores)) is not None:
        tables.append(beside)
        facts["published"] = {table.method: dict(table.scores) for table in published()}
    return [Section(title, figures, tables, facts)]
