"""Denoising losses against hand computation."""

from __future__ import annotations

import math

import pytest
import torch

from cepdiff.diffusion.losses import WEIGHTINGS, denoising_loss, find_weighting
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.errors import ConfigError

SCHEDULE = LinearVP()


def by_hand(name: str, t: float) -> float:
    """The weight of noise prediction at one time, in plain Python."""
    log_alpha = -0.25 * 19.9 * t * t - 0.05 * t
    alpha_2 = math.exp(2 * log_alpha)
    snr = alpha_2 / (1 - alpha_2)
    return {"uniform": 1.0, "min_snr": min(snr, 5.0) / snr, "sigmoid": 1 / (1 + math.exp(math.log(snr) - 2.0))}[name]


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weight_of_a_time(name: str) -> None:
    t = torch.tensor([0.001, 0.05, 0.2, 0.6, 1.0], dtype=torch.float64)
    weights = find_weighting(name)(SCHEDULE, t)
    assert weights.tolist() == pytest.approx([by_hand(name, float(time)) for time in t], rel=1e-9)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_loss_row_by_row(name: str) -> None:
    numbers = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 3, generator=numbers, dtype=torch.float64) for _ in range(2))
    condition = torch.randn(4, 2, generator=numbers, dtype=torch.float64)
    t = torch.tensor([0.01, 0.2, 0.5, 0.9], dtype=torch.float64)
    seen = []

    def net(x, time, s):
        seen.append((x, time, s))
        return 0.5 * x + time.unsqueeze(-1) + s.sum(-1, keepdim=True)

    loss, metrics = denoising_loss(net, SCHEDULE, x0, condition, t, eps, find_weighting(name))
    expected, squares = 0.0, 0.0
    for i in range(4):
        alpha = math.exp(-0.25 * 19.9 * float(t[i]) ** 2 - 0.05 * float(t[i]))
        sigma = math.sqrt(1 - alpha**2)
        row = 0.0
        for j in range(3):
            x = alpha * float(x0[i, j]) + sigma * float(eps[i, j])
            row += (float(eps[i, j]) - (0.5 * x + float(t[i]) + float(condition[i].sum()))) ** 2
        expected += by_hand(name, float(t[i])) * row / 4
        squares += row / 12
    assert float(loss) == pytest.approx(expected, rel=1e-9)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-9)
    assert float(metrics["eps_mse"]) == pytest.approx(squares, rel=1e-9)
    assert len(seen) == 1
    assert seen[0][2] is condition


def test_the_true_noise_costs_nothing_and_metrics_carry_no_graph() -> None:
    eps = torch.randn(3, 2, requires_grad=True)
    loss, metrics = denoising_loss(lambda x, t, s: eps, SCHEDULE, torch.zeros(3, 2), None, torch.rand(3), eps)
    assert loss.item() == 0.0
    assert loss.requires_grad
    assert not any(value.requires_grad for value in metrics.values())


def test_an_unknown_weighting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unifrom.*Did you mean uniform\?"):
        find_weighting("unifrom")
