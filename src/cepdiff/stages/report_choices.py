"""Tables over runs of offline RL: what the choice of a guidance scale from data alone costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from cepdiff.data.rl.tasks import TASKS
from cepdiff.rollout.scores import ScoreRow, best_row, offline_regret, regret
from cepdiff.stages.report_runs import PolicyRun
from cepdiff.stages.report_tables import Table, finite, in_order

CLOSE = 5.0  # points of normalised score below the best scale that still count as close to it


@dataclass(frozen=True)
class PolicyRow:
    """What one run of offline RL says of guidance scales; None where something was not rolled out or not chosen.

    Args:
        unit: of scores and regrets, "points" of the normalised score or "return" where no reference is known.
        behavior: score of scale 0; `exact` that of scale 1.
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


def policy_row(run: PolicyRun) -> PolicyRow:
    """The row of a run."""
    scored = {row.guidance_scale: row for row in run.rows if row.episodes}
    best = best_row(run.rows) if scored else None
    choice = next((row for row in run.rows if row.offline_choice), None)
    return PolicyRow(
        task=run.task,
        seed=run.seed,
        unit="return" if best is not None and best.normalized_score is None else "points",
        behavior=_score(scored.get(0.0)),
        exact=_score(scored.get(1.0)),
        best_scale=None if best is None else best.guidance_scale,
        best=_score(best),
        choice_scale=None if choice is None else choice.guidance_scale,
        choice=_score(choice),
        regret=offline_regret(run.rows),
        behavior_regret=regret(run.rows, scored.get(0.0)),
        exact_regret=regret(run.rows, scored.get(1.0)),
    )


def policy_rows(runs: Sequence[PolicyRun]) -> list[PolicyRow]:
    """A row a run, by task and seed."""
    tasks = in_order((run.task for run in runs), TASKS)
    return [policy_row(run) for run in sorted(runs, key=lambda run: (tasks.index(run.task), run.seed))]


@dataclass(frozen=True)
class ChoiceSummary:
    """What rules for choosing the scale cost, in points of normalised score, over the runs where all can be told.

    Args:
        runs: how many these are, `of` how many.
        within: runs where the offline choice is at most `CLOSE` points below the best scale.
        regret: mean of the offline choice; `behavior_regret` of always choosing 0, `exact_regret` of always 1.
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
    """The summary of `rows`; None where no run can be counted."""
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
    """As text, with the summary below."""
    lines = [["task", "seed", "scale 0", "scale 1", "best scale", "score", "offline choice", "score", "regret"]]
    for row in rows:
        scores = (row.behavior, row.exact, row.best, row.choice, row.regret)
        behavior, exact, best, choice, lost = ("-" if value is None else f"{value:.1f}" for value in scores)
        best_scale, choice_scale = ("-" if s is None else f"{s:g}" for s in (row.best_scale, row.choice_scale))
        task = row.task if row.unit == "points" else f"{row.task} (return)"
        lines.append([task, str(row.seed), behavior, exact, best_scale, best, choice_scale, choice, lost])
    summary = choice_summary(rows)
    notes = [] if summary is None else [str(summary)]
    return Table("normalised score by guidance scale (scale 0 is the behavior policy)", lines, notes, labels=2)


def policies_to_json(runs: Sequence[PolicyRun]) -> dict[str, Any]:
    """Every number of the table and of the figure in plain types."""
    rows = policy_rows(runs)
    summary = choice_summary(rows)
    keys = ("guidance_scale", "episodes", "mean_return", "standard_error", "normalized_score")
    return {
        "rows": [asdict(row) for row in rows],
        "summary": None if summary is None else asdict(summary),
        "runs": [
            {
                "folder": str(run.folder),
                "task": run.task,
                "seed": run.seed,
                "scores": [{key: finite(getattr(row, key)) for key in keys} for row in run.rows],
            }
            for run in runs
        ],
    }


def _score(row: ScoreRow | None) -> float | None:
    return None if row is None or not row.episodes else row.score
