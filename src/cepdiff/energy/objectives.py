"""Objectives of the energy network, side by side.

**Sign.** Networks output `logits` f(x_t, t, s), which stand for -E_t(x_t) up to a constant of t and s; `energies`
are E(x_0) (in offline RL -Q). A sample with low energy has a high logit.

All take `logits` (B, K) at K noised samples that share one time and condition a row, and the `energies` (B, K) of
the clean samples, and return `(loss, metrics)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cepdiff.errors import ConfigError
from cepdiff.types import Metrics


def effective_sample_size(energies: Tensor, inverse_temperature: float) -> Tensor:
    """1 / Σ_k w_k² of w = softmax_K(-beta E), in [1, K]; `energies` (..., K) -> (...)."""
    return 1.0 / torch.softmax(-inverse_temperature * energies, -1).square().sum(-1)


def cep_loss(logits: Tensor, energies: Tensor, inverse_temperature: float) -> tuple[Tensor, Metrics]:
    """Contrastive energy prediction: cross-entropy of softmax_K(logits) against softmax_K(-beta E).

    Lu et al. 2023, Eq. 10 and 12. Exact: at its optimum ∇f = -∇E_t. `excess` is the loss above the labels' entropy
    (a KL divergence, in nats); `label_ess` the effective number of samples 1 / Σ label² in [1, K].
    """
    log_labels = (-inverse_temperature * energies).log_softmax(-1)
    labels = log_labels.exp()
    loss = -(labels * logits.log_softmax(-1)).sum(-1).mean()
    entropy = -(labels * log_labels).sum(-1).mean()
    label_ess = effective_sample_size(energies, inverse_temperature).mean()
    return loss, {"loss": loss.detach(), "excess": loss.detach() - entropy, "label_ess": label_ess}


def mse_loss(logits: Tensor, energies: Tensor, inverse_temperature: float) -> tuple[Tensor, Metrics]:
    """Regression of f on -beta E(x_0): learns the posterior mean of the energy, which is **not** E_t.

    Lu et al. 2023, Sec. 3.3 (as in Janner et al. 2022). A baseline.
    """
    loss = (logits + inverse_temperature * energies).square().mean()
    return loss, {"loss": loss.detach()}


def exponential_mse_loss(logits: Tensor, energies: Tensor, inverse_temperature: float) -> tuple[Tensor, Metrics]:
    """E-MSE: regression of exp(f) on exp(-beta E(x_0)) (Lu et al. 2023, Eq. 13): exact, but dominated by few samples.

    Energies are measured from each row's lowest one, which changes f by a constant of the condition alone and keeps
    the exponential finite; logits are capped at 10 for the same reason.
    """
    targets = (-inverse_temperature * (energies - energies.amin(-1, keepdim=True))).exp()
    loss = (logits.clamp(max=10.0).exp() - targets).square().mean()
    return loss, {"loss": loss.detach()}


class EnergyObjective(ABC):
    """What an energy network is trained on; subclass it and name the subclass as `guidance.objective`.

    `inverse_temperature` is beta in p(x) ∝ q(x) exp(-beta E(x)), above 0.
    """

    def __init__(self, inverse_temperature: float = 3.0) -> None:
        if not (inverse_temperature > 0.0 and math.isfinite(inverse_temperature)):
            raise ConfigError(f"inverse_temperature is {inverse_temperature}; expected a finite number above 0")
        self.inverse_temperature = inverse_temperature

    @abstractmethod
    def __call__(self, logits: Tensor, energies: Tensor) -> tuple[Tensor, Metrics]:
        """Loss (scalar) and metrics for `logits` and `energies` (B, K)."""


class CEP(EnergyObjective):
    """Contrastive energy prediction, see `cep_loss`."""

    def __call__(self, logits: Tensor, energies: Tensor) -> tuple[Tensor, Metrics]:
        if energies.shape[-1] < 2:
            raise ConfigError(f"CEP contrasts K samples; K is {energies.shape[-1]}, expected at least 2")
        return cep_loss(logits, energies, self.inverse_temperature)


class MSE(EnergyObjective):
    """Posterior-mean regression, see `mse_loss`."""

    def __call__(self, logits: Tensor, energies: Tensor) -> tuple[Tensor, Metrics]:
        return mse_loss(logits, energies, self.inverse_temperature)


class ExponentialMSE(EnergyObjective):
    """Regression in the exponential, see `exponential_mse_loss`."""

    def __call__(self, logits: Tensor, energies: Tensor) -> tuple[Tensor, Metrics]:
        return exponential_mse_loss(logits, energies, self.inverse_temperature)
