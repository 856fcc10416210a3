"""Report of offline RL: scores by guidance scale, and the cost of choosing the scale from data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cepdiff.data.rl.tasks import TASKS
from cepdiff.figures import GUIDE, new_panels, save_figure, shared_legend, styled
from cepdiff.problems.offline.score_report import score_section
from cepdiff.problems.offline.scores import UNITS, leading_scale, score_metric
from cepdiff.runs.comparison import Cell
from cepdiff.runs.report import OFFLINE, Section, refuse_twins
from cepdiff.runs.results import Results
from cepdiff.runs.settings import Settings, settings_of
from cepdiff.tables import Table, in_order, number

CLOSE = 5.0  # points of normalised score below the best scale that still count as close to it
TASK_KEYS = ("data.dataset", "data.dataset_dir")  # settings that only name the task
AXES = {**UNITS, "normalized_score": "normalised score"}
REGRETS = ("regret", "behavior_regret", "exact_regret")


def policy_row(run: Results, setting: str = "") -> dict[str, Any]:
    """Scores of a run at scale 0 (`behavior`), scale 1 (`exact`), the `best` scale and the offline `choice`.

    None if there was no rollout or no choice; `leads` is True if the best is so by more than the noise. A regret is how
    far a score is below the best: `regret` is that of the offline choice. The unit is "points" of the normalised score,
    or names what is known instead. `ranking` has value and error of each test of the critic's ranking, and `at_chance`
    the names of those that are not above chance.
    """
    scores, choice = run.values(score_metric(run)), run.about.get("offline_choice")
    best = max(scores, key=lambda scale: (scores[scale], -scale), default=None)
    scales = {"behavior": 0.0, "exact": 1.0, "best": best, "choice": choice}
    row: dict[str, Any] = {name: None if scale is None else scores.get(scale) for name, scale in scales.items()}
    regrets = {
        f"{name}_regret": None if row[name] is None else row["best"] - row[name] for name in ("behavior", "exact")
    }
    ranking = run.about.get("ranking") or {}
    return {
        "task": run.dataset,
        "seed": run.seed,
        "setting": setting,
        "unit": UNITS[score_metric(run)],
        **row,
        "best_scale": best,
        "leads": leading_scale(run.rows) is not None,
        "choice_scale": choice,
        "regret": None if row["choice"] is None else row["best"] - row["choice"],
        **regrets,
        "ranking": ranking.get("figures", {}),
        "at_chance": ranking.get("not_above_chance", []),
    }


def choice_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean regrets in points over the `runs`, of `of`, that have them all; None if there is no such run.

    `within` counts the runs whose offline choice is close to the best scale.
    """
    counted = [row for row in rows if row["unit"] == "points" and all(row[name] is not None for name in REGRETS)]
    if not counted:
        return None
    within = sum(row["regret"] <= CLOSE for row in counted)
    means = {name: fmean(row[name] for row in counted) for name in REGRETS}
    return {"runs": len(counted), "of": len(rows), "within": within, **means}


def policy_table(rows: Sequence[dict[str, Any]], summary: dict[str, Any] | None) -> Table:
    """The rows as text, with the summary below."""
    measured = in_order({name for row in rows for name in row["ranking"]}, ())
    several = len({row["setting"] for row in rows}) > 1
    lines = [
        [
            "task",
            *(["setting"] if several else []),
            "seed",
            "scale 0",
            "scale 1",
            "highest at",
            "score  ",
            "offline choice",
            "score",
            "regret",
        ]
    ]
    lines[0] += [name.replace("_", " ") for name in measured]
    for row in rows:
        task = row["task"] if row["unit"] == "points" else f"{row['task']} ({row['unit']})"
        forms = {"behavior": ".1f", "exact": ".1f", "best_scale": "g", "best": ".1f", "choice_scale": "g",
                 "choice": ".1f", "regret": ".1f"}  # fmt: skip
        names = [task, *([row["setting"]] if several else []), str(row["seed"])]
        texts = {name: number(row[name], form) for name, form in forms.items()}
        texts["best"] += " *" if row["leads"] else "  "
        lines.append([*names, *texts.values()])
        found = (row["ranking"].get(name, {}) for name in measured)
        lines[-1] += [number(test.get("value"), ".3f", test.get("error")) for test in found]
    notes = []
    if any(row["leads"] for row in rows):
        notes.append("* the best: above every other scale of the run by more than the noise of its episodes.")
    if at_chance := sum(bool(row["at_chance"]) for row in rows):
        notes.append(
            f"The critic's ranking of actions does not exceed chance in {at_chance} of {len(rows)} runs: their offline "
            "choice is scale 0."
        )
    if summary is not None:
        left_out = summary["of"] - summary["runs"]
        why = "without a normalised score or an offline choice, or not rolled out at it, 0 and 1"
        notes.append(
            f"The offline choice is within {CLOSE:g} points of the best scale in {summary['within']} of "
            f"{summary['runs']} runs; mean regret {summary['regret']:.1f} points (always scale 0: "
            f"{summary['behavior_regret']:.1f}, always scale 1: {summary['exact_regret']:.1f})."
            + (f" Not counted: {left_out} {why}." if left_out else "")
        )
    return Table(
        lines, "normalised score by guidance scale (scale 0 is the behavior policy)", notes, labels=2 + several
    )


def report(runs: Sequence[Results], output: Path, scale: float | str = OFFLINE) -> list[Section]:
    """A section of single runs with a figure if anything was rolled out, and one over seeds if there are several."""
    settings = settings_of(runs, TASK_KEYS)
    tasks = in_order((run.dataset for run in runs), TASKS)
    several = len(settings.order) > 1
    known = list(zip(runs, settings.labels, strict=True))
    names = [[run.dataset, *([label] if several else []), f"seed {run.seed}"] for run, label in known]
    refuse_twins(runs, [", ".join(name) for name in names])
    known.sort(key=lambda pair: (tasks.index(pair[0].dataset), settings.order.index(pair[1]), pair[0].seed))
    rows = [policy_row(run, label if several else "") for run, label in known]
    figures = []
    if any(run.values(score_metric(run)) for run in runs):
        figures.append("scores.png")
        plot_scores(runs, output / figures[0], settings)
    summary = choice_summary(rows)
    policies = Section("Offline RL", figures, [policy_table(rows, summary)], {"rows": rows, "summary": summary})
    return [policies, *(score_section(runs, settings, scale, output) if len(runs) > 1 else [])]


@styled()
def plot_scores(runs: Sequence[Results], path: Path, settings: Settings | None = None) -> None:
    """A panel per task: score against guidance scale.

    One run has its standard errors and its offline choice; of several seeds each curve is drawn, and their mean at
    shared scales. Of several settings only the means over the seeds are drawn.
    """
    order = [""] if settings is None else settings.order
    groups: dict[str, dict[str, list[Results]]] = {}  # task -> setting -> runs
    for run, label in zip(runs, [""] * len(runs) if settings is None else settings.labels, strict=True):
        if run.values(score_metric(run)):
            groups.setdefault(run.dataset, {}).setdefault(label, []).append(run)
    tasks = in_order(groups, TASKS)
    alone = len(tasks) == 1
    figure, panels = new_panels(len(tasks), 3, *((7.5, 3.6) if alone else (3.6, 2.8)))
    for axes, task in zip(panels, tasks, strict=True):
        if len(order) == 1:
            plot_task(axes, groups[task][order[0]])
        else:
            plot_settings(axes, groups[task], order)
        metrics = {score_metric(run) for here in groups[task].values() for run in here}
        axes.set(xlabel="guidance scale", ylabel=" or ".join(AXES[metric] for metric in sorted(metrics)))
        axes.set_title(runs[0].title if len(runs) == 1 else task)
        axes.grid()
    if len(order) > 1 and any(len(found) > 1 for here in groups.values() for found in here.values()):
        figure.suptitle("mean ± standard error over the seeds")
    shared_legend(figure, panels, 3)
    save_figure(figure, path)


def plot_settings(axes: Any, groups: Mapping[str, Sequence[Results]], order: Sequence[str]) -> None:
    """The mean curve of each setting on one task, with standard errors over the seeds."""
    for place, label in enumerate(order):
        curves = [run.values(score_metric(run)) for run in groups.get(label, [])]
        shared = sorted(set.intersection(*map(set, curves))) if curves else []
        cells = [Cell(dict(enumerate(curve[scale] for curve in curves))) for scale in shared]
        axes.errorbar(
            shared, [cell.mean for cell in cells], [cell.standard_error or 0.0 for cell in cells],
            color=f"C{place % 10}", marker="o", label=label,
        )  # fmt: skip


def plot_task(axes: Any, runs: Sequence[Results]) -> None:
    """The curves of one task; the behavior policy is a dashed line."""
    curves = [run.values(score_metric(run)) for run in runs]
    shared = [scale for scale in curves[0] if all(scale in curve for curve in curves)]
    means = [fmean(curve[scale] for curve in curves) for scale in shared]
    found = [runs[0].row(scale, score_metric(runs[0])) for scale in shared] if len(runs) == 1 else []
    errors = [row.error or 0.0 if row else 0.0 for row in found] or None
    if 0.0 in shared:
        axes.axhline(means[0], label="behavior policy (scale 0)", **GUIDE)
        if errors:
            axes.axhspan(means[0] - errors[0], means[0] + errors[0], color="0.4", alpha=0.15, linewidth=0)
    if len(curves) > 1:
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color="tab:blue", alpha=0.4, linewidth=0.8, label="a seed")
    label = "mean over the seeds" if len(curves) > 1 else f"guided policy{' ± standard error' if errors else ''}"
    axes.errorbar(shared, means, errors, color="tab:blue", linewidth=2, marker="o", label=label)
    choices = [(run.about.get("offline_choice"), curve) for run, curve in zip(runs, curves, strict=True)]
    chosen = [(scale, curve[scale]) for scale, curve in choices if scale in curve]
    if chosen:
        axes.plot(
            *zip(*chosen, strict=True), color="tab:orange", linestyle="none",
            marker="*", markersize=11, markeredgecolor="white", zorder=3, label="offline choice",
        )  # fmt: skip
