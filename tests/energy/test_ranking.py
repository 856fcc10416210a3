"""Tests of a critic's ranking: exact values on small tensors, errors over episodes, and a process whose Q is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.regression import kendall_rank_corrcoef

from cepdiff.energy.ranking import (
    INTERVAL,
    Estimate,
    chance_spread,
    clustered_error,
    cross_fitted_residuals,
    fourier_features,
    rank_agreement,
    return_agreement,
    without_outliers,
)

DISCOUNT, WINDOW = 0.9, 20
# The process: each episode is of one of two policies, a = ±SHIFT + SPREAD noise; r = a + c(s) + noise, s drawn anew.
SHIFT, SPREAD = 0.5, 0.6
EPISODES, STEPS = 150, 60


def numbers(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Agreement of critics


def states_error(found: Estimate, action_size: int, pairs: int = 1) -> float:
    """The part of the error that is due to the states."""
    return math.sqrt(found.error**2 - chance_spread(action_size) ** 2 / pairs)


def test_agreement_by_hand() -> None:
    up, down, one_swap = [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [2.0, 1.0, 3.0, 4.0]
    q = torch.tensor([[up, up, up], [up, down, one_swap]])  # two critics, three states
    found = rank_agreement(q, torch.arange(3), 2)
    taus = torch.tensor([1.0, -1.0, 4 / 6])  # one of six pairs is in another order: (5 - 1) / 6
    assert found.value == pytest.approx(float(taus.mean()))
    assert states_error(found, 2) == pytest.approx(float(taus.std() / 3**0.5))
    assert rank_agreement(torch.tensor([[up], [[5.0] * 4]]), torch.zeros(1), 2).value == 0.0  # ties agree with nothing


def test_agreement_is_kendalls_tau_over_all_pairs_of_critics() -> None:
    q = torch.randn(4, 30, 7, generator=numbers(0))
    q[1:] += q[0]
    pairs = [(c, d) for c in range(4) for d in range(c)]
    taus = torch.stack([kendall_rank_corrcoef(q[c].T, q[d].T, variant="a") for c, d in pairs])
    found = rank_agreement(q, torch.arange(30), 9)
    assert found.value == pytest.approx(float(taus.mean()), abs=1e-6)
    assert states_error(found, 9, 6) == pytest.approx(float(taus.mean(0).std() / 30**0.5), abs=1e-6)
    assert found.above_chance
    assert rank_agreement(1000.0 * q + 7.0, torch.arange(30), 9) == found  # only the order counts


def test_noise_agrees_by_chance() -> None:
    """A state's tau of two independent critics has mean 0 and variance 2 (2K + 5) / (9K (K - 1))."""
    found = rank_agreement(torch.randn(2, 4000, 8, generator=numbers(0)), torch.arange(4000), 4)
    error = states_error(found, 4)
    assert error == pytest.approx((2 * 21 / (9 * 8 * 7) / 4000) ** 0.5, rel=0.05)
    assert abs(found.value) < 3 * error


@pytest.mark.parametrize(("action_size", "spread"), [(1, 1.0), (2, 3**-0.5), (3, (1 - 8 / math.pi**2) ** 0.5)])
def test_few_critics_agree_by_luck(action_size: int, spread: float) -> None:
    """Critics w·a with random directions w: for each draw tau is the same in all states, and often far from 0."""
    assert chance_spread(action_size) == pytest.approx(spread, rel=1e-3)
    actions = torch.randn(60, 12, action_size, generator=numbers(0))
    slopes = torch.randn(300, 3, action_size, generator=numbers(1))
    found = [rank_agreement((actions @ w.T).permute(2, 0, 1), torch.arange(60), action_size) for w in slopes]
    taus = torch.tensor([estimate.value for estimate in found])
    assert float(taus.std()) == pytest.approx(spread / 3**0.5, rel=0.15)  # three pairs of critics
    assert float(taus.mean()) == pytest.approx(0.0, abs=0.1)
    assert sum(estimate.above_chance for estimate in found) < 0.08 * len(found)


def test_an_estimate_tells_chance() -> None:
    assert Estimate(0.1, 0.1 / INTERVAL - 1e-6).above_chance
    assert not Estimate(0.1, 0.1 / INTERVAL + 1e-6).above_chance
    assert Estimate(-0.1, 0.05).below_chance
    assert not Estimate(-0.1, 0.06).below_chance
    assert not Estimate(0.0, 0.0).above_chance
    assert str(Estimate(0.1234, 0.02)) == "0.123 ± 0.020"


# Errors over episodes


def test_the_error_counts_episodes() -> None:
    influence = torch.tensor([1.0, -2.0, 3.0, -2.0])
    assert clustered_error(influence, torch.arange(4)) == pytest.approx(float(influence.std() / 2.0))
    # Sums (-1, 1) of two episodes: sqrt(2 (1 + 1)) / 4.
    assert clustered_error(influence, torch.tensor([7, 7, 3, 3])) == 0.5
    assert clustered_error(influence, torch.zeros(4)) == math.inf


def test_repeated_rows_of_an_episode_say_nothing_new() -> None:
    q, episodes = torch.randn(2, 50, 4, generator=numbers(1)), torch.arange(50) // 5
    features, values = torch.randn(50, 3, generator=numbers(2)), torch.randn(2, 50, generator=numbers(3))
    single = rank_agreement(q, episodes, 3), return_agreement(*values, features, episodes)

    def again(x: Tensor, axis: int = 0) -> Tensor:
        return x.repeat_interleave(9, axis)

    rows = again(values, 1), again(features), again(episodes)
    repeated = rank_agreement(again(q, 1), again(episodes), 3), return_agreement(*rows[0], *rows[1:])
    for once, often in zip(single, repeated, strict=True):
        assert often.value == pytest.approx(once.value, rel=1e-6)
        assert often.error == pytest.approx(once.error, rel=1e-6)


def test_errors_are_right_where_rows_of_an_episode_are_dependent() -> None:
    """Values that differ by episode more than by row: the estimate over its error is about standard normal."""
    draws = np.random.default_rng(0)
    episodes = torch.arange(40).repeat_interleave(15)
    scores = []
    for _ in range(200):
        a, g = (
            torch.from_numpy(draws.normal(size=(40, 1)) + 0.5 * draws.normal(size=(40, 15))).flatten() for _ in range(2)
        )
        found = return_agreement(a, g, torch.from_numpy(draws.normal(size=(600, 2))), episodes)
        scores.append(found.value / found.error)
    assert np.std(scores) == pytest.approx(1.08, abs=0.17)  # somewhat above 1 with 40 episodes
    assert np.mean(scores) == pytest.approx(0.0, abs=0.25)
    assert np.mean(np.abs(scores) > INTERVAL) < 0.12


# Agreement with returns


class Process:
    """Rows with known returns: states (N, 1), actions (N,), returns over `WINDOW` steps, episodes (N,)."""

    def __init__(self, seed: int = 0) -> None:
        draws = np.random.default_rng(seed)
        states = draws.uniform(-1.0, 1.0, (EPISODES, STEPS))
        policy = SHIFT * np.where(np.arange(EPISODES) % 3 == draws.integers(3), 2.0**0.5, -(0.5**0.5))[:, None]
        actions = policy + SPREAD * draws.normal(size=states.shape)
        rewards = actions + 2.0 * np.sin(5.0 * states) + draws.normal(size=states.shape)
        weights = DISCOUNT ** np.arange(WINDOW)
        windows = np.lib.stride_tricks.sliding_window_view(rewards, WINDOW, axis=1)
        rows = windows.shape[1]
        self.states = torch.from_numpy(states[:, :rows].reshape(-1, 1))
        self.actions = torch.from_numpy(actions[:, :rows].reshape(-1))
        self.returns = torch.from_numpy((windows @ weights).reshape(-1))
        self.episodes = torch.arange(EPISODES).repeat_interleave(rows)
        directions, phases = torch.randn(1, 30, generator=numbers(seed)), 6.28 * torch.rand(30, generator=numbers(seed))
        self.features = fourier_features(self.states, 4.0 * directions, phases)

    def agreement(self, advantages: Tensor) -> Estimate:
        return return_agreement(advantages, self.returns, self.features, self.episodes)


@pytest.fixture(scope="module")
def process() -> Process:
    return Process()


def exact_correlation() -> float:
    """Correlation of the advantage, a minus its mean, with the return; given the state, both have mean 0."""
    gammas = DISCOUNT ** np.arange(WINDOW)
    mixing, own = SHIFT**2, SPREAD**2  # variances of the policy's mean and of the action around it
    covariance = own + mixing * gammas.sum()
    later = np.square(gammas[1:]).sum() * 2.0 * (1.0 - math.sin(10.0) / 10.0)  # variance of 2 sin(5 s), s in [-1, 1]
    variance = mixing * gammas.sum() ** 2 + np.square(gammas).sum() * (own + 1.0) + later
    return float(covariance / math.sqrt((own + mixing) * variance))


def test_a_right_critic_a_random_one_and_a_reversed_one(process: Process) -> None:
    right = process.agreement(process.actions)
    assert right.value == pytest.approx(exact_correlation(), abs=3 * right.error)
    assert right.error < 0.04
    assert right.above_chance
    backwards = process.agreement(-process.actions)
    assert (backwards.value, backwards.error) == pytest.approx((-right.value, right.error))
    assert backwards.below_chance
    blind = process.agreement((300.0 * process.actions + 170.0 * process.states[:, 0]).sin())
    assert abs(blind.value) < INTERVAL * blind.error < 0.1


def test_what_the_state_predicts_is_no_evidence(process: Process) -> None:
    """Random advantages plus a function of the state on which the return depends too."""
    off = 2.0 * torch.sin(5.0 * process.states[:, 0]) + torch.randn(len(process.actions), generator=numbers(5))
    naive = torch.corrcoef(torch.stack([off, process.returns]))[0, 1]
    assert float(naive) > 0.15
    found = process.agreement(off)
    assert abs(found.value) < INTERVAL * found.error < 0.03
    constant = process.agreement(torch.zeros_like(off))
    assert (constant.value, constant.error) == (0.0, 0.0)


def test_each_half_is_predicted_by_the_other(process: Process) -> None:
    """Changing one half's values changes only the other half's predictions."""
    values = torch.stack([process.returns, process.actions], -1)
    before = cross_fitted_residuals(process.features, values, process.episodes)
    odd = process.episodes % 2 == 1
    changed = values + 5.0 * odd.unsqueeze(-1)
    after = cross_fitted_residuals(process.features, changed, process.episodes)
    assert torch.allclose(after[odd], before[odd] + 5.0)
    assert torch.allclose(after[~odd], before[~odd] - 5.0)
    rest = cross_fitted_residuals(process.features, process.features[:, :1], process.episodes)
    assert float(rest.abs().max()) < 0.05  # a linear function of the features is predicted, up to the ridge
    renamed = cross_fitted_residuals(process.features, values, 10 * process.episodes + 4)  # even numbers only
    assert torch.equal(renamed, before)
    nothing = cross_fitted_residuals(torch.ones(4, 2, dtype=torch.float64), values[:4], torch.arange(4))
    assert torch.allclose(nothing, values[:4] - values[:4].roll(1, 0).add(values[:4].roll(-1, 0)) / 2)


def test_a_few_outliers_do_not_decide(process: Process) -> None:
    right = process.agreement(process.actions)
    hurt = process.actions.clone()
    hurt[::500] = 30.0  # 40 standard deviations
    found = process.agreement(hurt)
    assert found.value == pytest.approx(right.value, abs=0.02)
    assert found.error < 1.1 * right.error
    clipped = without_outliers(torch.tensor([[-1.0], [0.0], [1.0], [2.0], [90.0]]))  # median 1, deviation 1
    assert torch.allclose(clipped, torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [3 * 1.4826]]))
    mostly = torch.tensor([[0.0], [0.0], [0.0], [7.0]])
    assert torch.equal(without_outliers(mostly), mostly)


def test_features_of_constant_and_scaled_dimensions() -> None:
    states, directions = torch.randn(20, 3, generator=numbers(0)), torch.randn(3, 4, generator=numbers(1))
    phases = torch.rand(4, generator=numbers(2))
    found = fourier_features(states, directions, phases)
    assert found.shape == (20, 7)
    assert torch.allclose(fourier_features(states * 10.0 + 3.0, directions, phases), found, atol=1e-5)
    states[:, 1] = 2.0
    flat = fourier_features(states, directions, phases)
    assert torch.equal(flat[:, 1], torch.zeros(20, dtype=torch.float64))
    assert bool(flat.isfinite().all())
