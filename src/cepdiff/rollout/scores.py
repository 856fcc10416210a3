"""Scores of episodes: means, standard errors, D4RL's normalised score and success rates per guidance scale."""

from __future__ import annotations

import math
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
    """All episodes of one guidance scale; the normalised fields are None if no reference is known.

    One episode has no standard error. `success_rate` is in percent, None if the environment does not say which episodes
    succeed.
    """

    guidance_scale: float
    episodes: int
    mean_return: float
    standard_error: float | None
    normalized_score: float | None
    normalized_standard_error: float | None
    success_rate: float | None = None
    success_standard_error: float | None = None

    @property
    def score(self) -> float:
        """The normalised score, else the success rate, else the mean return."""
        return next(s for s in (self.normalized_score, self.success_rate, self.mean_return) if s is not None)


def summarize(results: Sequence[EpisodeResult], reference: Reference | None) -> list[ScoreRow]:
    """One row per scale, sorted by scale; the order of `results`, e.g. from several processes, does not matter.

    The standard error is the sample standard deviation (n - 1) over sqrt(n), None for a single episode.
    """
    rows = []
    for scale in sorted({result.guidance_scale for result in results}):
        # fmean and stdev sum exactly: the order does not matter to the last bit.
        returns = [result.episode_return for result in results if result.guidance_scale == scale]
        mean = fmean(returns)
        error = _standard_error(returns)
        score = score_error = None
        if reference is not None:
            score = normalized_score(mean, reference.minimum, reference.maximum)
            score_error = None if error is None else 100 * error / abs(reference.maximum - reference.minimum)
        successes = [result.success for result in results if result.guidance_scale == scale]
        rows.append(ScoreRow(scale, len(returns), mean, error, score, score_error, *_success_rate(successes)))
    return rows


def _standard_error(values: Sequence[float]) -> float | None:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def _success_rate(successes: Sequence[bool | None]) -> tuple[float | None, float | None]:
    """(rate, standard error) in percent; None if it is unknown of any episode."""
    known = [100.0 * success for success in successes if success is not None]
    if len(known) < len(successes):
        return None, None
    return fmean(known), _standard_error(known)


def best_row(rows: Sequence[ScoreRow]) -> ScoreRow:
    """The row with the highest success rate, else mean return; the smallest scale among equals."""
    return max(rows, key=lambda row: (row.success_rate or 0.0, row.mean_return, -row.guidance_scale))


def score_table(rows: Sequence[ScoreRow]) -> Table:
    """One line per scale."""
    by_success = any(row.success_rate is not None for row in rows)
    lines = [["guidance scale", "episodes", "mean return", "success rate, %" if by_success else "normalized score"]]
    for row in rows:
        alone = math.nan if row.episodes == 1 else None
        mean = number(row.mean_return, ".2f", alone or row.standard_error)
        score = (
            number(row.success_rate, ".1f", alone or row.success_standard_error)
            if by_success
            else number(row.normalized_score, ".1f", alone or row.normalized_standard_error)
        )
        lines.append([f"{row.guidance_scale:g}", str(row.episodes), mean, score])
    return Table(lines)
