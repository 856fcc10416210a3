"""Tests of a critic's ranking of a state's actions, by agreement with other critics and with the returns in the data.

Both figures are correlations in [-1, 1] whose expectation by chance is 0. Their standard errors are over episodes,
because the states of an episode are not independent. M states, K actions, N rows, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Normal quantile: a value plus or minus this many standard errors is its 95% interval.
INTERVAL = 1.96
OUTLIER = 3.0
# Relative to the mean square of a feature.
RIDGE = 1e-3
TINY = 1e-12  # keeps the regression solvable if all features are constant


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error."""

    value: float
    error: float

    @property
    def above_chance(self) -> bool:
        """True if the 95% interval lies above 0."""
        return self.value - INTERVAL * self.error > 0.0

    @property
    def below_chance(self) -> bool:
        """True if the 95% interval lies below 0."""
        return self.value + INTERVAL * self.error < 0.0

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


def rank_agreement(q: Tensor, episodes: Tensor, action_size: int) -> Estimate:
    """Kendall's tau (tau-a) between critics, mean over their pairs and the states; needs two critics and two actions.

    `q` (C, M, K) holds the critics' values, `episodes` (M,) the episode of each state. The value is the probability
    that two critics order two actions in the same way minus the probability that they order them in opposite ways; a
    tie counts as neither. The error has a part for the states and a part for the critics, see `chance_spread`: if they
    are few, critics can agree by chance.
    """
    critics, _, actions = q.shape
    orders = (q.unsqueeze(-1) - q.unsqueeze(-2)).sign()  # (C, M, K, K)
    # Sum over pairs of different critics: the square of the sum less the squares.
    alike = orders.sum(0).square() - orders.square().sum(0)
    taus = alike.sum((-2, -1)).double() / (critics * (critics - 1) * actions * (actions - 1))
    of_states = clustered_error(taus - taus.mean(), episodes)
    of_critics = chance_spread(action_size) / math.sqrt(critics * (critics - 1) / 2)
    return Estimate(float(taus.mean()), math.hypot(of_states, of_critics))


def chance_spread(action_size: int) -> float:
    """Standard deviation of tau between two random critics, each linear in the action with one slope for all states.

    The slopes are independent directions in R^A at an angle w with the density sin(w)^(A - 2). They order isotropic
    actions in the same way with probability 1 - w / pi, so tau = 1 - 2 w / pi. Critics that vary from state to state
    agree less by chance. Different pairs are uncorrelated.
    """
    if action_size == 1:
        return 1.0  # slopes differ only by sign: tau is 1 or -1
    angles = (torch.arange(4096, dtype=torch.float64) + 0.5) * math.pi / 4096
    density = angles.sin() ** (action_size - 2)
    return math.sqrt(float((density * (1.0 - 2.0 * angles / math.pi) ** 2).sum() / density.sum()))


def return_agreement(advantages: Tensor, returns: Tensor, features: Tensor, episodes: Tensor) -> Estimate:
    """Correlation, given the state, between a critic's `advantages` (N,) of the actions taken and the `returns` (N,).

    What the state predicts is subtracted from both, by a ridge regression on `features` (N, F) of the state, fitted on
    one half of the episodes and applied to the other. The residuals are correlated `without_outliers`. A critic that
    ranks at random gives 0, one that ranks backwards a negative value. The value is small even for a perfect critic,
    because most of a return depends on later actions. The error is that of the linearised correlation, clustered by
    `episodes` (N,).
    """
    pair = torch.stack([advantages, returns], -1).double()
    residuals = without_outliers(cross_fitted_residuals(features.double(), pair, episodes))
    residuals = residuals - residuals.mean(0)
    spread = residuals.square().mean(0).sqrt()
    if not bool((spread > 0.0).all()):  # advantages or returns that depend only on the state
        return Estimate(0.0, 0.0)
    a, g = (residuals / spread).unbind(-1)
    value = (a * g).mean()
    influence = a * g - value / 2.0 * (a.square() + g.square())
    return Estimate(float(value), clustered_error(influence, episodes))


def cross_fitted_residuals(features: Tensor, values: Tensor, episodes: Tensor) -> Tensor:
    """`values` (N, V) minus their ridge regression on `features` (N, F), fitted on the other half of the episodes.

    Episodes alternate between the halves in the order of their numbers `episodes` (N,).
    """
    half = torch.unique(episodes, return_inverse=True)[1] % 2
    residuals = torch.empty_like(values)
    for here in (half == 0, half == 1):
        x, y = features[~here], values[~here]
        x_mean, y_mean = x.mean(0), y.mean(0)
        x = x - x_mean
        gram = x.T @ x
        gram += (RIDGE * gram.diagonal().mean() + TINY) * torch.eye(len(gram), dtype=gram.dtype)
        weights = torch.linalg.solve(gram, x.T @ (y - y_mean))
        residuals[here] = values[here] - y_mean - (features[here] - x_mean) @ weights
    return residuals


def without_outliers(values: Tensor) -> Tensor:
    """`values` (N, V) minus their median, clipped to `OUTLIER` robust standard deviations.

    A robust standard deviation is 1.4826 median absolute deviations, which is exact for a normal distribution. Without
    clipping, the few states with large errors of the regression would dominate a correlation. Nothing is clipped if the
    deviation is 0.
    """
    centred = values - values.quantile(0.5, dim=0)
    limit = OUTLIER * 1.4826 * centred.abs().quantile(0.5, dim=0)
    limit = torch.where(limit > 0.0, limit, torch.inf)
    return centred.maximum(-limit).minimum(limit)


def clustered_error(influence: Tensor, clusters: Tensor) -> float:
    """Standard error of a mean whose rows (N,) are dependent within `clusters` (N,) and sum to 0 over all rows.

    It is sqrt(C / (C - 1) sum_c (sum of the rows in c)²) / N for C clusters (Liang and Zeger 1986), infinite for one.
    """
    names, index = torch.unique(clusters, return_inverse=True)
    count = len(names)
    if count < 2:
        return math.inf
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, index.cpu(), influence.double().cpu())
    return math.sqrt(count / (count - 1.0) * float(sums.square().sum())) / len(influence)


def fourier_features(states: Tensor, directions: Tensor, phases: Tensor) -> Tensor:
    """The standardised states (N, S) and F random Fourier features cos(w·s + b) of them -> (N, S + F).

    `directions` (S, F) are standard normal, divided here by sqrt(S); `phases` (F,) are uniform in [0, 2 pi) (Rahimi and
    Recht 2007). Constant dimensions become 0.
    """
    states = states.double()
    centred = states - states.mean(0)
    spread = centred.square().mean(0).sqrt()
    states = torch.where(spread > 0.0, centred / spread.clamp(min=1e-12), 0.0)
    waves = (states @ directions.double() / math.sqrt(states.shape[-1]) + phases.double()).cos()
    return torch.cat([states, waves], -1)
