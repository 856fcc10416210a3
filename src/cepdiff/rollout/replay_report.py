"""What a replay found: deviations by group, thresholds, verdict, table and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cepdiff.files import written_aside

VERDICTS = ("matches", "close", "differs")
# Largest (median, 99th percentile, maximum) of a deviation, in units of the recorded values' standard deviation.
# "matches" leaves room for states rounded to float32, which a step amplifies where bodies touch (99th percentile up to
# 3e-6 on recorded locomotion) and where rounding makes or breaks a contact (about 1 row of 1,000 in AntMaze: 5e-2).
# "close" leaves room for another release of the simulator.
LIMITS = {"matches": (1e-5, 1e-4, 1e-1), "close": (1e-3, 1e-2, math.inf)}
# Rows beyond this, in the same units, are named.
WORTH_A_LOOK = 1e-2
# Least share of rows whose terminal flag agrees.
TERMINAL_LIMITS = {"matches": 1.0, "close": 0.99}


@dataclass(frozen=True)
class Deviation:
    """|replayed - recorded| of one group, the largest of the group's numbers in each row.

    `median`, `p99` and `maximum` are over rows, in the recorded units; `scale` is the standard deviation of the
    recorded values, 1 where they are constant.
    """

    name: str
    median: float
    p99: float
    maximum: float
    scale: float

    @classmethod
    def of(cls, name: str, values: NDArray[np.float64], recorded: NDArray[Any]) -> Deviation:
        """Of one deviation a row (M,) and the recorded values (M,) or (M, D)."""
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
        rows: how many rows were replayed.
        file_rows: how many the file holds.
        states: "recorded" (`infos/`) or "observations" (reconstructed).
        state_time: whether a row's recorded state is that "before" or "after" its step.
        goal: whose goals the rewards were compared with: "file", "environment", which fitted better than the file's,
            "missing", which is the environment's because the file has none, or None where there are no goals.
        reward_time: "step", or "state" where row i holds the reward of step i-1.
        skipped: rows left out because their observation does not determine the state.
        deviations: of the observation's groups and of the reward.
        terminals: rows whose terminal flag was compared (time limits are left out), of which
        terminals_set: are terminal in the file, and
        terminals_equal: agree.
        worst_rows: the rows that deviate by more than `WORTH_A_LOOK`, worst first, five at most.
        remark: what is known of this family's comparisons.
        row_deviations: one deviation a row, by group, in units of its scale; for the figure.
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
        """That of the terminal flags alone."""
        share = self.terminals_equal / self.terminals if self.terminals else 1.0
        return next((verdict for verdict, limit in TERMINAL_LIMITS.items() if share >= limit), "differs")

    @property
    def verdict(self) -> str:
        """The worst of all groups, the reward and the terminal flags."""
        return max([*(d.verdict for d in self.deviations), self.terminal_verdict], key=VERDICTS.index)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {key: value for key, value in vars(self).items() if key != "row_deviations"}
        deviations = [asdict(deviation) | {"verdict": deviation.verdict} for deviation in self.deviations]
        more = {"env_kwargs": dict(self.env_kwargs), "worst_rows": list(self.worst_rows), "deviations": deviations}
        return values | more | {"terminal_verdict": self.terminal_verdict, "verdict": self.verdict}


def format_replay(report: ReplayReport) -> str:
    """A text table with what was assumed above and the verdict below it."""
    head = ["deviation", "median", "99%", "maximum", "scale", ""]
    lines = [head] + [
        [d.name, *(f"{value:.1e}" for value in (d.median, d.p99, d.maximum)), f"{d.scale:.3g}", d.verdict]
        for d in report.deviations
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:5], widths[1:5]), line[5]]).rstrip()
        for line in lines
    ]
    terminals = f"terminals: {report.terminals_equal:,} of {report.terminals:,} agree ({report.terminals_set:,} set)"
    worst = [f"rows that deviate most: {', '.join(map(str, report.worst_rows))}"] if report.worst_rows else []
    return "\n".join(
        [
            f"{report.dataset} in {report.env_id}: {report.rows:,} of {report.file_rows:,} rows",
            *_assumptions(report),
            "",
            *table,
            terminals,
            *worst,
            "",
            f"{report.verdict}: {_MEANING[report.verdict]}",
        ]
    )


_MEANING = {
    "matches": "equal within float32 rounding",
    "close": "small differences; look at the groups and rows that deviate before you compare scores",
    "differs": "this is not the environment that made these data, or the file is damaged",
}


def _assumptions(report: ReplayReport) -> list[str]:
    if report.states == "recorded":
        lines = [f"states: infos/ of the file, recorded {report.state_time} a row's step"]
    else:
        skipped = f"; {report.skipped:,} rows with clipped velocities left out" if report.skipped else ""
        lines = [f"states: reconstructed from the observations, which are rounded to float32{skipped}"]
    if report.goal == "missing":
        lines.append("goals: the file holds none (infos/goal), rewards are compared with those for the environment's")
    elif report.goal is not None:
        lines.append(f"goals: those of the {report.goal}")
    if report.reward_time == "state":
        lines.append("rewards: a row holds the reward of the state in which its action was taken, one step late")
    return [*lines, report.remark] if report.remark else lines


def plot_replay(report: ReplayReport, path: Path) -> None:
    """Writes a PNG: sorted deviations of each group in units of its scale, with the limits of the verdicts beside."""
    from matplotlib.figure import Figure

    smallest = 1e-9  # equal values would be at minus infinity
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, values in report.row_deviations.items():
        shares = np.arange(1, len(values) + 1) / len(values)
        axes.plot(100 * shares, np.maximum(np.sort(values), smallest), label=name)
    for verdict, (median, p99, _) in LIMITS.items():
        axes.plot([50, 99], [median, p99], "k_", markersize=12)
        axes.annotate(verdict, (50, median), (0, 4), textcoords="offset points", ha="center", fontsize="small")
    axes.set(xlabel="rows (%)", ylabel="deviation / scale", yscale="log", title=f"{report.dataset} in {report.env_id}")
    axes.legend(fontsize="small")
    with written_aside(path) as file:
        figure.savefig(file, format="png", dpi=120)
