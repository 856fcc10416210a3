"""Resampled candidates against a density with a closed form."""

from __future__ import annotations

import pytest
import torch
from small_policy import normal
from torch import Tensor, nn

from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import CEP
from cepdiff.policy.resampling import Resampled
from cepdiff.policy.sampler import SamplerParts

BETA = 3.0
SPREAD, SLOPE = 0.15, 2.0
SCHEDULE = LinearVP()


class ExactNoise(nn.Module):
    """The noise prediction of q = N(0, SPREAD²)."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        return sigma * x / (alpha**2 * SPREAD**2 + sigma**2)


class ExactLogits(nn.Module):
    """-E_t of Q = SLOPE a."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        return (BETA * SLOPE * alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * x).sum(-1)


class Linear(nn.Module):
    """Q = SLOPE a, by two critics, of which the lower one is right."""

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        q = SLOPE * actions.sum(-1)
        return torch.stack([q + 1.0, q])


@pytest.mark.parametrize("c", [0.0, 1.0])
def test_many_candidates_give_the_tilted_density(c: float) -> None:
    """q exp(s beta Q) is N(s beta SLOPE SPREAD², SPREAD²)."""
    networks = {"behavior": ExactNoise(), "energy": ExactLogits(), "critic": Linear()}
    exact = SamplerParts(1, networks, SCHEDULE, DPMSolver(15), CEP(BETA))
    sampler = Resampled(exact, num_candidates=200, candidate_scale=c)
    noise = normal(2500, sampler.noise_size).double()
    for scale in (0.5, 1.5):
        found = sampler.sample(torch.empty(2500, 0).double(), noise, torch.full((2500,), scale).double())
        assert float(found.mean()) == pytest.approx(scale * BETA * SLOPE * SPREAD**2, abs=0.012)
        assert float(found.std()) == pytest.approx(SPREAD, rel=0.05)
