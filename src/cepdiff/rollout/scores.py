"""What episodes are worth: means, standard errors, D4RL's normalised score, as a table, a file and a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cepdiff.data.rl.tasks import normalized_score as normalized_score
from cepdiff.errors import RunError
from cepdiff.files import write_json, written_aside
from cepdiff.rollout.rollout import EpisodeResult

# The keys of a row in the scores file, in order.
_FILE_KEYS = ("guidance_scale", "episodes", "mean_return", "standard_error", "normalized_score")
# Those that a row with offline evidence has beside them.
_OFFLINE_KEYS = ("offline_value", "inside_support", "offline_choice")


@dataclass(frozen=True)
class Reference:
    """Mean returns of a random (`minimum`) and an expert policy (`maximum`)."""

    minimum: float
    maximum: float


@dataclass(frozen=True)
class OfflineScore:
    """What data and critic alone say of a guidance scale: the value that scales are ranked by (scaled reward), the
    share of guided actions inside the support in [0, 1], and whether this is the scale to choose."""

    guidance_scale: float
    value: float
    inside_support: float
    chosen: bool


@dataclass(frozen=True)
class ScoreRow:
    """All episodes of one guidance scale; the normalised fields are None where no reference is known.

    Without any episode, return and error are NaN. The last three fields are those of `OfflineScore`, None and False
    where there is none.
    """

    guidance_scale: float
    episodes: int
    mean_return: float
    standard_error: float
    normalized_score: float | None
    normalized_standard_error: float | None
    offline_value: float | None = None
    inside_support: float | None = None
    offline_choice: bool = False

    @property
    def score(self) -> float:
        """The normalised score, or the mean return where no reference is known; NaN without any episode."""
        return self.mean_return if self.normalized_score is None else self.normalized_score


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
    """The row with the highest mean return, of those with episodes; the smallest scale among equals."""
    return max((row for row in rows if row.episodes), key=lambda row: (row.mean_return, -row.guidance_scale))


def with_offline(rows: Sequence[ScoreRow], evidence: Sequence[OfflineScore]) -> list[ScoreRow]:
    """`rows` with the offline evidence of their scales; a scale that only the evidence has gets a row of 0 episodes.

    Evidence that the rows held before is dropped.
    """
    known = {score.guidance_scale: score for score in evidence}
    scored = {row.guidance_scale: row for row in rows}
    merged = []
    for scale in sorted(known.keys() | scored.keys()):
        row = scored[scale] if scale in scored else _row(scale, 0, math.nan, math.nan, None)
        value, inside, chosen = None, None, False
        if score := known.get(scale):
            value, inside, chosen = score.value, score.inside_support, score.chosen
        merged.append(replace(row, offline_value=value, inside_support=inside, offline_choice=chosen))
    return merged


def offline_regret(rows: Sequence[ScoreRow]) -> float | None:
    """How far the offline choice lies below the best row, >= 0: in points of normalised score, or in return where no
    reference is known. None where the choice was not rolled out, or none was made."""
    return regret(rows, next((row for row in rows if row.offline_choice), None))


def regret(rows: Sequence[ScoreRow], chosen: ScoreRow | None) -> float | None:
    """How far the row `chosen` lies below the best of `rows`, see `offline_regret`; None where it has no episodes."""
    return best_row(rows).score - chosen.score if chosen is not None and chosen.episodes else None


def format_table(rows: Sequence[ScoreRow]) -> str:
    """An aligned text table that marks the behavior policy (scale 0), the best scale and the offline choice.

    Columns that no row can fill, of episodes or of offline evidence, are left out.
    """
    if not rows:
        return "no episodes"
    best = best_row(rows) if any(row.episodes for row in rows) else None
    columns = [["guidance scale", *(f"{row.guidance_scale:g}" for row in rows)]]
    if best is not None:
        columns.append(["episodes", *(str(row.episodes) for row in rows)])
        columns.append(["mean return", *(_spread(row.mean_return, row.standard_error, 2) for row in rows)])
        scores = (_spread(row.normalized_score, row.normalized_standard_error, 1) for row in rows)
        columns.append(["normalized score", *scores])
    if any(row.offline_value is not None for row in rows):
        columns.append(["offline value", *(_number(row.offline_value, ".3f") for row in rows)])
        columns.append(["inside support", *(_number(row.inside_support, ".0%") for row in rows)])
    widths = [max(map(len, column)) for column in columns]
    lines = [
        [cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in zip(*columns, strict=True)
    ]
    notes = ["", *(_notes(row, row is best) for row in rows)]
    return "\n".join("  ".join([*line, note]).rstrip() for line, note in zip(lines, notes, strict=True))


def _notes(row: ScoreRow, best: bool) -> str:
    marks = {"behavior policy": row.guidance_scale == 0, "best": best, "offline choice": row.offline_choice}
    return ", ".join(mark for mark, holds in marks.items() if holds)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _spread(value: float | None, error: float | None, digits: int) -> str:
    if value is None or error is None or math.isnan(value):
        return "-"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def write_scores(path: Path, task: str, rows: Sequence[ScoreRow], extra: Mapping[str, Any] | None = None) -> None:
    """`{"task": ..., "scores": [...]}` and the keys of `extra` as JSON; written aside and renamed.

    A row without episodes has null for return and error, one without offline evidence has no key of it.
    """
    scores = [_to_file(row) for row in rows]
    fixed = {"task": task, "scores": scores}
    write_json(path, {**fixed, **(extra or {}), **fixed})  # the fixed keys first in the file, and not to be replaced


def read_scores(path: Path, reference: Reference | None) -> list[ScoreRow]:
    """The rows of a file that `write_scores` wrote."""
    return [_from_file(row, reference) for row in json.loads(path.read_text(encoding="utf-8"))["scores"]]


def read_score_file(path: Path) -> tuple[list[ScoreRow], dict[str, Any]]:
    """Rows and everything else of a file that `write_scores` wrote, without the references: normalised scores are
    the file's own, their standard errors None. Raises RunError where the file is damaged."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        rows = [replace(_from_file(row, None), normalized_score=row["normalized_score"]) for row in about.pop("scores")]
        for row in rows:
            if not (math.isfinite(row.guidance_scale) and (math.isfinite(row.score) or row.episodes == 0)):
                raise ValueError(f"numbers of guidance scale {row.guidance_scale}")
        return rows, about
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged; delete it and run the same `cepdiff fit` again") from error


def _to_file(row: ScoreRow) -> dict[str, Any]:
    keys = _FILE_KEYS if row.offline_value is None else (*_FILE_KEYS, *_OFFLINE_KEYS)
    values = {key: getattr(row, key) for key in keys}
    return values if row.episodes else {**values, "mean_return": None, "standard_error": None}


def _from_file(values: Mapping[str, Any], reference: Reference | None) -> ScoreRow:
    mean, error = values["mean_return"], values["standard_error"]
    if values["episodes"] == 0:
        mean, error, reference = math.nan, math.nan, None
    row = _row(values["guidance_scale"], values["episodes"], mean, error, reference)
    return replace(row, **{key: values[key] for key in _OFFLINE_KEYS if key in values})


def plot_scores(rows: Sequence[ScoreRow], path: Path, title: str = "") -> None:
    """Score (or return, where no reference is known) against guidance scale, with standard errors.

    The behavior policy (scale 0) is a dashed line with its standard error as a band, the offline choice a dotted line.
    Rows without episodes are left out. The suffix of `path` chooses the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.episodes]
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
        if row.offline_choice:
            axes.axvline(row.guidance_scale, color="tab:green", linestyle=":", label="offline choice")
    scales = [row.guidance_scale for row in rows]
    axes.errorbar(scales, values, yerr=errors, marker="o", capsize=3, label="guided policy")
    axes.set_xlabel("guidance scale")
    axes.set_ylabel("normalized score" if normalized else "mean return")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    with written_aside(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix[1:] or "png")
