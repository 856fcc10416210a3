"""The in-support softmax Bellman backup (Lu et al. 2023, Eq. 15)."""

from __future__ import annotations

from torch import Tensor


def softmax_value(q: Tensor, inverse_temperature: float) -> Tensor:
    """V(s) = Σ_k softmax_k(beta_Q Q(s, a_k)) Q(s, a_k) over support actions; `q` (..., K) -> (...).

    beta_Q -> 0 is the mean over the behavior policy, beta_Q -> infinity the best support action.
    """
    return ((inverse_temperature * q).softmax(-1) * q).sum(-1)


def softmax_entropy(q: Tensor, inverse_temperature: float) -> Tensor:
    """Entropy of softmax_k(beta_Q Q(s, a_k)) in nats, in [0, ln K]; `q` (..., K) -> (...)."""
    log_weights = (inverse_temperature * q).log_softmax(-1)
    return -(log_weights.exp() * log_weights).sum(-1)


def lower_bound(values: Tensor, deviations: float | None) -> Tensor:
    """The mean of C critics minus `deviations` of their standard deviations; `values` (C, ...) -> (...).

    None takes their minimum (clipped double Q, Fujimoto et al. 2018), 0 their mean. A positive number gives the lower
    confidence bound of Ghasemipour et al. 2022, Eq. 5.
    """
    if deviations is None:
        return values.amin(0)
    return values.mean(0) - deviations * values.std(0, correction=0)


def expectile_loss(gaps: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile - 1(gap < 0)| gap² -> (), minimal if V is the expectile of Q (Kostrikov et al. 2022, Eq. 5).

    `gaps` (...) are Q - V. The expectile 0.5 is the mean; towards 1 it approaches the maximum.
    """
    return ((gaps < 0).to(gaps.dtype) - expectile).abs().mul(gaps.square()).mean()


def bellman_target(rewards: Tensor, terminals: Tensor, next_values: Tensor, discount: float | Tensor) -> Tensor:
    """r + gamma (1 - terminal) V(s'); all (B,). A time limit is not a terminal: it bootstraps."""
    return rewards + discount * (1.0 - terminals.to(next_values.dtype)) * next_values
