"""Objectives of the energy network, side by side.

**Sign.** Networks output `logits` f(x_t, t, s), which stand for -E_t(x_t) up to a constant of t and s; `energies`
are E(x_0) (in offline RL -Q). A sample with low energy has a high logit.

An objective has two parts. `targets` turns the energies (..., K) of a contrastive set's clean samples into targets for
the logits (..., K) at its noised samples. `loss` compares the two and returns `(loss, metrics)`; it is linear in the
targets, up to terms without logits, so only their mean given x_t matters, and they may be averaged over the posterior
of x_0 (`diffusion.posterior`).

**Heads.** A network with H heads represents H energies at once (classes, hues): logits (..., H, K) are fitted to
targets (..., H, K), each head on its own; only the classifiers compare the heads of a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from cepdiff.errors import ConfigError
from cepdiff.ranges import Positive, check_arguments
from cepdiff.types import Metrics


def effective_sample_size(energies: Tensor, inverse_temperature: float) -> Tensor:
    """1 / Σ_k w_k² of w = softmax_K(-beta E), in [1, K]; `energies` (..., K) -> (...).

    0 for a set whose energies are all infinite, since no sample has a weight.
    """
    ess = 1.0 / torch.softmax(-inverse_temperature * energies, -1).square().sum(-1)
    return torch.where(energies.isposinf().all(-1), 0.0, ess)


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of `values` (...) where `counted` (broadcast to them) is True -> (); 0 if it never is."""
    counted = counted.expand_as(values)
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def cep_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Metrics]:
    """Contrastive energy prediction: cross-entropy of softmax_K(logits) against non-negative `targets` (..., K).

    Lu et al. 2023, Eq. 10 and 12. Exact: at its optimum ∇f = -∇E_t. `excess` is the loss above the targets' entropy
    (a KL divergence in nats, with targets scaled to sum to one), averaged over the sets with a target above 0.
    """
    total = targets.sum(-1, keepdim=True)
    log_softmax = logits.log_softmax(-1)
    loss = -(targets * log_softmax).sum(-1).mean()
    shares = (targets / total).detach()
    excess = (torch.xlogy(shares, shares) - shares * log_softmax.detach()).sum(-1)
    return loss, {"loss": loss.detach(), "excess": mean_where(excess, total.squeeze(-1) > 0.0)}


def mse_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Metrics]:
    """Regression of f on -beta E(x_0): learns the posterior mean of the energy, which is **not** E_t.

    Lu et al. 2023, Sec. 3.3 (as in Janner et al. 2022). A baseline.
    """
    loss = (logits - targets).square().mean()
    return loss, {"loss": loss.detach()}


def exponential_mse_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Metrics]:
    """E-MSE: regression of exp(f) on exp(-beta E(x_0)) (Lu et al. 2023, Eq. 13): exact, but dominated by few samples.

    Logits are capped at 10, which keeps the exponential finite.
    """
    loss = (logits.clamp(max=10.0).exp() - targets).square().mean()
    return loss, {"loss": loss.detach()}


def head_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Metrics]:
    """Cross-entropy of softmax_H(logits) against probabilities `targets` (..., H, K): a classifier of each sample.

    Its optimum is softmax_H(f) = p(h|x_t) (Dhariwal & Nichol 2021, Sec. 4): exact for guidance by classes.
    """
    loss = -(targets * logits.log_softmax(-2)).sum(-2).mean()
    return loss, {"loss": loss.detach()}


class EnergyObjective(ABC):
    """Training objective of an energy network; subclass it and name the subclass as `guidance.objective`.

    `inverse_temperature` is beta in p(x) ∝ q(x) exp(-beta E(x)), above 0.
    """

    on_clean: ClassVar[bool] = False
    """True if the network only sees clean samples, and guides through the predicted clean sample."""
    allows_infinite: ClassVar[bool] = False
    """True if energies may be +inf, e.g. those of labels: -log p(y|x) for all classes but the sample's own."""

    def __init__(self, inverse_temperature: Positive = 3.0) -> None:
        check_arguments(EnergyObjective, locals(), "guidance.objective")
        self.inverse_temperature = inverse_temperature

    @abstractmethod
    def targets(self, energies: Tensor, per_set: bool = True) -> Tensor:
        """Targets (..., K) for the logits of samples with `energies` (..., K).

        With `per_set`, each set (e.g. the actions of one state) may be normalised on its own, which multiplies exp(f)
        by a constant of its condition. Without it, sets are samples of one density, energies are absolute, and the
        lowest of all should be near 0.
        """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Metrics]:
        """Loss (scalar) and metrics for `logits` and `targets` (..., K)."""

    def check_heads(self, energies: Tensor) -> None:
        """Raise ConfigError if `energies` (H, K) of H heads cannot be trained on."""
        if not self.allows_infinite and bool(energies.isinf().any()):
            raise ConfigError(
                f"{type(self).__name__} cannot be trained on infinite energies, which the data have (e.g. from "
                "labels); use CEP, ExponentialMSE, NoisyClassifier or DPSClassifier as guidance.objective"
            )

    def guiding_logits(self, logits: Tensor) -> Tensor:
        """Logits (..., H) to guide by, from those of a network with H heads; unchanged by default."""
        return logits

    def __call__(self, logits: Tensor, energies: Tensor) -> tuple[Tensor, Metrics]:
        """Loss and metrics for `logits` and `energies` (..., K), without averaging the targets."""
        return self.loss(logits, self.targets(energies))


class CEP(EnergyObjective):
    """Contrastive energy prediction, see `cep_loss`.

    With `per_set`, labels are softmax_K(-beta E) (Lu et al. 2023, Eq. 16), which estimates the normaliser from the set,
    with a bias of order 1 / (effective sample size). Otherwise they are exp(-beta E) / K, which is exact for every K
    (Eq. 12); for energies of labels, 0 or infinite, that is InfoNCE over the batch.
    """

    allows_infinite = True
    loss = staticmethod(cep_loss)

    def targets(self, energies: Tensor, per_set: bool = True) -> Tensor:
        if energies.shape[-1] < 2:
            raise ConfigError(f"CEP contrasts K samples; K is {energies.shape[-1]}, expected at least 2")
        exponents = -self.inverse_temperature * energies
        return exponents.softmax(-1) if per_set else exponents.exp() / energies.shape[-1]


class MSE(EnergyObjective):
    """Posterior-mean regression, see `mse_loss`."""

    loss = staticmethod(mse_loss)

    def targets(self, energies: Tensor, per_set: bool = True) -> Tensor:
        return -self.inverse_temperature * energies


class ExponentialMSE(EnergyObjective):
    """Regression in the exponential, see `exponential_mse_loss`.

    With `per_set`, energies are measured from each set's lowest one, which only changes f by a constant of the
    condition and keeps the exponential finite.
    """

    allows_infinite = True
    loss = staticmethod(exponential_mse_loss)

    def targets(self, energies: Tensor, per_set: bool = True) -> Tensor:
        lowest = energies.amin(-1, keepdim=True) if per_set else 0.0
        return (-self.inverse_temperature * (energies - lowest)).exp()


class DPS(MSE):
    """The energy of the predicted clean sample (Chung et al. 2023), -beta E(x0_pred(x_t)): a baseline, **not** E_t.

    The network regresses f on -beta E at clean samples only; `diffusion.guidance.predicted_data_logits` turns it into
    logits at noised ones.
    """

    on_clean = True


class NoisyClassifier(EnergyObjective):
    """A classifier of noised samples (Dhariwal & Nichol 2021), the usual class guidance, see `head_cross_entropy`.

    Heads are classes and energies are -log p(h|x), 0 or infinite if each sample has one label. Guides by
    log_softmax_H(f), which at its optimum is as exact as CEP at its own; beta is 1.
    """

    allows_infinite = True
    loss = staticmethod(head_cross_entropy)

    def __init__(self) -> None:
        super().__init__(1.0)

    def targets(self, energies: Tensor, per_set: bool = True) -> Tensor:
        """p(h|x) of `energies` (H, K); raises ConfigError for sets of several conditions or a single head."""
        if per_set or energies.ndim < 2 or energies.shape[-2] < 2:
            raise ConfigError(
                f"{type(self).__name__} compares the heads of an energy network, but energies {tuple(energies.shape)} "
                "have fewer than 2; expected at least 2 classes: use HeadedEnergyGuidance as guidance"
            )
        return (-energies).exp()

    def check_heads(self, energies: Tensor) -> None:
        total = (-energies).exp().sum(0)  # (H, K) -> (K,)
        wrong = total[(total - 1.0).abs() > 1e-3]
        if len(wrong):
            raise ConfigError(
                f"{type(self).__name__} needs energies -log p(h|x) of classes; exp(-E) sums over the heads to "
                f"{float(wrong[0]):.4g}, expected 1 (use CEP for other energies)"
            )

    def guiding_logits(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)


class DPSClassifier(NoisyClassifier):
    """A classifier of clean samples, applied to the predicted one, log p(h|x0_pred(x_t)): a baseline, **not** -E_t."""

    on_clean = True
