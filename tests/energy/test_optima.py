"""Each objective's optimum: over a table of logits in exact numbers, and for a small network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cepdiff.diffusion.guidance import logits_gradient
from cepdiff.energy.objectives import CEP, DPS, MSE, EnergyObjective, ExponentialMSE

# A discrete problem: x_0 has three values, x_t four; every expectation is a finite sum.
PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # q(x_0)
ENERGY = torch.tensor([0.0, 0.4, 1.3], dtype=torch.float64)  # E(x_0)
KERNEL = torch.tensor(  # p(x_t | x_0), rows sum to one
    [[0.6, 0.2, 0.1, 0.1], [0.1, 0.5, 0.3, 0.1], [0.1, 0.1, 0.2, 0.6]], dtype=torch.float64
)
TEMPERATURE = 2.0  # beta
JOINT = PRIOR.unsqueeze(-1) * KERNEL  # q(x_0, x_t), (3, 4)
POSTERIOR = JOINT / JOINT.sum(0)  # q(x_0 | x_t)
MINUS_E_T = ((-TEMPERATURE * ENERGY).exp() @ POSTERIOR).log()  # log E[exp(-beta E) | x_t], Lu et al. 2023, Eq. 8
MEAN_ENERGY = -TEMPERATURE * (ENERGY @ POSTERIOR)


def expected_loss(objective: EnergyObjective, logits: torch.Tensor, per_set: bool) -> torch.Tensor:
    """The mean loss over all sets of two independent pairs (x_0, x_t), weighted by probability; `logits` (4,)."""
    x0, xt = torch.cartesian_prod(torch.arange(3), torch.arange(4)).unbind(-1)  # the 12 pairs
    weight = JOINT.flatten()
    first, second = torch.cartesian_prod(torch.arange(12), torch.arange(12)).unbind(-1)  # the 144 sets
    sets = torch.stack([first, second], -1)  # (144, 2)
    targets = objective.targets(ENERGY[x0[sets]], per_set)
    losses = [objective.loss(logits[xt[pair]], target)[0] for pair, target in zip(sets, targets, strict=True)]
    return (weight[first] * weight[second]) @ torch.stack(losses)


def optimum(objective: EnergyObjective, per_set: bool) -> torch.Tensor:
    """The table of logits (4,) with the smallest expected loss."""
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = expected_loss(objective, logits, per_set)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach()


def test_cep_with_absolute_labels_finds_the_energy_exactly_even_with_two_samples() -> None:
    found = optimum(CEP(TEMPERATURE), per_set=False)
    torch.testing.assert_close(found - found[0], MINUS_E_T - MINUS_E_T[0], atol=1e-7, rtol=0)


def test_cep_with_labels_normalised_by_a_small_set_is_biased() -> None:
    """Two samples estimate the normaliser badly, so a batch of one density keeps absolute labels."""
    found = optimum(CEP(TEMPERATURE), per_set=True)
    assert float((found - found[0] - (MINUS_E_T - MINUS_E_T[0])).abs().max()) > 0.05


def test_exponential_mse_finds_the_energy_and_its_constant() -> None:
    torch.testing.assert_close(optimum(ExponentialMSE(TEMPERATURE), False), MINUS_E_T, atol=1e-7, rtol=0)


@pytest.mark.parametrize("objective", [MSE, DPS])
def test_mse_finds_the_posterior_mean_of_the_energy(objective: type[EnergyObjective]) -> None:
    torch.testing.assert_close(optimum(objective(TEMPERATURE), False), MEAN_ENERGY, atol=1e-7, rtol=0)
    assert float((MEAN_ENERGY - MINUS_E_T).abs().max()) > 0.1  # they differ


@pytest.mark.parametrize("objective", [CEP, MSE, ExponentialMSE])
def test_averaging_the_targets_leaves_the_optimum(objective: type[EnergyObjective]) -> None:
    """Replacing the target by its mean given x_t leaves the gradient of the loss unchanged everywhere."""
    logits = torch.tensor([0.3, -0.5, 0.1, -1.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(expected_loss(objective(TEMPERATURE), logits, False), logits)
    targets = objective(TEMPERATURE).targets(ENERGY, False) / (1.0 if objective is not CEP else 2.0 / 3.0)
    mean = targets @ POSTERIOR  # CEP divides by K: by 3 here, by 2 above
    weight = JOINT.sum(0)  # q(x_t)
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            pair = torch.tensor([i, j])
            loss = loss + weight[i] * weight[j] * objective(TEMPERATURE).loss(logits[pair], mean[pair])[0]
    (averaged,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(averaged, expected)


ALPHA, SIGMA, BETA = 0.6, 0.8, 4.0


def exact_gradient(x: torch.Tensor) -> torch.Tensor:
    """-∇E_t for x_0 = ±1 with equal probability and E(-1) = 0, E(1) = 1.

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
    return torch.linspace(-1.2, 1.2, 50).unsqueeze(-1)  # where q_t has most of its mass


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
    """Its gradient is that of -beta E[E(x_0) | x_t] = -beta w: the objective is biased, not the training."""
    x = grid().requires_grad_(True)
    (mean_energy,) = torch.autograd.grad((-BETA * (2.0 * ALPHA * x / SIGMA**2).sigmoid()).sum(), x)
    error = (learned_gradient(MSE(BETA)) - mean_energy).norm() / mean_energy.norm()
    assert float(error) < 0.1
