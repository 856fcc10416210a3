"""Scores of episodes: means, standard errors and D4RL's normalised score per guidance scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from cepdiff.data.rl.tasks import normalized_score as normalized_score
from cepdiff.rollout.rollout import EpisodeResult
from cepdiff.tables import Table, number


@dataclass(frozen=True)
class Reference:
    """Mean returns of a random (`minimum`) and an expert policy (`maximum`)."""

    minimum: float
    maximum: float


@dataclass(frozen=True)
class ScoreRow:
    """All episodes of one guidance scale; the normalised fields are None if no reference is known."""

    guidance_scale: float
    episodes: int
    mean_return: float
    standard_error: float
    normalized_score: float | None
    normalized_standard_error: float | None

    @property
    def score(self) -> float:
        """The normalised score, or the mean return if no reference is known."""
        return self.mean_return if self.normalized_score is None else self.normalized_score


def summarize(results: Sequence[EpisodeResult], reference: Reference | None) -> list[ScoreRow]:
    """One row per scale, sorted by scale; the order of `results`, e.g. from several processes, does not matter.

    The standard error is the sample standard deviation (n - 1) over sqrt(n), and 0 for a single episode, which says
    nothing about the spread.
    """
    rows = []
    for scale in sorted({result.guidance_scale for result in results}):
        # fmean and stdev sum exactly: the order does not matter to the last bit.
        returns = [result.episode_return for result in results if result.guidance_scale == scale]
        mean = fmean(returns)
        error = stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else 0.0
        score = score_error = None
        if reference is not None:
            score = normalized_score(mean, reference.minimum, reference.maximum)
            score_error = 100 * error / abs(reference.maximum - reference.minimum)
        rows.append(ScoreRow(scale, len(returns), mean, error, score, score_error))
    return rows


def best_row(rows: Sequence[ScoreRow]) -> ScoreRow:
    """The row with the highest mean return; the smallest scale among equals."""
    return max(rows, key=lambda row: (row.mean_return, -row.guidance_scale))


def score_table(rows: Sequence[ScoreRow]) -> Table:
    """One line per scale."""
    lines = [["guidance scale", "episodes", "mean return", "normalized score"]]
    for row in rows:
        mean = number(row.mean_return, ".2f", row.standard_error)
        score = number(row.normalized_score, ".1f", row.normalized_standard_error)
        lines.append([f"{row.guidance_scale:g}", str(row.episodes), mean, score])
    return Table(lines)
