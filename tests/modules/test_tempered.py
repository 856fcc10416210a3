"""Energy networks that take the guidance scale: equal to plain ones at a single scale, exact at others."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from small_modules import A, K, S, fit, minibatch, tempered, tempered_batch
from torch import Tensor

from cepdiff.diffusion.guidance import logits_gradient
from cepdiff.diffusion.process import perturb
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.energy.objectives import CEP, DPS, MSE, EnergyObjective, ExponentialMSE
from cepdiff.errors import ConfigError
from cepdiff.modules.guidance import BatchEnergyGuidance, EnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.modules.tempered import TemperedBatchGuidance, scale_at
from cepdiff.networks.energy import EnergyMLP, ResidualEnergy
from cepdiff.networks.tempered import Tempered, at_scale, with_scale
from closed_form import ClosedForm, GaussianMixture, QuadraticEnergy

OBJECTIVES = (CEP, MSE, ExponentialMSE, DPS)


class Uncounted(RandomStream):
    """A step's noise without its first numbers, which drew the scales."""

    def __init__(self, *first: int) -> None:
        super().__init__(7, torch.device("cpu"))
        self._draw(False, first)


def network(lowest: float = 0.5, highest: float = 8.0, size: int = S) -> Tempered:
    torch.manual_seed(0)
    return Tempered(size, A, partial(EnergyMLP, hidden=[16, 16]), lowest, highest)


def logits_at(net: Tempered, scale: float, x: Tensor, t: Tensor, states: Tensor) -> Tensor:
    found: Tensor = net(x, t, with_scale(states, torch.full((len(x),), scale)))
    return found


@pytest.fixture
def points() -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(6, A, generator=draws), torch.rand(6, generator=draws), torch.randn(6, S, generator=draws)


def test_logits_vanish_in_proportion_to_a_small_scale(points: tuple[Tensor, Tensor, Tensor]) -> None:
    net = network()
    at_lowest = logits_at(net, 0.5, *points)
    for scale in (0.25, 0.01, 1e-6):
        torch.testing.assert_close(logits_at(net, scale, *points), at_lowest * scale / 0.5, rtol=1e-6, atol=0.0)
    x, t, states = points
    gradient = logits_gradient(at_scale(net, 0.0), x, t, states)
    assert torch.equal(gradient, torch.zeros_like(x))
    assert bool((logits_gradient(at_scale(net, 1.0), x, t, states) != 0).any())


def test_a_scale_above_the_highest_is_nan_and_refused(points: tuple[Tensor, Tensor, Tensor]) -> None:
    net = network()
    assert bool(logits_at(net, 8.0, *points).isfinite().all())
    assert bool(logits_at(net, 8.01, *points).isnan().all())
    net.check_scales([0.0, 0.1, 8.0])
    with pytest.raises(ConfigError, match=r"guidance scale 8\.5 is above 8, .* guidance\.highest_scale 8\.5"):
        net.check_scales([0.0, 8.5])


def test_an_impossible_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lowest_scale is 9, above guidance\.highest_scale 8; expected at most that"):
        network(lowest=9.0)
    with pytest.raises(ConfigError, match=r"guidance\.lowest_scale is 0; expected a number above 0"):
        tempered(lowest_scale=0)


def test_scales_are_log_uniform() -> None:
    net = network(0.5, 8.0)
    torch.testing.assert_close(scale_at(net, torch.tensor([0.0, 0.25, 0.5, 1.0])), torch.tensor([0.5, 1.0, 2.0, 8.0]))
    scales, module = [], tempered_batch(lowest_scale=0.5, highest_scale=8.0)
    for seed in range(400):
        scaled, condition = module.contrasts(torch.ones(K), RandomStream(seed, torch.device("cpu")))
        assert condition is not None
        assert torch.equal(scaled, condition.squeeze(-1).expand(3, K))
        scales.append(condition.flatten())
    levels = torch.stack(scales).log2()  # uniform in [-1, 3], at each of the times
    assert -1.0 <= float(levels.min()) < -0.9
    assert 2.9 < float(levels.max()) <= 3.0
    torch.testing.assert_close(levels.mean(0), torch.ones(3), atol=3 * 4 / math.sqrt(12 * 400), rtol=0.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("average_targets", [False, True])
def test_the_loss_at_one_scale_is_the_plain_loss(objective: type[EnergyObjective], average_targets: bool) -> None:
    """At scale 2 with beta 3 the loss is that of beta 6, for the same network with the scale as an input."""
    module = tempered(objective=objective(3.0), average_targets=average_targets, lowest_scale=2.0, highest_scale=2.0)
    batch = minibatch(module)
    loss, metrics = module.loss(batch, RandomStream(7, torch.device("cpu")))
    net = at_scale(module.net, 2.0)
    plain = EnergyGuidance(
        S, A, partial(EnergyMLP, hidden=[4]), objective=objective(6.0), average_targets=average_targets
    )
    plain.net = Wrapped(net)
    expected, expected_metrics = plain.loss(batch, Uncounted(len(batch["energies"]), 1))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(metrics, expected_metrics, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_of_a_batch_at_one_scale_is_the_plain_loss(objective: type[EnergyObjective]) -> None:
    module = tempered_batch(objective=objective(3.0), lowest_scale=2.0, highest_scale=2.0)
    batch = minibatch(module)
    loss, metrics = module.loss(batch, RandomStream(7, torch.device("cpu")))
    plain = BatchEnergyGuidance(0, A, partial(ResidualEnergy, width=4), None, objective(6.0), times_per_step=3)
    plain.net = Wrapped(at_scale(module.net, 2.0))
    expected, expected_metrics = plain.loss(batch, Uncounted(1, 1))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(metrics, expected_metrics, rtol=1e-5, atol=1e-6)


class Wrapped(torch.nn.Module):
    """A function as a network."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Tensor:
        found: Tensor = self.function(*inputs)
        return found


def test_beyond_the_trained_temperature_it_beats_the_multiplied_gradient() -> None:
    """A mixture in one dimension, whose exact gradients are known; beta 2, three times that, and a third of it."""
    prior = GaussianMixture(
        torch.zeros(3, dtype=torch.float64),
        torch.tensor([[-0.7], [0.0], [0.6]], dtype=torch.float64),
        torch.tensor([[[0.02]], [[0.03]], [[0.01]]], dtype=torch.float64),
    )
    energy = QuadraticEnergy.quadratic(torch.tensor([0.25], dtype=torch.float64), 2.0)
    samples, component = prior.sample(64 * 256, torch.Generator().manual_seed(0))
    batches = [
        {"samples": x.float(), "energies": energy(x, c).float()}
        for x, c in zip(samples.split(256), component.split(256), strict=True)
    ] * 8
    make = partial(ResidualEnergy, width=32, depth=1)
    options: dict[str, Any] = {
        "objective": CEP(2.0),
        "times_per_step": 4,
        "learning_rate": 1e-2,
        "ema_decay": 0.99,
    }
    torch.manual_seed(0)
    plain = BatchEnergyGuidance(0, 1, make, **options)
    module = TemperedBatchGuidance(0, 1, make, lowest_scale=0.3, highest_scale=4.0, **options)
    for trained in (plain, module):
        fit(trained, copy.copy(batches), max_steps=len(batches))

    def error(logits: Any, multiple: float, scale: float) -> float:
        exact = ClosedForm(prior, energy, 2.0 * scale, LinearVP())
        draws = torch.Generator().manual_seed(1)
        x0 = exact.target.sample(1000, draws)[0]
        t = 0.02 + 0.6 * torch.rand(1000, generator=draws, dtype=torch.float64)
        noise = torch.randn(x0.shape, generator=draws, dtype=torch.float64)
        x = perturb(exact.schedule, x0, t, noise)
        true, weight = exact.guidance(x, t), exact.schedule.sigma(t).unsqueeze(-1)
        found = multiple * logits_gradient(logits, x.float(), t.float(), None)
        return float((weight * (found - true)).abs().sum() / (weight * true).abs().sum())

    plain_net, net = plain.sampling_net, module.sampling_net
    assert error(plain_net, 1.0, 1.0) < 0.3
    for scale in (1.0, 3.0):
        assert error(at_scale(net, scale), 1.0, scale) < 0.3
    assert error(plain_net, 3.0, 3.0) > 2.0 * error(at_scale(net, 3.0), 1.0, 3.0)
