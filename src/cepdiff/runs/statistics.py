"""Statistics of scores over tasks and seeds, with stratified bootstrap intervals.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264).
`Samples` are one array (..., n) per task, with the scores of its n seeds; leading axes are resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cepdiff.errors import MissingExtraError
from cepdiff.tables import number

TARGET = 100.0  # score of the optimality gap: D4RL's expert
CONFIDENCE = 0.95
RESAMPLES = 10_000
PROFILE_RESAMPLES = 2_000  # of a performance profile, which has a value per threshold
SEED = 0
# 97.5% quantiles of Student's t with 1, 2, ... degrees of freedom; 2 for more.
STUDENT = (12.7, 4.3, 3.2, 2.8, 2.6, 2.4, 2.4, 2.3, 2.3)

K = TypeVar("K")
Array = NDArray[np.float64]
Samples = Sequence[Array]


@dataclass(frozen=True)
class Estimate:
    """A statistic and the bounds of its interval; None if there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def text(self, form: str) -> str:
        """The value and its interval: "49.1 [45.0, 53.2]"."""
        return f"{number(self.value, form)} [{number(self.low, form)}, {number(self.high, form)}]"


class Measured(NamedTuple):
    """A mean, its standard error (None if it is not known), and the number of samples that the error is of."""

    mean: float
    error: float | None
    samples: float = math.inf


def winner(found: Mapping[K, Measured], smallest: bool = False) -> K | None:
    """The key with the highest mean (or the `smallest`), if it leads every other by more than the noise; else None.

    The noise is t standard errors of the difference of the two, with Student's t (97.5%) for the smaller of the two
    counts. Without a standard error nothing leads.
    """
    if len(found) < 2:
        return None
    best = (min if smallest else max)(found, key=lambda key: found[key].mean)
    return best if all(_differ(found[best], other) for key, other in found.items() if key != best) else None


def _differ(first: Measured, second: Measured) -> bool:
    """True if two means differ by more than the noise."""
    freedom = min(first.samples, second.samples) - 1
    if first.error is None or second.error is None or freedom < 1:
        return False
    t = STUDENT[int(freedom) - 1] if freedom <= len(STUDENT) else 2.0
    return abs(first.mean - second.mean) > t * math.hypot(first.error, second.error)


def interquartile_mean(scores: Samples) -> Array:
    """Mean of the middle half of all runs: a quarter of them, rounded down, is left out at each end.

    All runs count the same, so that a task with fewer seeds has less weight.
    """
    runs = np.sort(np.concatenate(scores, -1), -1)
    cut = runs.shape[-1] // 4
    return _float(runs[..., cut : runs.shape[-1] - cut].mean(-1))


def median(scores: Samples) -> Array:
    """Median over the tasks of the mean over a task's seeds."""
    return _float(np.median(_task_means(scores), 0))


def mean(scores: Samples) -> Array:
    """Mean over the tasks of the mean over a task's seeds."""
    return _float(_task_means(scores).mean(0))


def optimality_gap(scores: Samples) -> Array:
    """Mean over the tasks of how far a run is below `TARGET`; a run above it counts 0. Smaller is better."""
    return mean([np.maximum(TARGET - task, 0.0) for task in scores])


def improvement(first: Samples, second: Samples) -> Array:
    """Probability that a run of `first` has a higher score than one of `second` on the same task, in [0, 1].

    Mean over the tasks of P(X > Y) + P(X = Y) / 2 over all pairs of seeds (the Mann-Whitney U statistic).
    """
    pairs = [(x[..., :, None], y[..., None, :]) for x, y in zip(first, second, strict=True)]
    return _float(np.mean([((x > y) + 0.5 * (x == y)).mean((-2, -1)) for x, y in pairs], 0))


def profile(scores: Samples, thresholds: Array) -> Array:
    """Performance profile (T, ...): share of runs above each threshold, mean over the tasks."""
    return _float(np.stack([mean([task > threshold for task in scores]) for threshold in thresholds]))


STATISTICS: Mapping[str, Callable[[Samples], Array]] = {
    "interquartile mean": interquartile_mean, "median": median, "mean": mean, "optimality gap": optimality_gap,
}  # fmt: skip


def estimates(scores: Samples) -> dict[str, Estimate]:
    """Every statistic of `STATISTICS` with its interval; all of them are of the same resamples."""
    found = estimate(lambda *tasks: np.stack([statistic(tasks) for statistic in STATISTICS.values()]), scores)
    return dict(zip(STATISTICS, found, strict=True))


def estimate(statistic: Callable[..., Array], scores: Samples, resamples: int = RESAMPLES) -> list[Estimate]:
    """Values (V,) of `statistic(*scores)` with percentile intervals of the stratified bootstrap.

    The seeds of each task are drawn anew with replacement, independently of the other tasks. There is no interval if a
    task has one seed, or if SciPy is missing.
    """
    values = np.atleast_1d(statistic(*scores))
    if any(task.shape[-1] < 2 for task in scores) or find_spec("scipy") is None:
        return [Estimate(float(value)) for value in values]
    from scipy.stats import bootstrap

    found = bootstrap(
        scores, lambda *tasks, axis: np.atleast_1d(statistic(*tasks)), vectorized=True, method="percentile",
        confidence_level=CONFIDENCE, n_resamples=resamples, rng=np.random.default_rng(SEED),
    ).confidence_interval  # fmt: skip
    low, high = (np.reshape(bound, values.shape) for bound in (found.low, found.high))
    return [Estimate(*map(float, bounds)) for bounds in zip(values, low, high, strict=True)]


def bootstrap_note(settings: Sequence[Samples]) -> str:
    """One line on how the intervals of these settings were made, or why there are none."""
    if find_spec("scipy") is None:
        return f"No intervals: {MissingExtraError('the bootstrap', 'statistics')}."
    made = (
        f"Intervals of {CONFIDENCE:.0%}: stratified bootstrap over the seeds of each task, {RESAMPLES:,} resamples, "
        f"seed {SEED}, percentiles (Agarwal et al. 2021)."
    )
    alone = [any(task.shape[-1] < 2 for task in tasks) for tasks in settings]
    why = "a task has one seed, which says nothing about the spread over seeds"
    if all(alone):
        return f"No intervals: {why}."
    return f"{made} None where {why}." if any(alone) else made


def _task_means(scores: Samples) -> Array:
    return np.stack([task.mean(-1) for task in scores])


def _float(values: Any) -> Array:
    return np.asarray(values, np.float64)
