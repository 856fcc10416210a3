"""Solvers with exact noise and exact guidance: the remaining error is only the solver's."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from cepdiff.diffusion.process import data_from_noise
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.distances import energy_distance, noise_floor
from cepdiff.randomness import generator
from closed_form import ClosedForm, GaussianMixture, QuadraticEnergy

BETA = 2.0


def ring(t_min: float = 1e-3) -> ClosedForm:
    """Eight Gaussians on a circle with label energies from 0 to 1."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4.0
    means = torch.stack([angle.cos(), angle.sin()], -1)
    covariances = 0.02 * torch.eye(2, dtype=torch.float64).expand(8, 2, 2)
    prior = GaussianMixture(torch.zeros(8, dtype=torch.float64), means, covariances.clone())
    energy = QuadraticEnergy.per_component(torch.linspace(1.0, 0.0, 8, dtype=torch.float64), 2)
    return ClosedForm(prior, energy, BETA, LinearVP(t_min=t_min))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def guided(case: ClosedForm, noise: Tensor, solver: DPMSolver, scale: float = 1.0) -> Tensor:
    with torch.no_grad():
        return sample_guided(
            case.noise,
            case.schedule,
            solver,
            None,
            noise,
            logits=case.logits,
            guidance_scale=torch.full((len(noise),), scale, dtype=torch.float64),
        )


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_samples_cannot_be_told_from_the_target(scale: float) -> None:
    """Guided samples against p, and at scale 0 against q: as close in energy distance as two exact samples."""
    case, n = ring(), 2000
    of = case.target if scale else case.prior
    samples = guided(case, normal(n, 2), DPMSolver(60, 2), scale)

    def exact(index: int) -> Tensor:
        return of.sample(n, generator(0, "exact", index))[0]

    floor = noise_floor(energy_distance, exact, repeats=4)
    distances = [float(energy_distance(samples, exact(index))) for index in range(8)]
    assert sum(distances) / 8 < 1.5 * floor.mean
    other = case.prior if scale else case.target
    assert float(energy_distance(samples, other.sample(n, generator(0, "other"))[0])) > 5.0 * floor.mean


@pytest.mark.parametrize("size", [1, 8, 32])
def test_samples_have_the_moments_of_the_target(size: int) -> None:
    """A Gaussian with a quadratic energy, in any dimension: mean and covariance within their errors.

    Starting at N(0, 1) instead of the diffused target costs less than these errors.
    """
    n, eye = 4000, torch.eye(size, dtype=torch.float64)
    root = 0.4 * normal(size, size, seed=1) / math.sqrt(size)
    prior = GaussianMixture(torch.zeros(1).double(), normal(1, size, seed=2), (root @ root.T + 0.1 * eye).unsqueeze(0))
    case = ClosedForm(prior, QuadraticEnergy.quadratic(prior.means[0] - 1.0, 1.5), BETA, LinearVP())
    samples = guided(case, normal(n, size), DPMSolver(60, 2))
    mean, covariance = case.target.means[0], case.target.covariances[0]
    spread = covariance.diagonal().sqrt()
    assert float(((samples.mean(0) - mean) / spread).abs().max()) < 4.5 / math.sqrt(n)
    error = (samples.T.cov().reshape(size, size) - covariance) / (spread.unsqueeze(-1) * spread)
    assert float(error.abs().max()) < 5.0 * math.sqrt(2.0 / n)
    assert float((prior.means[0] - mean).norm() / spread.mean()) > 0.5  # guidance has something to do


@pytest.mark.parametrize(
    ("order", "method", "spacing", "slope"),
    [
        (1, "multistep", "time_uniform", 0.8),
        (2, "multistep", "time_uniform", 1.7),
        (2, "singlestep", "time_uniform", 1.7),
        (2, "multistep", "logsnr", 1.7),
        (3, "singlestep", "logsnr", 2.4),
    ],
)
def test_error_falls_with_the_order_of_the_solver(order: int, method: str, spacing: str, slope: float) -> None:
    """Against the path of a very fine solver, for about 20 to 160 evaluations; guidance is part of the ODE.

    The median over the samples, because near the border between two components a path can be arbitrarily steep.
    """
    case, noise = ring(t_min=0.05), normal(201, 2)
    predictor = data_from_noise(
        case.schedule, lambda x, t: case.noise(x, t) - case.schedule.sigma(t) * case.guidance(x, t)
    )
    fine = DPMSolver(3000, 3, "singlestep", "logsnr").sample(predictor, case.schedule, noise)
    # Third-order steps take three evaluations each; a remainder of one would be a first-order step.
    counts = [(18 if order == 3 else 20) * 2**i for i in range(4)]
    errors = []
    for count in counts:
        samples = guided(case, noise, DPMSolver(count, order, method, spacing, lower_order_final=False))
        errors.append(float((samples - fine).norm(dim=-1).median()))
    print(f"{method} {order} {spacing}: median error at {counts} evaluations", [f"{error:.1e}" for error in errors])
    assert all(after < before for before, after in itertools.pairwise(errors))
    observed = math.log2(errors[0] / errors[-1]) / math.log2(counts[-1] / counts[0])
    assert observed > slope
