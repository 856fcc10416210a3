"""Exactly guided mixtures against independent numbers: quadrature, Monte Carlo, autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from cepdiff.diffusion.schedule import CosineVP, LinearVP
from cepdiff.errors import ConfigError
from closed_form import ClosedForm, GaussianMixture, QuadraticEnergy, tilted

SCHEDULE = LinearVP()
SIZES = (1, 2, 8, 32)
KINDS = ("linear", "quadratic", "labels")
BETA = 1.7
every_size = pytest.mark.parametrize("size", SIZES)
every_kind = pytest.mark.parametrize("kind", KINDS)


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(size: int, components: int = 3, seed: int = 0) -> GaussianMixture:
    """Components with different weights, means and full covariances."""
    draw = numbers(seed)
    root = 0.3 * torch.randn(components, size, size, generator=draw, dtype=torch.float64) / math.sqrt(size)
    covariances = root @ root.transpose(-1, -2) + 0.05 * torch.eye(size, dtype=torch.float64)
    means = torch.randn(components, size, generator=draw, dtype=torch.float64)
    return GaussianMixture(torch.randn(components, generator=draw, dtype=torch.float64), means, covariances)


def energy_of(kind: str, size: int, components: int = 3) -> QuadraticEnergy:
    ramp = torch.linspace(-0.5, 1.0, size, dtype=torch.float64) / math.sqrt(size)
    if kind == "linear":
        return QuadraticEnergy.linear(ramp)
    if kind == "quadratic":
        return QuadraticEnergy.quadratic(ramp, curvature=0.8)
    return QuadraticEnergy.per_component(torch.linspace(0.0, 1.5, components, dtype=torch.float64), size)


def exact(kind: str, size: int) -> ClosedForm:
    return ClosedForm(mixture(size), energy_of(kind, size), BETA, SCHEDULE)


def noised(case: ClosedForm, n: int, t: float, seed: int = 1) -> tuple[Tensor, Tensor]:
    """`n` points x_t (n, D) of the diffused prior, and their times (n,)."""
    draw = numbers(seed)
    x0, _ = case.prior.sample(n, draw)
    time = torch.full((n,), t, dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=draw, dtype=torch.float64)
    return SCHEDULE.alpha(time).unsqueeze(-1) * x0 + SCHEDULE.sigma(time).unsqueeze(-1) * eps, time


def distribution(prior: GaussianMixture) -> MixtureSameFamily:
    """The same mixture as a torch.distributions object."""
    return MixtureSameFamily(Categorical(logits=prior.log_weights), MultivariateNormal(prior.means, prior.covariances))


# The mixture


@every_size
def test_density_score_and_responsibilities_are_those_of_torch(size: int) -> None:
    prior = mixture(size)
    theirs = distribution(prior)
    x = (prior.sample(20, numbers(1))[0] * 1.5).requires_grad_(True)
    log_prob = theirs.log_prob(x)
    torch.testing.assert_close(prior.log_prob(x), log_prob)
    (score,) = torch.autograd.grad(log_prob.sum(), x)
    torch.testing.assert_close(prior.score(x), score)
    parts = theirs.component_distribution.log_prob(x.unsqueeze(1)) + prior.log_weights.log_softmax(0)
    torch.testing.assert_close(prior.responsibilities(x), parts.softmax(-1))


@every_size
def test_a_noised_mixture_is_the_mixture_of_the_noised_components(size: int) -> None:
    prior, alpha, sigma = mixture(size), 0.6, 0.8
    eye = torch.eye(size, dtype=torch.float64)
    after = GaussianMixture(prior.log_weights, alpha * prior.means, alpha**2 * prior.covariances + sigma**2 * eye)
    x = 2.0 * torch.randn(20, size, generator=numbers(), dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(x, alpha, sigma), after.log_prob(x))
    torch.testing.assert_close(prior.score(x, alpha, sigma), after.score(x))


def test_one_time_a_row_equals_row_by_row() -> None:
    prior, x = mixture(2), torch.randn(3, 4, 2, generator=numbers(), dtype=torch.float64)
    alpha, sigma = (torch.rand(3, 1, generator=numbers(s), dtype=torch.float64) for s in (1, 2))
    together, scores = prior.log_prob(x, alpha, sigma), prior.score(x, alpha, sigma)
    for i in range(3):
        coefficients = float(alpha[i, 0]), float(sigma[i, 0])
        torch.testing.assert_close(together[i], prior.log_prob(x[i], *coefficients))
        torch.testing.assert_close(scores[i], prior.score(x[i], *coefficients))


@pytest.mark.parametrize("size", [1, 2, 8])
def test_samples_have_the_moments_of_their_components(size: int) -> None:
    prior, n = mixture(size), 200_000
    points, component = prior.sample(n, numbers())
    weights = prior.log_weights.softmax(0)
    for i in range(3):
        here = points[component == i]
        assert len(here) / n == pytest.approx(float(weights[i]), abs=4.5 * math.sqrt(0.25 / n))
        spread = prior.covariances[i].diagonal().sqrt()
        assert bool(((here.mean(0) - prior.means[i]).abs() < 4.5 * spread / math.sqrt(len(here))).all())
        scale = spread.unsqueeze(-1) * spread
        deviation = (here.T.cov().reshape(size, size) - prior.covariances[i]) / scale
        assert float(deviation.abs().max()) < 4.5 * math.sqrt(2 / len(here))


# The energies


def test_energies_by_hand() -> None:
    x, component = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64), torch.tensor([1, 0])
    slope = torch.tensor([3.0, -1.0], dtype=torch.float64)
    assert QuadraticEnergy.linear(slope)(x, component).tolist() == [1.0, 1.0]
    assert QuadraticEnergy.quadratic(slope, 0.5)(x, component).tolist() == pytest.approx([0.25 * 13, 0.25 * 9])
    labels = QuadraticEnergy.per_component(torch.tensor([0.3, 0.7], dtype=torch.float64), 2)
    assert labels(x, component).tolist() == [0.7, 0.3]
    assert labels.scaled(2.0, shift=0.3)(x, component).tolist() == pytest.approx([0.8, 0.0])


# Tilting


@every_kind
@pytest.mark.parametrize("size", [1, 2, 8])
def test_the_tilted_mixture_has_the_moments_of_weighted_samples(kind: str, size: int) -> None:
    prior, energy, n = mixture(size), energy_of(kind, size), 400_000
    target, log_normalizer = tilted(prior, energy, BETA)
    x, component = prior.sample(n, numbers())
    weights = (-BETA * energy(x, component)).exp()
    error = float(weights.std() / weights.mean()) / math.sqrt(n)
    assert float(log_normalizer) == pytest.approx(float(weights.mean().log()), abs=4.5 * error)
    shares = target.log_weights.softmax(0)
    for i in range(3):
        here = weights * (component == i)
        std = float((here - shares[i] * weights).std() / weights.mean()) / math.sqrt(n)
        assert float(here.mean() / weights.mean()) == pytest.approx(float(shares[i]), abs=4.5 * std)
    mean = (shares.unsqueeze(-1) * target.means).sum(0)
    second = (shares[:, None, None] * (target.covariances + target.means[:, :, None] * target.means[:, None])).sum(0)
    for values, expected in ((x, mean), (x[:, :, None] * x[:, None], second)):
        w = weights.reshape(-1, *[1] * (values.ndim - 1))
        found = (w * values).mean(0) / weights.mean()
        std = (w * (values - expected)).std(0) / weights.mean() / math.sqrt(n)
        assert bool(((found - expected).abs() < 5.0 * std).all())


@every_kind
@every_size
def test_the_ratio_of_the_densities_is_the_weight(kind: str, size: int) -> None:
    """log p - log q + log Z = -beta E pointwise, for a point and its component if the energy is a label."""
    case = exact(kind, size)
    x, component = case.prior.sample(50, numbers())

    def joint(of: GaussianMixture) -> Tensor:
        parts = distribution(of).component_distribution.log_prob(x.unsqueeze(1))
        return (parts + of.log_weights.log_softmax(0)).gather(-1, component.unsqueeze(-1)).squeeze(-1)

    log_ratio = joint(case.target) - joint(case.prior) + case.log_normalizer
    torch.testing.assert_close(log_ratio, -BETA * case.energy(x, component), rtol=1e-9, atol=1e-9)
    if kind != "labels":
        torch.testing.assert_close(case.clean_energy(x), case.energy(x, component), rtol=1e-8, atol=1e-8)


def test_labels_change_the_weights_alone() -> None:
    case = exact("labels", 2)
    constants = case.energy.constants
    torch.testing.assert_close(case.target.means, case.prior.means)
    torch.testing.assert_close(case.target.covariances, case.prior.covariances)
    expected = (case.prior.log_weights - BETA * constants).softmax(0)
    torch.testing.assert_close(case.target.log_weights.softmax(0), expected)
    x = torch.randn(20, 2, generator=numbers(), dtype=torch.float64)
    mean_weight = case.prior.responsibilities(x) @ (-BETA * constants).exp()
    torch.testing.assert_close(case.clean_energy(x), -mean_weight.log() / BETA)


def test_a_constant_moves_the_normaliser_alone() -> None:
    prior, energy = mixture(2), energy_of("quadratic", 2)
    plain, moved = (ClosedForm(prior, e, BETA, SCHEDULE) for e in (energy, energy.scaled(1.0, shift=2.0)))
    x, t = noised(plain, 10, 0.3)
    torch.testing.assert_close(moved.log_normalizer, plain.log_normalizer + 2.0 * BETA)
    torch.testing.assert_close(moved.logits(x, t), plain.logits(x, t) + 2.0 * BETA)
    torch.testing.assert_close(moved.guidance(x, t), plain.guidance(x, t))


# The intermediate energy


@every_kind
@pytest.mark.parametrize("t", [0.02, 0.2, 0.5, 0.9])
def test_intermediate_energy_and_gradient_by_quadrature(kind: str, t: float) -> None:
    """E_t = -log ∫ q(x_0|x_t) exp(-beta E) dx_0 on a fine grid, and -∇E_t = alpha / sigma² (E_p - E_q)[x_0|x_t]."""
    case = exact(kind, 1)
    x, time = noised(case, 9, t)
    alpha, sigma = (float(f(time[0])) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    grid = torch.linspace(-8.0, 8.0, 40_001, dtype=torch.float64)  # x_0
    parts = distribution(case.prior).component_distribution.log_prob(grid[:, None, None].expand(-1, 3, 1))
    parts = parts + case.prior.log_weights.log_softmax(0)  # (G, 3): log of q(x_0, component)
    labels = torch.stack([case.energy(grid.unsqueeze(-1), torch.full((len(grid),), i)) for i in range(3)], -1)
    likelihood = -0.5 * ((x - alpha * grid) / sigma) ** 2  # (9, G)
    log_q, log_p = parts.logsumexp(-1) + likelihood, (parts - BETA * labels).logsumexp(-1) + likelihood
    log_mean = log_p.logsumexp(-1) - log_q.logsumexp(-1)
    torch.testing.assert_close(case.logits(x, time), log_mean, rtol=1e-9, atol=1e-9)
    gradient = alpha / sigma**2 * (log_p.softmax(-1) @ grid - log_q.softmax(-1) @ grid)
    torch.testing.assert_close(case.guidance(x, time).squeeze(-1), gradient, rtol=1e-7, atol=1e-9)


@every_kind
@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_intermediate_energy_by_monte_carlo(kind: str, size: int, t: float) -> None:
    """Prior samples weighted by their likelihood given x_t: mean of exp(-beta E), within its error."""
    case = exact(kind, size)
    x, time = noised(case, 6, t)
    x0, component = case.prior.sample(400_000, numbers(2))
    alpha, sigma = SCHEDULE.alpha(time[0]), SCHEDULE.sigma(time[0])
    likelihood = (-0.5 * torch.cdist(x, alpha * x0).square() / sigma**2).softmax(-1)  # (6, N)
    weights = (-BETA * case.energy(x0, component)).exp()
    mean = likelihood @ weights
    error = (likelihood.square() * (weights - mean.unsqueeze(-1)).square()).sum(-1).sqrt() / mean
    assert float(error.max()) < 0.2  # otherwise the estimate would be useless
    assert bool(((case.logits(x, time) - mean.log()).abs() < 4.5 * error + 1e-4).all())


@every_kind
@every_size
@pytest.mark.parametrize("t", [1e-3, 0.1, 0.5, 1.0])
def test_guidance_and_noise_are_gradients(kind: str, size: int, t: float) -> None:
    case = exact(kind, size)
    x, time = noised(case, 12, t)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(case.logits(x, time).sum(), x)
    torch.testing.assert_close(case.guidance(x, time), gradient, rtol=1e-8, atol=1e-8)
    alpha, sigma = SCHEDULE.alpha(time), SCHEDULE.sigma(time)
    (score,) = torch.autograd.grad(case.prior.log_prob(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(case.noise(x, time), -sigma.unsqueeze(-1) * score, rtol=1e-8, atol=1e-8)


@every_kind
def test_at_small_times_it_is_the_energy_and_at_large_ones_flat(kind: str) -> None:
    case = ClosedForm(mixture(2), energy_of(kind, 2), BETA, CosineVP(t_max=0.9999, t_min=1e-9))
    x, _ = case.prior.sample(30, numbers())
    start, end = torch.full((30,), 1e-7, dtype=torch.float64), torch.ones(30, dtype=torch.float64)
    torch.testing.assert_close(case.logits(x, start), -BETA * case.clean_energy(x), atol=1e-4, rtol=0)
    assert float(case.logits(x, end).std()) < 1e-3
    torch.testing.assert_close(case.logits(x, end), case.log_normalizer.expand(30), atol=2e-3, rtol=0)


def test_guidance_added_to_the_priors_score_is_the_targets() -> None:
    case = exact("quadratic", 8)
    x, t = noised(case, 20, 0.4)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    score = -case.noise(x, t) / sigma.unsqueeze(-1) + case.guidance(x, t)
    torch.testing.assert_close(score, case.target.score(x, alpha, sigma))


# Refusals


def test_a_density_that_cannot_be_normalised_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"inverse_temperature 3.*cannot be normalised"):
        tilted(mixture(2), QuadraticEnergy.quadratic(torch.zeros(2, dtype=torch.float64), curvature=-20.0), 3.0)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_temperature_is_refused(beta: float) -> None:
    with pytest.raises(ConfigError, match=r"inverse_temperature is .*above 0"):
        ClosedForm(mixture(2), energy_of("linear", 2), beta, SCHEDULE)


def test_shapes_that_do_not_fit_are_refused() -> None:
    means, eye = torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2)
    for weights, covariances in ((torch.zeros(2), eye), (torch.zeros(3), eye[:2]), (torch.zeros(3), eye[..., :1])):
        with pytest.raises(ConfigError, match=r"do not fit; expected \(M,\), \(M, D\) and \(M, D, D\)"):
            GaussianMixture(weights, means, covariances)


@pytest.mark.parametrize("entry", [0.0, -1.0])
def test_covariances_must_be_positive_definite(entry: float) -> None:
    covariance = torch.diag(torch.tensor([1.0, entry])).unsqueeze(0)
    with pytest.raises(ConfigError, match="not positive definite"):
        GaussianMixture(torch.zeros(1), torch.zeros(1, 2), covariance)
