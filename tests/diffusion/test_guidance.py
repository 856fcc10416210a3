"""Energy guidance: its gradient, its cost, and that guided samples have the guided density."""

from __future__ import annotations

import pytest
import torch

from cepdiff.diffusion.guidance import guided_noise, logits_gradient, predicted_data_logits
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver

SCHEDULE = LinearVP()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits(x, t, condition):
    """A smooth function of all arguments that broadcasts like an energy network."""
    return (x.sin() * (1.0 + t.unsqueeze(-1)) * condition.sum(-1, keepdim=True)).sum(-1) + x.prod(-1)


def eps_net(x, t, condition):
    return 0.3 * x + t + condition.mean(-1, keepdim=True)


class Counting:
    """Records the number of rows of each call."""

    def __init__(self, function) -> None:
        self.function = function
        self.rows: list[int] = []

    def __call__(self, x, t, condition):
        self.rows.append(len(x))
        return self.function(x, t, condition)


def test_gradient_against_finite_differences() -> None:
    x, t, condition, step = normal(5, 3), torch.tensor(0.4, dtype=torch.float64), normal(5, 2, seed=1), 1e-5
    gradient = logits_gradient(logits, x, t, condition)
    for j in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[j]
        difference = (logits(x + shift, t, condition) - logits(x - shift, t, condition)) / (2 * step)
        torch.testing.assert_close(gradient[:, j], difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_gradient_works_in_every_mode_and_leaves_no_graph(mode) -> None:
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    x = torch.randn(4, 2, requires_grad=True)
    with mode():
        gradient = logits_gradient(lambda x, t, s: (x * weight).sum(-1), x, torch.tensor(0.5), None)
    assert gradient.tolist() == [[1.0, -2.0]] * 4
    assert not gradient.requires_grad
    assert x.grad is None
    assert weight.grad is None


def test_guided_noise_is_the_formula() -> None:
    x, condition, scale = normal(4, 3), normal(4, 2, seed=1), torch.tensor([1.0, 0.5, 3.0, 2.0], dtype=torch.float64)
    t = torch.tensor(0.3, dtype=torch.float64)
    eps = guided_noise(eps_net, logits, SCHEDULE, condition, scale)(x, t)
    gradient = logits_gradient(logits, x, t, condition)
    expected = eps_net(x, t, condition) - scale.unsqueeze(-1) * SCHEDULE.sigma(t) * gradient
    torch.testing.assert_close(eps, expected)


def test_a_higher_logit_draws_the_sample_towards_it() -> None:
    """The sign: logits x_1 + x_2 (an energy that falls along both axes) move samples up."""
    noise = normal(50, 2)
    samples = {
        s: sample_guided(
            lambda x, t, c: x * 0.9,
            SCHEDULE,
            DPMSolver(),
            None,
            noise,
            logits=lambda x, t, c: x.sum(-1),
            guidance_scale=torch.full((50,), s, dtype=torch.float64),
        )
        for s in (0.0, 1.0)
    }
    assert bool((samples[1.0] > samples[0.0]).all())


def test_mixed_scales_equal_separate_calls_and_scale_0_costs_nothing() -> None:
    noise, condition = normal(6, 3), normal(6, 2, seed=1)
    scales = torch.tensor([0.0, 1.0, 0.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    counting, solver = Counting(logits), DPMSolver(7)

    def sample(rows, scale):
        return sample_guided(
            eps_net, SCHEDULE, solver, condition[rows], noise[rows], logits=counting, guidance_scale=scale
        )

    with torch.no_grad():
        together = sample(slice(None), scales)
        assert counting.rows == [3] * 7
        for value in (0.0, 1.0, 3.0):
            counting.rows.clear()
            rows = scales == value
            alone = sample(rows, scales[rows])
            torch.testing.assert_close(together[rows], alone)
            assert counting.rows == ([] if value == 0.0 else [int(rows.sum())] * 7)
        plain = sample_guided(eps_net, SCHEDULE, solver, condition, noise)
        assert torch.equal(together[scales == 0], plain[scales == 0])


def test_an_infinite_gradient_does_not_reach_rows_at_scale_0() -> None:
    """0 times infinity is NaN, so a fixed sequence of operators must not add the product."""
    noise, condition = normal(4, 3), normal(4, 2, seed=1)
    scales = torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.float64)

    def steep(x, t, condition):
        return x.sum(-1) * torch.inf

    found = guided_noise(eps_net, steep, SCHEDULE, condition, scales, every_row=True)(noise, torch.tensor(0.5))
    plain = eps_net(noise, torch.tensor(0.5), condition)
    assert torch.equal(found[::2], plain[::2])
    assert not found[1::2].isfinite().any()


def test_without_an_energy_the_scale_is_ignored() -> None:
    noise, condition = normal(3, 2), normal(3, 2, seed=1)
    plain = sample_guided(eps_net, SCHEDULE, DPMSolver(), condition, noise)
    scaled = sample_guided(eps_net, SCHEDULE, DPMSolver(), condition, noise, guidance_scale=torch.ones(3))
    assert torch.equal(plain, scaled)


def test_one_condition_serves_k_samples_without_guidance() -> None:
    noise, condition = normal(4, 5, 3), normal(4, 1, 2, seed=1)
    shared = sample_guided(eps_net, SCHEDULE, DPMSolver(), condition, noise)
    expanded = sample_guided(eps_net, SCHEDULE, DPMSolver(), condition.expand(4, 5, 2), noise)
    assert shared.shape == (4, 5, 3)
    torch.testing.assert_close(shared, expanded)


@pytest.mark.parametrize("denoise_to_zero", [False, True])
def test_data_predictions_and_samples_stay_within_the_bound(denoise_to_zero: bool) -> None:
    """eps_pred = -x would predict data far outside; the samples lie inside, some of them on the bound."""
    noise = normal(200, 2)
    solver = DPMSolver(10, denoise_to_zero=denoise_to_zero)
    free = sample_guided(lambda x, t, c: -x, SCHEDULE, solver, None, noise)
    bound = sample_guided(lambda x, t, c: -x, SCHEDULE, solver, None, noise, data_bound=0.5)
    assert float(free.abs().max()) > 1.0
    assert float(bound.abs().max()) == 0.5


def test_a_bound_that_nothing_reaches_changes_nothing() -> None:
    noise = normal(200, 2)
    free = sample_guided(lambda x, t, c: 0.99 * x, SCHEDULE, DPMSolver(), None, noise)
    bound = sample_guided(lambda x, t, c: 0.99 * x, SCHEDULE, DPMSolver(), None, noise, data_bound=100.0)
    assert torch.equal(free, bound)


# The predicted clean sample (DPS)


def nonlinear_eps_net(x, t, condition):
    return (x @ torch.tensor([[0.5, -0.2], [0.1, 0.8]], dtype=x.dtype) + t.unsqueeze(-1)).tanh()


def clean_logits(x, t, condition):
    """Curved in x, and dependent on the time of the query."""
    return -x.square().sum(-1) + x.prod(-1) + 10.0 * t


def test_predicted_data_logits_by_hand() -> None:
    x, t, condition = normal(5, 2), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).double(), normal(5, 3, seed=1)
    seen = []

    def remembering(x, t, condition):
        seen.append((x, t, condition))
        return clean_logits(x, t, condition)

    found = predicted_data_logits(remembering, nonlinear_eps_net, SCHEDULE)(x, t, condition)
    for i in range(5):
        alpha, sigma = SCHEDULE.alpha(t[i]), SCHEDULE.sigma(t[i])
        x0 = (x[i] - sigma * nonlinear_eps_net(x[i], t[i], None)) / alpha
        torch.testing.assert_close(found[i], clean_logits(x0, torch.tensor(SCHEDULE.t_min).double(), None))
    ((_, times, passed),) = seen
    assert times.tolist() == [SCHEDULE.t_min] * 5
    assert passed is condition


@pytest.mark.parametrize("t", [0.01, 0.4, 0.9])
def test_gradient_through_the_noise_predictor_against_finite_differences(t: float) -> None:
    x, time, step = normal(6, 2), torch.tensor(t, dtype=torch.float64), 1e-6
    logits = predicted_data_logits(clean_logits, nonlinear_eps_net, SCHEDULE)
    gradient = logits_gradient(logits, x, time, None)
    for j in range(2):
        shift = step * torch.eye(2, dtype=torch.float64)[j]
        difference = (logits(x + shift, time, None) - logits(x - shift, time, None)) / (2 * step)
        torch.testing.assert_close(gradient[:, j], difference, rtol=1e-5, atol=1e-6)


def test_the_energy_of_the_predicted_sample_is_not_the_intermediate_energy() -> None:
    """q = N(0, 1), E = x² / 2: the curvature of -E_t allows for the spread of x_0 given x_t; that of DPS does not.

    x_0 given x_t is N(alpha x_t, sigma²), so -E_t = -beta alpha² x_t² / (2 (1 + beta sigma²)) + const.
    """
    beta, x, t = 2.0, normal(7, 1), torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    logits = predicted_data_logits(
        lambda x, t, s: -0.5 * beta * x.square().sum(-1), lambda x, t, s: SCHEDULE.sigma(t) * x, SCHEDULE
    )
    gradient = logits_gradient(logits, x, t, None)
    torch.testing.assert_close(gradient, -beta * alpha**2 * x)
    exact = -beta * alpha**2 * x / (1.0 + beta * sigma**2)
    assert float((gradient / exact).min()) > 1.5


# Exactness

MEAN, STD, BETA = 0.3, 0.5, 1.5


def gaussian_eps(x, t, condition):
    """The exact noise prediction for x_0 ~ N(MEAN, STD²)."""
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def linear_logits(x, t, condition):
    """The exact -E_t of E(x) = x: -E_t = log E[exp(-beta x_0) | x_t] = -beta m(x_t) + beta² v_t / 2 with the posterior
    mean m and variance v_t of x_0."""
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    variance = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
    mean = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
    return (-BETA * mean + BETA**2 * variance / 2).sum(-1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("method", ["multistep", "singlestep"])
def test_guided_sampling_is_exact(scale: float, method: str) -> None:
    """q = N(m, s²) and E(x) = x give p ∝ q exp(-beta E) = N(m - beta s², s²) at t_min.

    Noise at the quantiles of N(0, 1) makes the sample mean and deviation free of sampling error. (For a linear energy
    a scale s is exact too: it is the energy s x.)
    """
    noise = torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).unsqueeze(-1)
    with torch.no_grad():
        samples = sample_guided(
            gaussian_eps,
            SCHEDULE,
            DPMSolver(60, 2, method),
            None,
            noise,
            logits=linear_logits,
            guidance_scale=torch.full((2000,), scale, dtype=torch.float64),
        )
    assert float(samples.mean()) == pytest.approx(MEAN - scale * BETA * STD**2, abs=0.01)
    assert float(samples.std()) == pytest.approx(STD, abs=0.01)
