"""What episodes are worth: means, standard errors, D4RL's normalised score, as a table, a file and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cepdiff.data.tasks import normalized_score as normalized_score
from cepdiff.files import write_json, written_aside
from cepdiff.rollout.rollout import EpisodeResult

# The keys of a row in the scores file, in order.
_FILE_KEYS = ("guidance_scale", "episodes", "mean_return", "standard_error", "normalized_score")


@dataclass(frozen=True)
class Reference:
    """Mean returns of a random (`minimum`) and an expert policy (`maximum`)."""

    minimum: float
    maximum: float


@dataclass(frozen=True)
class ScoreRow:
    """All episodes of one guidance scale; the normalised fields are None where no reference is known."""

    guidance_scale: float
    episodes: int
    mean_return: float
    standard_error: float
    normalized_score: float | None
    normalized_standard_error: float | None


def summarize(results: Sequence[EpisodeResult], reference: Reference | None) -> list[ScoreRow]:
    """One row a scale, sorted by scale; the order of `results`, e.g. from several processes, does not matter.

    The standard error is the sample standard deviation (n - 1) over sqrt(n), and 0 for a single episode, which
    says nothing about the spread.
    """
    rows = []
    for scale in sorted({result.guidance_scale for result in results}):
        # fmean and stdev sum exactly: the order does not matter to the last bit.
        returns = [result.episode_return for result in results if result.guidance_scale == scale]
        mean = fmean(returns)
        error = stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else 0.0
        rows.append(_row(scale, len(returns), mean, error, reference))
    return rows


def _row(scale: float, episodes: int, mean: float, error: float, reference: Reference | None) -> ScoreRow:
    if reference is None:
        return ScoreRow(scale, episodes, mean, error, None, None)
    score = normalized_score(mean, reference.minimum, reference.maximum)
    return ScoreRow(scale, episodes, mean, error, score, 100 * error / abs(reference.maximum - reference.minimum))


def best_row(rows: Sequence[ScoreRow]) -> ScoreRow:
    """The row with the highest mean return; the smallest scale among equals."""
    return max(rows, key=lambda row: (row.mean_return, -row.guidance_scale))


def format_table(rows: Sequence[ScoreRow]) -> str:
    """An aligned text table that marks the behavior policy (scale 0) and the best scale."""
    if not rows:
        return "no episodes"
    best = best_row(rows)
    header = ("guidance scale", "episodes", "mean return", "normalized score", "")
    lines = [header]
    for row in rows:
        notes = ["behavior policy"] * (row.guidance_scale == 0) + ["best"] * (row is best)
        score = "-"
        if row.normalized_score is not None:
            score = f"{row.normalized_score:.1f} ± {row.normalized_standard_error:.1f}"
        mean = f"{row.mean_return:.2f} ± {row.standard_error:.2f}"
        lines.append((f"{row.guidance_scale:g}", str(row.episodes), mean, score, ", ".join(notes)))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    text = ["  ".join([*(c.rjust(w) for c, w in zip(line, widths, strict=False)), line[4]]) for line in lines]
    return "\n".join(line.rstrip() for line in text)


def write_scores(path: Path, task: str, rows: Sequence[ScoreRow], extra: Mapping[str, Any] | None = None) -> None:
    """`{"task": ..., "scores": [...]}` and the keys of `extra` as JSON; written aside and renamed."""
    scores = [{key: getattr(row, key) for key in _FILE_KEYS} for row in rows]
    fixed = {"task": task, "scores": scores}
    write_json(path, {**fixed, **(extra or {}), **fixed})  # the fixed keys first in the file, and not to be replaced


def read_scores(path: Path, reference: Reference | None) -> list[ScoreRow]:
    """The rows of a file that `write_scores` wrote."""
    return [
        _row(row["guidance_scale"], row["episodes"], row["mean_return"], row["standard_error"], reference)
        for row in json.loads(path.read_text(encoding="utf-8"))["scores"]
    ]


def plot_scores(rows: Sequence[ScoreRow], path: Path, title: str = "") -> None:
    """Score (or return, where no reference is known) against guidance scale, with standard errors.

    The behavior policy (scale 0) is a dashed line with its standard error as a band. The suffix of `path` chooses
    the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    normalized = all(row.normalized_score is not None for row in rows)
    key = "normalized_score" if normalized else "mean_return"
    error_key = "normalized_standard_error" if normalized else "standard_error"
    values = [float(getattr(row, key)) for row in rows]
    errors = [float(getattr(row, error_key)) for row in rows]

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, value, error in zip(rows, values, errors, strict=True):
        if row.guidance_scale == 0:
            axes.axhline(value, color="0.4", linestyle="--", label="behavior policy (scale 0)")
            axes.axhspan(value - error, value + error, color="0.4", alpha=0.15, linewidth=0)
    scales = [row.guidance_scale for row in rows]
    axes.errorbar(scales, values, yerr=errors, marker="o", capsize=3, label="guided policy")
    axes.set_xlabel("guidance scale")
    axes.set_ylabel("normalized score" if normalized else "mean return")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    with written_aside(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix[1:] or "png")
