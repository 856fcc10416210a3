"""The softmax Bellman backup."""

from __future__ import annotations

import math

import pytest
import torch

from cepdiff.energy.bellman import bellman_target, softmax_entropy, softmax_value

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
