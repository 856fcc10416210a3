"""Report of offline RL: scores by guidance scale, and the cost of choosing the scale from data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cepdiff.data.rl.tasks import TASKS
from cepdiff.figures import new_panels, save_figure, shared_legend
from cepdiff.runs.report import Section, refuse_twins
from cepdiff.runs.results import Results
from cepdiff.tables import Table, in_order, number

CLOSE = 5.0  # points of normalised score below the best scale that still count as close to it


@dataclass(frozen=True)
class PolicyRow:
    """Scores of one run; None if something was not rolled out or not chosen.

    Args:
        unit: of scores and regrets, "points" of the normalised score or "return" if no reference is known.
        behavior: score at scale 0; `exact` at scale 1.
        regret: of the offline choice, >= 0; `behavior_regret` and `exact_regret` are those of scales 0 and 1.
    """

    task: str
    seed: int
    unit: str
    behavior: float | None
    exact: float | None
    best_scale: float | None
    best: float | None
    choice_scale: float | None
    choice: float | None
    regret: float | None
    behavior_regret: float | None
    exact_regret: float | None


def scores_of(run: Results) -> dict[float, float]:
    """Guidance scale -> normalised score, or mean return if no reference is known."""
    return run.values("normalized_score") or run.values("mean_return")


def policy_row(run: Results) -> PolicyRow:
    """The row of a run."""
    scores, choice = scores_of(run), run.about.get("offline_choice")
    best = max(scores, key=lambda scale: (scores[scale], -scale)) if scores else None

    def regret(scale: float | None) -> float | None:
        return None if scale not in scores or best is None else scores[best] - scores[scale]

    return PolicyRow(
        task=run.dataset,
        seed=run.seed,
        unit="return" if scores and not run.values("normalized_score") else "points",
        behavior=scores.get(0.0),
        exact=scores.get(1.0),
        best_scale=best,
        best=None if best is None else scores[best],
        choice_scale=choice,
        choice=None if choice is None else scores.get(choice),
        regret=regret(choice),
        behavior_regret=regret(0.0),
        exact_regret=regret(1.0),
    )


@dataclass(frozen=True)
class ChoiceSummary:
    """Mean regret of rules for choosing the scale, in points of normalised score, over the runs that have them all.

    Args:
        runs: number of these runs, of `of`.
        within: runs whose offline choice is at most `CLOSE` points below the best scale.
        regret: of the offline choice; `behavior_regret` of always choosing 0, `exact_regret` of always choosing 1.
    """

    runs: int
    of: int
    within: int
    regret: float
    behavior_regret: float
    exact_regret: float

    def __str__(self) -> str:
        left_out = self.of - self.runs
        why = "without a normalised score or an offline choice, or not rolled out at it, 0 and 1"
        return (
            f"The offline choice is within {CLOSE:g} points of the best scale in {self.within} of {self.runs} runs; "
            f"mean regret {self.regret:.1f} points (always scale 0: {self.behavior_regret:.1f}, "
            f"always scale 1: {self.exact_regret:.1f})." + (f" Not counted: {left_out} {why}." if left_out else "")
        )


def choice_summary(rows: Sequence[PolicyRow]) -> ChoiceSummary | None:
    """The summary of `rows`; None if no run can be counted."""
    regrets = [
        (row.regret, row.behavior_regret, row.exact_regret)
        for row in rows
        if row.unit == "points"
        and row.regret is not None
        and row.behavior_regret is not None
        and row.exact_regret is not None
    ]
    if not regrets:
        return None
    chosen, behavior, exact = zip(*regrets, strict=True)
    within = sum(value <= CLOSE for value in chosen)
    return ChoiceSummary(len(regrets), len(rows), within, fmean(chosen), fmean(behavior), fmean(exact))


def policy_table(rows: Sequence[PolicyRow]) -> Table:
    """The rows as text, with the summary below."""
    lines = [["task", "seed", "scale 0", "scale 1", "best scale", "score", "offline choice", "score", "regret"]]
    for row in rows:
        scores = (row.behavior, row.exact, row.best, row.choice, row.regret)
        behavior, exact, best, choice, lost = (number(value, ".1f") for value in scores)
        best_scale, choice_scale = (number(scale, "g") for scale in (row.best_scale, row.choice_scale))
        task = row.task if row.unit == "points" else f"{row.task} (return)"
        lines.append([task, str(row.seed), behavior, exact, best_scale, best, choice_scale, choice, lost])
    summary = choice_summary(rows)
    title = "normalised score by guidance scale (scale 0 is the behavior policy)"
    return Table(lines, title, [] if summary is None else [str(summary)], labels=2)


def report(runs: Sequence[Results], output: Path) -> list[Section]:
    """One section over all tasks, with a figure if anything was rolled out."""
    refuse_twins(runs, [f"{run.dataset}, seed {run.seed}" for run in runs])
    tasks = in_order((run.dataset for run in runs), TASKS)
    rows = [policy_row(run) for run in sorted(runs, key=lambda run: (tasks.index(run.dataset), run.seed))]
    figures = []
    if any(scores_of(run) for run in runs):
        figures.append("scores.png")
        plot_policies(runs, output / figures[0])
    summary = choice_summary(rows)
    facts = {"rows": [asdict(row) for row in rows], "summary": None if summary is None else asdict(summary)}
    return [Section("Offline RL", figures, [policy_table(rows)], facts)]


def plot_policies(runs: Sequence[Results], path: Path) -> None:
    """A panel per task: score against guidance scale of each seed, their mean at shared scales, the offline choices."""
    runs = [run for run in runs if scores_of(run)]
    tasks = in_order((run.dataset for run in runs), TASKS)
    figure, panels = new_panels(len(tasks), 3, 3.6, 2.8)
    for axes, task in zip(panels, tasks, strict=True):
        plot_task(axes, [run for run in runs if run.dataset == task])
        axes.set_title(task, fontsize=10)
    shared_legend(figure, panels, 2 if len(tasks) == 1 else 4)
    save_figure(figure, path)


def plot_task(axes: Any, runs: Sequence[Results]) -> None:
    """The curves of one task."""
    curves = [scores_of(run) for run in runs]
    shared = [scale for scale in curves[0] if all(scale in curve for curve in curves)]
    means = [fmean(curve[scale] for curve in curves) for scale in shared]
    if 0.0 in shared:
        axes.axhline(means[0], color="0.5", linestyle="--", linewidth=1, label="behavior policy (scale 0)")
    if len(curves) > 1:
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color="tab:blue", alpha=0.4, linewidth=0.8, label="a seed")
    label = "mean over the seeds" if len(curves) > 1 else "guided policy"
    axes.plot(shared, means, color="tab:blue", linewidth=2.5, marker="o", markersize=4, label=label)
    choices = [(run.about.get("offline_choice"), curve) for run, curve in zip(runs, curves, strict=True)]
    chosen = [(scale, curve[scale]) for scale, curve in choices if scale in curve]
    if chosen:
        axes.plot(
            [scale for scale, _ in chosen], [score for _, score in chosen], color="tab:orange", linestyle="none",
            marker="*", markersize=11, markeredgecolor="white", zorder=3, label="offline choice",
        )  # fmt: skip
    known = all(run.values("normalized_score") for run in runs)
    axes.set(xlabel="guidance scale", ylabel="normalized score" if known else "mean return")
    axes.grid(alpha=0.3)
