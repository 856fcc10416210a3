"""Densities whose guidance is known exactly: Gaussian mixtures under quadratic energies, in any dimension.

A mixture q = Σ_i w_i N(mu_i, C_i) tilted by exp(-beta E), with E quadratic in x, is a mixture again, and both diffuse
to mixtures. Since p_t ∝ q_t exp(-E_t) (Lu et al. 2023, Eq. 8), the intermediate energy is

    E_t(x) = -log E_{q(x_0|x_t)}[exp(-beta E(x_0))] = log q_t(x) - log p_t(x) - log Z,   Z = E_q[exp(-beta E)]

without any approximation. It is what learned guidance and solvers are measured against.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.errors import ConfigError
from cepdiff.randomness import generator


@dataclass(frozen=True)
class GaussianMixture:
    """M components in D dimensions; everything in the dtype of `means`, float64 unless there is a reason.

    `log_weights` (M,) need not be normalised; `means` (M, D); `covariances` (M, D, D), positive definite.
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        components, size = self.means.shape
        if self.log_weights.shape != (components,) or self.covariances.shape != (components, size, size):
            raise ConfigError(
                f"log_weights {tuple(self.log_weights.shape)}, means {tuple(self.means.shape)} and covariances "
                f"{tuple(self.covariances.shape)} do not fit; expected (M,), (M, D) and (M, D, D)"
            )
        if not bool((self._eigen[0] > 0).all()):
            raise ConfigError("a covariance is not positive definite")

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        variances, axes = torch.linalg.eigh(self.covariances)  # (M, D), (M, D, D) with axes as columns
        return variances, axes

    @property
    def size(self) -> int:
        """D."""
        return self.means.shape[1]

    def log_prob(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """log density (...) at `x` (..., D) of alpha X + sigma eps, X of the mixture; coefficients (...) broadcast."""
        return self._joint(x, alpha, sigma)[0].logsumexp(-1)

    def score(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """∇ log density (..., D) of alpha X + sigma eps at `x` (..., D)."""
        log_joint, residual, variances = self._joint(x, alpha, sigma)
        # Each component's own score back from its principal axes: (..., M, D) -> (..., M, D)
        scores = -torch.einsum("mde,...me->...md", self._eigen[1], residual / variances)
        return (log_joint.softmax(-1).unsqueeze(-1) * scores).sum(-2)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(component | x) (..., M) at `x` (..., D)."""
        return self._joint(x, 1.0, 0.0)[0].softmax(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`n` independent draws: points (n, D) and the component (n,) of each."""
        component = torch.multinomial(self.log_weights.softmax(0), n, replacement=True, generator=generator)
        variances, axes = self._eigen
        points = torch.randn(n, self.size, generator=generator, dtype=self.means.dtype)
        for i, mean in enumerate(self.means):  # axes[component] would hold a matrix for every point
            rows = component == i
            points[rows] = mean + (variances[i].sqrt() * points[rows]) @ axes[i].T
        return points, component

    def _joint(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """log w_i N_i (..., M), and residuals and variances (..., M, D) along the principal axes."""
        alpha, sigma = (torch.as_tensor(value, dtype=x.dtype)[..., None, None] for value in (alpha, sigma))
        variances, axes = self._eigen
        residual = torch.einsum("mde,...md->...me", axes, x.unsqueeze(-2) - alpha * self.means)
        spread = alpha**2 * variances + sigma**2
        log_density = -0.5 * (residual**2 / spread + (2.0 * math.pi * spread).log()).sum(-1)
        return self.log_weights.log_softmax(0) + log_density, residual, spread


@dataclass(frozen=True)
class QuadraticEnergy:
    """E_i(x) = x'P_i x / 2 + a_i'x + c_i of a point x of component i, one energy for all components or one each.

    `matrices` (M or 1, D, D) symmetric, `slopes` (M or 1, D), `constants` (M or 1,).
    """

    matrices: Tensor
    slopes: Tensor
    constants: Tensor

    @classmethod
    def linear(cls, slope: Tensor) -> QuadraticEnergy:
        """E(x) = a'x for `slope` (D,)."""
        zeros = torch.zeros(1, len(slope), len(slope), dtype=slope.dtype)
        return cls(zeros, slope.unsqueeze(0), torch.zeros(1, dtype=slope.dtype))

    @classmethod
    def quadratic(cls, centre: Tensor, curvature: float) -> QuadraticEnergy:
        """E(x) = curvature |x - centre|² / 2 for `centre` (D,)."""
        matrix = curvature * torch.eye(len(centre), dtype=centre.dtype)
        return cls(matrix.unsqueeze(0), -curvature * centre.unsqueeze(0), curvature * centre.square().sum(0, True) / 2)

    @classmethod
    def per_component(cls, constants: Tensor, size: int) -> QuadraticEnergy:
        """E = c_i for points of component i, `constants` (M,), in `size` dimensions: an energy that is a label."""
        components = len(constants)
        zeros = torch.zeros(components, size, size + 1, dtype=constants.dtype)
        return cls(zeros[..., :-1], zeros[..., -1], constants)

    def __call__(self, x: Tensor, component: Tensor) -> Tensor:
        """Energies (N,) of points `x` (N, D) of components (N,)."""
        if len(self.constants) == 1:  # a matrix for every point would fill the memory
            return (x @ self.matrices[0] * x).sum(-1) / 2 + x @ self.slopes[0] + self.constants[0]
        quadratic = torch.einsum("nd,nde,ne->n", x, self.matrices[component], x) / 2
        return quadratic + (self.slopes[component] * x).sum(-1) + self.constants[component]

    def scaled(self, factor: float, shift: float = 0.0) -> QuadraticEnergy:
        """factor (E - shift)."""
        return QuadraticEnergy(factor * self.matrices, factor * self.slopes, factor * (self.constants - shift))


def tilted(
    prior: GaussianMixture, energy: QuadraticEnergy, inverse_temperature: float
) -> tuple[GaussianMixture, Tensor]:
    """The mixture p ∝ q exp(-beta E) and log Z = log E_q[exp(-beta E)], by completing the square.

    Raises ConfigError if exp(-beta E) makes a component too wide to normalise.
    """
    precision = torch.linalg.inv(prior.covariances)  # (M, D, D)
    tilted_precision = precision + inverse_temperature * energy.matrices
    if not bool((torch.linalg.eigvalsh(tilted_precision) > 0).all()):
        raise ConfigError(f"the density tilted with inverse_temperature {inverse_temperature} cannot be normalised")
    covariances = torch.linalg.inv(tilted_precision)
    shift = torch.einsum("mde,me->md", precision, prior.means)  # (M, D)
    tilted_shift = shift - inverse_temperature * energy.slopes
    means = torch.einsum("mde,me->md", covariances, tilted_shift)
    log_volume = torch.logdet(precision) - torch.logdet(tilted_precision)
    log_factor = 0.5 * (log_volume - (prior.means * shift).sum(-1) + (means * tilted_shift).sum(-1))
    log_weights = prior.log_weights.log_softmax(0) + log_factor - inverse_temperature * energy.constants
    symmetric = (covariances + covariances.transpose(-1, -2)) / 2
    return GaussianMixture(log_weights, means, symmetric), log_weights.logsumexp(0)


class ClosedForm:
    """Exact guided diffusion of a mixture: its methods stand where networks stand elsewhere.

    Args:
        prior: q.
        energy: E.
        inverse_temperature: beta, above 0.
        schedule: the forward process.

    Attributes:
        target: p ∝ q exp(-beta E), a mixture.
        log_normalizer: log Z.
    """

    def __init__(
        self, prior: GaussianMixture, energy: QuadraticEnergy, inverse_temperature: float, schedule: NoiseSchedule
    ) -> None:
        if not (inverse_temperature > 0.0 and math.isfinite(inverse_temperature)):
            raise ConfigError(f"inverse_temperature is {inverse_temperature}; expected a finite number above 0")
        self.prior = prior
        self.energy = energy
        self.inverse_temperature = inverse_temperature
        self.schedule = schedule
        self.target, self.log_normalizer = tilted(prior, energy, inverse_temperature)

    def noise(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The exact noise prediction -sigma_t ∇log q_t of the prior, of the shape of `x` (..., D), for `t` (...)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return -sigma.unsqueeze(-1) * self.prior.score(x, alpha, sigma)

    def logits(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """-E_t (...) at `x` (..., D) for `t` (...): what CEP learns, up to a constant of t."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return self.target.log_prob(x, alpha, sigma) - self.prior.log_prob(x, alpha, sigma) + self.log_normalizer

    def guidance(self, x: Tensor, t: Tensor) -> Tensor:
        """-∇E_t (..., D) at `x` (..., D) for `t` (...)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return self.target.score(x, alpha, sigma) - self.prior.score(x, alpha, sigma)

    def clean_energy(self, x: Tensor) -> Tensor:
        """E (...) as a function of `x` (..., D) alone: -log E[exp(-beta E) | x] / beta where it depends on a label."""
        log_ratio = self.target.log_prob(x) - self.prior.log_prob(x) + self.log_normalizer
        return -log_ratio / self.inverse_temperature


def problem(size: int, beta: float, components: int = 6, seed: int = 0) -> ClosedForm:
    """A random mixture in `size` dimensions with standard deviation 1/2; E = |x - c|², scaled to about [0, 1]."""
    draws = generator(seed, "mixture", size)
    normal = functools.partial(torch.randn, generator=draws, dtype=torch.float64)
    means = normal(components, size)
    axes = torch.linalg.qr(normal(components, size, size))[0]
    variances = 0.02 + 0.15 * torch.rand(components, size, generator=draws, dtype=torch.float64)
    covariances = axes @ torch.diag_embed(variances) @ axes.mT
    log_weights = (0.5 + torch.rand(components, generator=draws, dtype=torch.float64)).log()
    points = GaussianMixture(log_weights, means, covariances).sample(100_000, draws)[0]
    centre, scale = points.mean(0), 2.0 * points.std()
    prior = GaussianMixture(log_weights, (means - centre) / scale, covariances / scale**2)
    points, component = prior.sample(100_000, draws)
    energy = QuadraticEnergy.quadratic(0.5 * normal(size) / math.sqrt(size), 1.0)
    low, high = energy(points, component).quantile(torch.tensor([0.0, 0.95], dtype=torch.float64)).tolist()
    return ClosedForm(prior, energy.scaled(1.0 / (high - low), low), beta, LinearVP())


def exact_draws(exact: ClosedForm, samples: int) -> Callable[[int], Tensor]:
    """A function that draws the i-th of independent sets of `samples` points of the target."""

    @functools.cache
    def draw(index: int) -> Tensor:
        return exact.target.sample(samples, generator(0, "exact", index))[0]

    return draw
