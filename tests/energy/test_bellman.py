"""The softmax Bellman backup."""

from __future__ import annotations

import math

import pytest
import torch

from cepdiff.energy.bellman import bellman_target, expectile_loss, lower_bound, softmax_entropy, softmax_value

Q = torch.tensor([[1.0, 3.0, -2.0], [0.0, 0.0, 6.0]], dtype=torch.float64)


def test_softmax_value_by_hand() -> None:
    for beta in (0.3, 1.0, 2.5):
        expected = []
        for row in Q.tolist():
            weights = [math.exp(beta * q) for q in row]
            expected.append(sum(w * q for w, q in zip(weights, row, strict=True)) / sum(weights))
        assert softmax_value(Q, beta).tolist() == pytest.approx(expected)


def test_its_limits_are_the_mean_and_the_maximum() -> None:
    torch.testing.assert_close(softmax_value(Q, 0.0), Q.mean(-1))
    torch.testing.assert_close(softmax_value(Q, 1e4), Q.amax(-1))
    betas = torch.tensor([softmax_value(Q, beta)[0].item() for beta in (0.0, 0.1, 1.0, 10.0)])
    assert bool((betas.diff() > 0).all())


def test_it_survives_large_values_and_any_leading_axes() -> None:
    values = softmax_value(torch.tensor([[1e6, 1e6 - 1.0]]), 10.0)
    assert values.item() == pytest.approx(1e6)
    assert softmax_value(torch.zeros(2, 3, 4), 1.0).shape == (2, 3)
    assert softmax_value(torch.tensor([[5.0]]), 1.0).tolist() == [5.0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_terminals_stop_bootstrapping_and_nothing_else_does(dtype: torch.dtype) -> None:
    """A row cut by a time limit has terminal 0 and bootstraps from its next value, whatever its timeout flag."""
    rewards = torch.tensor([1.0, 2.0, 3.0])
    terminals = torch.tensor([0, 1, 0], dtype=dtype)
    target = bellman_target(rewards, terminals, torch.tensor([10.0, 20.0, -30.0]), 0.9)
    assert target.tolist() == pytest.approx([10.0, 2.0, -24.0])
    assert target.dtype == torch.float32


def test_entropy_by_hand_and_its_limits() -> None:
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    entropy = softmax_entropy(weights.log() / 2.0 + 7.0, 2.0)
    assert entropy.item() == pytest.approx(0.5 * math.log(2.0) + 0.5 * math.log(4.0))
    assert softmax_entropy(Q, 0.0).tolist() == pytest.approx([math.log(3.0)] * 2)
    assert softmax_entropy(Q, 1e4).tolist() == pytest.approx([0.0, 0.0])
    assert softmax_entropy(torch.tensor([[1e6, 0.0]]), 10.0).tolist() == [0.0]
    assert softmax_entropy(torch.zeros(2, 3, 4), 1.0).shape == (2, 3)


def test_lower_bounds_of_critics_by_hand() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0]])  # two critics, two actions
    assert lower_bound(values, None).tolist() == [1.0, 5.0]
    assert lower_bound(values, 0.0).tolist() == [2.0, 5.0]
    assert lower_bound(values, 2.0).tolist() == [0.0, 5.0]


@pytest.mark.parametrize(("expectile", "expected"), [(0.5, 2.5), (0.8, 22 / 7), (0.999, 4.0)])
def test_the_expectile_loss_is_least_at_the_expectile(expectile: float, expected: float) -> None:
    """Of the values 1, 2, 3, 4: their mean, 0.8-expectile (0.8 Σ above = 0.2 Σ below) and nearly their maximum."""
    q = torch.tensor([1.0, 2.0, 3.0, 4.0])
    grid = torch.linspace(0.0, 5.0, 5001)
    losses = torch.stack([expectile_loss(q - value, expectile) for value in grid])
    assert float(grid[losses.argmin()]) == pytest.approx(expected, abs=0.02)
