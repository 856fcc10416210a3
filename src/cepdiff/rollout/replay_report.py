"""Results of a replay: deviations by group, thresholds, verdict, table and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cepdiff.figures import new_figure, save_figure, shared_legend, styled
from cepdiff.tables import Table

VERDICTS = ("matches", "close", "differs")
# Limits on (median, 99th percentile, maximum) of a deviation, in units of the recorded values' standard deviation.
# "matches" allows for states rounded to float32, which a step amplifies if bodies touch (99th percentile up to 3e-6 on
# recorded locomotion) or if rounding makes or breaks a contact (about 1 row in 1,000 in AntMaze: 5e-2).
# "close" allows for another release of the simulator.
LIMITS = {"matches": (1e-5, 1e-4, 1e-1), "close": (1e-3, 1e-2, math.inf)}
# Rows that deviate by more than this, in the same units, are listed.
WORTH_A_LOOK = 1e-2
# Minimum share of rows whose terminal flags agree.
TERMINAL_LIMITS = {"matches": 1.0, "close": 0.99}


@dataclass(frozen=True)
class Deviation:
    """|replayed - recorded| of one group, the largest of the group's numbers in each row.

    `median`, `p99` and `maximum` are over rows, in the recorded units; `scale` is the standard deviation of the
    recorded values, or 1 if they are constant.
    """

    name: str
    median: float
    p99: float
    maximum: float
    scale: float

    @classmethod
    def of(cls, name: str, values: NDArray[np.float64], recorded: NDArray[Any]) -> Deviation:
        """From one deviation per row (M,) and the recorded values (M,) or (M, D)."""
        spread = math.sqrt(float(recorded.astype(np.float64).var(axis=0).mean()))
        median, p99 = (float(np.quantile(values, q)) for q in (0.5, 0.99))
        return cls(name, median, p99, float(values.max()), spread if spread > 1e-6 else 1.0)

    @property
    def verdict(self) -> str:
        """The first of `VERDICTS` whose limits hold."""
        found = (self.median, self.p99, self.maximum)
        for verdict, limits in LIMITS.items():
            if all(value <= limit * self.scale for value, limit in zip(found, limits, strict=True)):
                return verdict
        return "differs"


@dataclass(frozen=True)
class ReplayReport:
    """The comparison of a file with an environment.

    Args:
        dataset: name of the file.
        env_id: the environment.
        env_kwargs: its arguments.
        rows: number of replayed rows.
        file_rows: number of rows in the file.
        states: "recorded" (`infos/`) or "observations" (reconstructed).
        state_time: "before" or "after": when a row's state was recorded, relative to its step.
        goal: source of the goals behind the compared rewards: "file", "environment" (fits better than the file's),
            "missing" (the environment's, because the file has none), or None if there are no goals.
        reward_time: "step", or "state" if row i holds the reward of step i-1.
        skipped: rows left out because their observation does not determine the state.
        deviations: one entry per group of the observation, and the reward's.
        terminals: number of rows whose terminal flag was compared (time limits are left out).
        terminals_set: number of these rows that are terminal in the file.
        terminals_equal: number of compared rows whose flags agree.
        worst_rows: up to five rows that deviate by more than `WORTH_A_LOOK`, worst first.
        remark: a note on comparisons of this family.
        row_deviations: deviation per row, by group, in units of the group's scale; for the figure.
    """

    dataset: str
    env_id: str
    env_kwargs: Mapping[str, Any]
    rows: int
    file_rows: int
    states: str
    state_time: str
    goal: str | None
    reward_time: str
    skipped: int
    deviations: Sequence[Deviation]
    terminals: int
    terminals_set: int
    terminals_equal: int
    worst_rows: Sequence[int]
    remark: str
    row_deviations: Mapping[str, NDArray[np.float64]] = field(repr=False)

    @property
    def terminal_verdict(self) -> str:
        """Verdict on the terminal flags only."""
        share = self.terminals_equal / self.terminals if self.terminals else 1.0
        return next((verdict for verdict, limit in TERMINAL_LIMITS.items() if share >= limit), "differs")

    @property
    def verdict(self) -> str:
        """Worst verdict of all groups, the reward and the terminal flags."""
        return max([*(d.verdict for d in self.deviations), self.terminal_verdict], key=VERDICTS.index)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {key: value for key, value in vars(self).items() if key != "row_deviations"}
        deviations = [asdict(deviation) | {"verdict": deviation.verdict} for deviation in self.deviations]
        more = {"env_kwargs": dict(self.env_kwargs), "worst_rows": list(self.worst_rows), "deviations": deviations}
        return values | more | {"terminal_verdict": self.terminal_verdict, "verdict": self.verdict}


def format_replay(report: ReplayReport) -> str:
    """Text table, with the assumptions above it and the verdict below."""
    lines = [["deviation", "median", "99%", "maximum", "scale", ""]]
    for d in report.deviations:
        lines.append([d.name, f"{d.median:.1e}", f"{d.p99:.1e}", f"{d.maximum:.1e}", f"{d.scale:.3g}", d.verdict])
    notes = [f"terminals: {report.terminals_equal:,} of {report.terminals:,} agree ({report.terminals_set:,} set)"]
    if report.worst_rows:
        notes.append(f"rows that deviate most: {', '.join(map(str, report.worst_rows))}")
    title = f"{report.dataset} in {report.env_id}: {report.rows:,} of {report.file_rows:,} rows"
    table = Table(lines, notes=notes, labels=1, remarks=True).text()
    verdict = f"{report.verdict}: {_MEANING[report.verdict]}"
    return "\n".join([title, *_assumptions(report), "", table, "", verdict])


_MEANING = {
    "matches": "equal within float32 rounding",
    "close": "small differences; look at the groups and rows that deviate before you compare scores",
    "differs": "this is not the environment that made these data, or the file is damaged",
}


def _assumptions(report: ReplayReport) -> list[str]:
    if report.states == "recorded":
        lines = [f"states: infos/ of the file, recorded {report.state_time} each row's step"]
    else:
        skipped = f"; {report.skipped:,} rows with clipped velocities left out" if report.skipped else ""
        lines = [f"states: reconstructed from the observations, which are rounded to float32{skipped}"]
    if report.goal == "missing":
        lines.append("goals: the file has none (infos/goal), so rewards are computed for the environment's goal")
    elif report.goal is not None:
        lines.append(f"goals: from the {report.goal}")
    if report.reward_time == "state":
        lines.append("rewards: a row holds the reward of the state in which its action was taken, one step late")
    return [*lines, report.remark] if report.remark else lines


@styled()
def plot_replay(report: ReplayReport, path: Path) -> None:
    """Write a PNG: sorted deviations of each group in units of its scale, with the verdicts' limits marked."""
    smallest = 1e-9  # because 0 has no place on a logarithmic axis
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for name, values in report.row_deviations.items():
        shares = np.arange(1, len(values) + 1) / len(values)
        axes.plot(100 * shares, np.maximum(np.sort(values), smallest), label=name)
    for verdict, (median, p99, _) in LIMITS.items():
        label = "limits at 50% and 99% of the rows" if verdict == VERDICTS[0] else None
        axes.plot([50, 99], [median, p99], "k_", markersize=12, label=label)
        axes.annotate(verdict, (50, median), (0, 4), textcoords="offset points", ha="center", fontsize="small")
    axes.set(xlabel="rows, by deviation (%)", ylabel="deviation / scale", yscale="log")
    axes.set_title(f"{report.dataset} in {report.env_id}")
    shared_legend(figure, [axes])
    save_figure(figure, path)
