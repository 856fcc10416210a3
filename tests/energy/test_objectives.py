"""Objectives of the energy network: closed forms first, then what each of them learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cepdiff.diffusion.guidance import logits_gradient
from cepdiff.energy.objectives import (
    CEP,
    MSE,
    EnergyObjective,
    ExponentialMSE,
    cep_loss,
    effective_sample_size,
    exponential_mse_loss,
    mse_loss,
)
from cepdiff.errors import ConfigError

LOSSES = [cep_loss, mse_loss, exponential_mse_loss]
OBJECTIVES: list[type[EnergyObjective]] = [CEP, MSE, ExponentialMSE]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cep_by_hand() -> None:
    energies, logits = [1.0, 2.0, 4.0], [0.5, -1.0, 0.0]
    weights = [math.exp(-0.7 * energy) for energy in energies]
    labels = [weight / sum(weights) for weight in weights]
    normaliser = math.log(sum(math.exp(logit) for logit in logits))
    expected = -sum(label * (logit - normaliser) for label, logit in zip(labels, logits, strict=True))
    loss, metrics = cep_loss(torch.tensor([logits]).double(), torch.tensor([energies]).double(), 0.7)
    entropy = -sum(label * math.log(label) for label in labels)
    assert loss.item() == pytest.approx(expected)
    assert metrics["excess"].item() == pytest.approx(expected - entropy)
    assert metrics["label_ess"].item() == pytest.approx(1 / sum(label**2 for label in labels))


def test_cep_averages_over_rows() -> None:
    logits, energies = normal(5, 4), normal(5, 4, seed=1)
    rows = [cep_loss(logits[i : i + 1], energies[i : i + 1], 2.0) for i in range(5)]
    loss, metrics = cep_loss(logits, energies, 2.0)
    assert loss.item() == pytest.approx(sum(row.item() for row, _ in rows) / 5)
    for name in metrics:
        assert metrics[name].item() == pytest.approx(sum(row[name].item() for _, row in rows) / 5)


def test_cep_at_its_optimum_is_the_entropy_of_the_labels() -> None:
    """f = -beta E plus anything that depends on the row alone: no gradient, no excess."""
    energies, beta = normal(6, 5), 3.0
    logits = (-beta * energies + 10.0 * normal(6, 1, seed=1)).requires_grad_(True)
    loss, metrics = cep_loss(logits, energies, beta)
    labels = (-beta * energies).softmax(-1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(-(labels * labels.log()).sum(-1).mean().item())
    assert metrics["excess"].item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_cep_pushes_logits_towards_low_energies() -> None:
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    loss, _ = cep_loss(logits, torch.tensor([[0.0, 1.0]]).double(), 1.0)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]  # descent raises the logit of the low energy


def test_cep_does_not_see_a_rows_constant() -> None:
    logits, energies = normal(4, 3), normal(4, 3, seed=1)
    plain, _ = cep_loss(logits, energies, 2.0)
    moved, _ = cep_loss(logits + 7.0 * normal(4, 1, seed=2), energies + 5.0 * normal(4, 1, seed=3), 2.0)
    assert moved.item() == pytest.approx(plain.item())


def test_mse_by_hand() -> None:
    loss, _ = mse_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, -1.0]]), 0.5)
    assert loss.item() == pytest.approx(((1.0 + 1.0) ** 2 + (0.0 - 0.5) ** 2) / 2)


def test_exponential_mse_by_hand() -> None:
    loss, _ = exponential_mse_loss(torch.tensor([[0.0, -1.0]]), torch.tensor([[5.0, 7.0]]), 0.5)
    assert loss.item() == pytest.approx(((1 - 1) ** 2 + (math.exp(-1) - math.exp(-1)) ** 2) / 2, abs=1e-12)
    loss, _ = exponential_mse_loss(torch.tensor([[0.5, -1.0]]), torch.tensor([[7.0, 5.0]]), 0.5)
    assert loss.item() == pytest.approx(((math.exp(0.5) - math.exp(-1)) ** 2 + (math.exp(-1) - 1) ** 2) / 2)


@pytest.mark.parametrize("loss_of", [cep_loss, exponential_mse_loss])
@pytest.mark.parametrize("size", [1e4, 1e12])
def test_huge_energies_and_logits_stay_finite(loss_of, size: float) -> None:
    logits = (size * torch.tensor([[1.0, -1.0, 0.5]])).requires_grad_(True)
    for energies in (torch.tensor([[-1.0, 0.0, 1.0]]) * size, torch.full((1, 3), -size)):
        loss, metrics = loss_of(logits, energies, 3.0)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())
        assert all(bool(value.isfinite()) for value in metrics.values())


@pytest.mark.parametrize("loss_of", LOSSES)
def test_metrics_carry_no_graph_and_begin_with_the_loss(loss_of) -> None:
    loss, metrics = loss_of(torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), 1.0)
    assert loss.requires_grad
    assert not any(value.requires_grad for value in metrics.values())
    assert all(value.shape == () for value in metrics.values())
    assert metrics["loss"].item() == loss.item()


@pytest.mark.parametrize(("objective", "loss_of"), [*zip(OBJECTIVES, LOSSES, strict=True)])
def test_an_objective_passes_its_inverse_temperature(objective: type[EnergyObjective], loss_of) -> None:
    logits, energies = normal(4, 3), normal(4, 3, seed=1)
    loss, _ = objective(1.7)(logits, energies)
    assert loss.item() == loss_of(logits, energies, 1.7)[0].item()
    assert loss.item() != loss_of(logits, energies, 3.0)[0].item()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_temperature_is_refused(objective: type[EnergyObjective], beta: float) -> None:
    with pytest.raises(ConfigError, match=r"inverse_temperature is .*above 0"):
        objective(beta)


def test_cep_refuses_to_contrast_one_sample() -> None:
    with pytest.raises(ConfigError, match="K is 1, expected at least 2"):
        CEP()(torch.zeros(3, 1), torch.zeros(3, 1))


def test_effective_sample_size() -> None:
    energies = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 1e6, 1e6, 1e6], [0.0, 0.0, 1e6, 1e6]])
    assert effective_sample_size(energies, 2.0).tolist() == pytest.approx([4.0, 1.0, 2.0])


ALPHA, SIGMA, BETA = 0.6, 0.8, 4.0


def exact_gradient(x: torch.Tensor) -> torch.Tensor:
    """-∇E_t for x_0 = ±1 with equal odds and E(-1) = 0, E(1) = 1.

    With w(x_t) = P(x_0 = 1 | x_t) = sigmoid(2 alpha x_t / sigma²), -E_t = log(1 - w + w exp(-beta)).
    """
    x = x.detach().requires_grad_(True)
    w = (2.0 * ALPHA * x / SIGMA**2).sigmoid()
    (gradient,) = torch.autograd.grad((1.0 - w + w * math.exp(-BETA)).log().sum(), x)
    return gradient


def learned_gradient(objective: EnergyObjective) -> torch.Tensor:
    """∇f of a small network trained at one time, on the grid."""
    numbers = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        x0 = torch.randint(0, 2, (256, 16), generator=numbers) * 2.0 - 1.0
        x = ALPHA * x0 + SIGMA * torch.randn(256, 16, generator=numbers)
        loss, _ = objective(net(x.unsqueeze(-1)).squeeze(-1), (x0 + 1.0) / 2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return logits_gradient(lambda x, t, s: net(x).squeeze(-1), grid(), torch.tensor(0.5), None)


def grid() -> torch.Tensor:
    return torch.linspace(-1.2, 1.2, 50).unsqueeze(-1)  # where q_t has its mass


@pytest.mark.parametrize(
    ("objective", "low", "high"),
    [(CEP, 0.0, 0.1), (ExponentialMSE, 0.0, 0.25), (MSE, 0.3, math.inf)],
    ids=["cep", "e-mse", "mse"],
)
def test_cep_learns_the_exact_gradient_and_mse_does_not(
    objective: type[EnergyObjective], low: float, high: float
) -> None:
    exact = exact_gradient(grid())
    error = (learned_gradient(objective(BETA)) - exact).norm() / exact.norm()
    print(f"{objective.__name__}: relative error of the gradient {float(error):.3f}")
    assert low < float(error) < high


def test_what_mse_learns_instead_is_the_mean_energy() -> None:
    """Its gradient is that of -beta E[E(x_0) | x_t] = -beta w: the bias is of the objective, not of the training."""
    x = grid().requires_grad_(True)
    (mean_energy,) = torch.autograd.grad((-BETA * (2.0 * ALPHA * x / SIGMA**2).sigmoid()).sum(), x)
    error = (learned_gradient(MSE(BETA)) - mean_energy).norm() / mean_energy.norm()
    assert float(error) < 0.1
