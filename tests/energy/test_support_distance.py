"""Distances from the support: by hand, and calibrated on policies that are broad at some states, narrow at others."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from cepdiff.energy.support_distance import (
    RESOLUTION,
    held_out_distances,
    inside_support,
    inside_threshold,
    leave_one_out_distance,
    nearest_distance,
    relative_distance,
)
from cepdiff.errors import ConfigError

SUPPORT = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])  # (2, 3, 2)


class Gaussians:
    """Behavior policies N(mean, spread²) at `states` states with spreads between e^-3 and e^-0.7."""

    def __init__(self, states: int, action_size: int, seed: int = 0) -> None:
        self.numbers = torch.Generator().manual_seed(seed)
        self.size = action_size
        self.spread = torch.empty(states, 1, 1).uniform_(-3.0, -0.7, generator=self.numbers).exp()
        self.mean = torch.empty(states, 1, action_size).uniform_(-1.0, 1.0, generator=self.numbers)

    def draw(self, count: int, shift: float = 0.0, bound: float = 9.0) -> Tensor:
        """Actions (states, count, A), shifted by `shift` standard deviations along the diagonal, clipped to `bound`."""
        noise = torch.randn(len(self.mean), count, self.size, generator=self.numbers) + shift / math.sqrt(self.size)
        return (self.mean + self.spread * noise).clamp(-bound, bound)

    def thirds(self, values: Tensor) -> list[float]:
        """Means of `values` (states, ...) over the narrowest, middle and broadest third of the states."""
        order = self.spread.flatten().argsort()
        return [float(values[third].float().mean()) for third in order.tensor_split(3)]


def test_nearest_distance_by_hand() -> None:
    actions = torch.tensor([[[0.0, 0.25], [3.0, 0.0]], [[1.0, 1.0], [4.0, 5.0]]])
    assert nearest_distance(actions, SUPPORT).flatten().tolist() == pytest.approx([0.25, 3.0, 0.0, 5.0])
    assert nearest_distance(actions[0], SUPPORT[0]).tolist() == pytest.approx([0.25, 3.0])


def test_leave_one_out_distance_by_hand() -> None:
    expected = [1.0, math.sqrt(18.0), 1.0]
    assert leave_one_out_distance(SUPPORT).flatten().tolist() == pytest.approx([*expected, 0.0, 0.0, 0.0])


def test_relative_distance_is_in_units_of_the_states_spread() -> None:
    action = torch.tensor([[0.0, 3.0]])
    spread = (1.0 + math.sqrt(18.0) + 1.0) / 3 + RESOLUTION
    assert relative_distance(action, SUPPORT[0]).tolist() == pytest.approx([2.0 / spread])
    assert relative_distance(action, SUPPORT[0, :1]).tolist() == pytest.approx([3.0])  # a single action has no spread
    # A held-out action is scaled by the spread of the other actions only.
    held_out = held_out_distances(SUPPORT[0]).tolist()
    assert held_out == pytest.approx(
        [1.0 / (math.sqrt(18.0) + RESOLUTION), math.sqrt(18.0) / (1.0 + RESOLUTION), 1.0 / (5.0 + RESOLUTION)]
    )


def test_small_distances_do_not_cancel() -> None:
    support = (torch.rand(1, 40, 3, generator=torch.Generator().manual_seed(0)) + 100.0).double()
    assert nearest_distance(support + 1e-7, support).flatten().tolist() == pytest.approx([3**0.5 * 1e-7] * 40, rel=1e-3)


@pytest.mark.parametrize(("actions", "size"), [(16, 3), (16, 1), (8, 17), (4, 3), (3, 2)])
def test_a_fresh_action_is_inside_as_often_as_asked_at_broad_and_narrow_states(actions: int, size: int) -> None:
    policy = Gaussians(3000, size)
    support = policy.draw(actions)
    for quantile in (0.95, 0.8):
        threshold = inside_threshold(support, quantile)
        inside = inside_support(policy.draw(8), support, threshold)
        assert policy.thirds(inside) == pytest.approx([quantile] * 3, abs=0.02)


def test_it_stays_calibrated_on_clipped_actions() -> None:
    policy = Gaussians(4000, 3, seed=1)
    support = policy.draw(16, bound=0.8)
    inside = inside_support(policy.draw(8, bound=0.8), support, inside_threshold(support))
    assert float(inside.float().mean()) == pytest.approx(0.95, abs=0.01)


def test_simpler_rules_are_not_calibrated() -> None:
    """Why not simpler thresholds: a quantile of each state's own distances, or of pooled distances."""
    policy = Gaussians(3000, 3)
    support, fresh = policy.draw(16), policy.draw(8)
    own, distance = leave_one_out_distance(support), nearest_distance(fresh, support)
    assert float((distance <= own.quantile(0.95, -1, keepdim=True)).float().mean()) < 0.93
    narrow, _, broad = policy.thirds(distance <= own.flatten().quantile(0.95))
    assert narrow > 0.99
    assert broad < 0.9


def test_shifted_actions_are_found_outside_at_broad_and_narrow_states_alike() -> None:
    policy = Gaussians(2000, 3)
    support = policy.draw(16)
    threshold = inside_threshold(support)
    shares = [policy.thirds(inside_support(policy.draw(4, shift), support, threshold)) for shift in (0, 2, 4, 8)]
    for before, after in itertools.pairwise(shares):
        assert all(b > a for b, a in zip(before, after, strict=True))
    assert max(shares[2]) < 0.3
    assert max(shares[3]) < 0.01


def test_coinciding_actions_have_finite_distances() -> None:
    support = torch.ones(50, 8, 2)
    threshold = inside_threshold(support)
    assert float(threshold) == 0.0
    assert bool(inside_support(support[:, :1], support, threshold).all())
    assert not bool(inside_support(support[:, :1] - 0.1, support, threshold).any())


def test_one_support_action_is_refused() -> None:
    for function in (leave_one_out_distance, held_out_distances, inside_threshold):
        with pytest.raises(ConfigError, match="at least 2"):
            function(torch.zeros(5, 1, 2))
