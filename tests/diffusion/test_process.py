"""The forward process, and conversions from every prediction to the data prediction and back."""

from __future__ import annotations

import pytest
import torch

from cepdiff.diffusion.process import (
    clamp_data,
    data_from_noise,
    data_from_score,
    noise_from_data,
    noise_from_velocity,
    perturb,
)
from cepdiff.diffusion.schedule import CosineVP, LinearVP, NoiseSchedule

SCHEDULES: list[NoiseSchedule] = [LinearVP(), CosineVP()]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_perturb_row_by_row(schedule: NoiseSchedule) -> None:
    x0, eps = normal(5, 3), normal(5, 3, seed=1)
    t = torch.tensor([0.001, 0.1, 0.4, 0.9, 1.0], dtype=torch.float64)
    x = perturb(schedule, x0, t, eps)
    for i in range(5):
        torch.testing.assert_close(x[i], schedule.alpha(t[i]) * x0[i] + schedule.sigma(t[i]) * eps[i])


def test_one_time_serves_k_samples() -> None:
    x0, eps, t = normal(4, 6, 2), normal(4, 6, 2, seed=1), torch.rand(4, 1, dtype=torch.float64)
    x = perturb(SCHEDULES[0], x0, t, eps)
    assert x.shape == (4, 6, 2)
    torch.testing.assert_close(x, perturb(SCHEDULES[0], x0, t.expand(4, 6), eps))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("time", [1e-3, 0.3, 1.0])
def test_noise_and_score_lead_back_to_the_data(schedule: NoiseSchedule, time: float) -> None:
    x0, eps, t = normal(7, 3), normal(7, 3, seed=1), torch.tensor(time, dtype=torch.float64)
    x = perturb(schedule, x0, t.expand(7), eps)
    from_noise = data_from_noise(schedule, lambda x, t: eps)
    from_score = data_from_score(schedule, lambda x, t: -eps / schedule.sigma(t))
    torch.testing.assert_close(from_noise(x, t), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(from_score(x, t), x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.linspace(0.01, 1.0, 7).unsqueeze(-1)], ids=["one", "rows"])
def test_velocity_and_data_lead_back_to_the_noise(schedule: NoiseSchedule, t: torch.Tensor) -> None:
    """v = alpha eps - sigma x_0; one time for all rows, and one per row."""
    x0, eps, t = normal(7, 3), normal(7, 3, seed=1), t.double()
    x = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
    velocity = schedule.alpha(t) * eps - schedule.sigma(t) * x0
    torch.testing.assert_close(noise_from_velocity(schedule, lambda x, t: velocity)(x, t), eps)
    torch.testing.assert_close(noise_from_data(schedule, lambda x, t: x0)(x, t), eps)


def test_the_score_adapter_is_tweedies_formula() -> None:
    """x_0 ~ N(m, v): the mean of x_0 given x_t is the textbook posterior mean."""
    schedule, mean, variance = LinearVP(), 0.7, 0.25
    t = torch.tensor(0.35, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = normal(9, 1)
    marginal = alpha**2 * variance + sigma**2
    posterior = mean + alpha * variance / marginal * (x - alpha * mean)
    predictor = data_from_score(schedule, lambda x, t: -(x - alpha * mean) / marginal)
    torch.testing.assert_close(predictor(x, t), posterior)


def test_clamp_leaves_what_lies_within() -> None:
    values = torch.tensor([[-3.0, -1.0, 0.5, 2.0]])
    clamped = clamp_data(lambda x, t: values, 1.0)(torch.zeros(1, 4), torch.tensor(0.5))
    assert clamped.tolist() == [[-1.0, -1.0, 0.5, 1.0]]
