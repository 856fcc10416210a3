"""Posterior over which clean sample a noised one came from: by hand, in its limits, and unbiased when averaged."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cepdiff.diffusion.losses import denoising_loss
from cepdiff.diffusion.posterior import origin_posterior
from cepdiff.diffusion.process import perturb
from cepdiff.diffusion.schedule import CosineVP, LinearVP

SCHEDULE = LinearVP()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64)


@pytest.mark.parametrize("t", [0.01, 0.3, 0.8])
def test_by_hand(t: float) -> None:
    """r_j ∝ N(x; alpha x_0^j, sigma²), number by number."""
    x0, x = normal(4, 3), perturb(SCHEDULE, normal(4, 3)[:2], times(t, 2), normal(2, 3, seed=1))
    alpha = math.exp(-0.25 * 19.9 * t * t - 0.05 * t)
    variance = 1.0 - alpha**2
    found = origin_posterior(SCHEDULE, x, x0, times(t, 2))
    assert found.shape == (2, 4)
    for m in range(2):
        exponents = [
            -sum((float(x[m, a]) - alpha * float(x0[j, a])) ** 2 for a in range(3)) / (2.0 * variance) for j in range(4)
        ]
        weights = [math.exp(exponent - max(exponents)) for exponent in exponents]
        assert found[m].tolist() == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-9, abs=1e-300)


def test_one_hot_at_small_times_and_uniform_at_t_1() -> None:
    for schedule in (SCHEDULE, CosineVP()):
        x0 = normal(16, 2)
        for dtype in (torch.float32, torch.float64):
            t = times(schedule.t_min, 16).to(dtype)
            x = perturb(schedule, x0.to(dtype), t, normal(16, 2, seed=1).to(dtype))
            found = origin_posterior(schedule, x, x0.to(dtype), t)
            assert found.diagonal().min() > 0.99
    end = times(1.0, 16)
    found = origin_posterior(SCHEDULE, perturb(SCHEDULE, x0, end, normal(16, 2, seed=1)), x0, end)
    torch.testing.assert_close(found, torch.full_like(found, 1 / 16), atol=5e-3, rtol=0)  # alpha_1 is 0.007


def test_equal_candidates_share_and_one_takes_all() -> None:
    x0 = torch.tensor([[0.3, 0.1], [0.3, 0.1], [5.0, 5.0]], dtype=torch.float64)
    x = perturb(SCHEDULE, x0[:1], times(0.05, 1), normal(1, 2))
    assert origin_posterior(SCHEDULE, x, x0, times(0.05, 1))[0].tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-9)
    assert origin_posterior(SCHEDULE, x, x0[:1], times(0.05, 1)).tolist() == [[1.0]]


def test_leading_axes_broadcast() -> None:
    """Sets of one state with one time each, and one set at several times, match set by set."""
    x0, t = normal(5, 4, 3), torch.rand(5, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = perturb(SCHEDULE, x0, t, normal(5, 4, 3, seed=2))
    together = origin_posterior(SCHEDULE, x, x0, t)
    assert together.shape == (5, 4, 4)
    torch.testing.assert_close(together.sum(-1), torch.ones(5, 4).double())
    for i in range(5):
        torch.testing.assert_close(together[i], origin_posterior(SCHEDULE, x[i], x0[i], t[i].expand(4)))
    one_set = perturb(SCHEDULE, x0[0], t, normal(5, 4, 3, seed=3))
    shared = origin_posterior(SCHEDULE, one_set, x0[0], t)
    for i in range(5):
        torch.testing.assert_close(shared[i], origin_posterior(SCHEDULE, one_set[i], x0[0], t[i]))


def test_far_away_samples_stay_finite() -> None:
    x0 = (1e3 * normal(8, 2)).float()
    t = times(1e-3, 8).float()
    found = origin_posterior(SCHEDULE, perturb(SCHEDULE, x0, t, normal(8, 2, seed=1).float()), x0, t)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, torch.eye(8))


# Rao-Blackwell: the mean stays, the variance drops

VALUES = torch.tensor([-1.0, 0.2, 1.0], dtype=torch.float64)  # a discrete prior in 1-D ...
CHANCES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
LABELS = torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)  # ... and a target that is a function of x_0


@pytest.mark.parametrize("t", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("size", [2, 5, 20])
def test_the_averaged_target_has_the_same_mean_given_x_t_and_less_variance(t: float, size: int) -> None:
    """In bins of x_t, over many batches: mean of the averaged target = E[target | x_t], within its standard error."""
    draws = torch.Generator().manual_seed(0)
    picks = torch.multinomial(CHANCES, 40_000 * size, replacement=True, generator=draws).reshape(-1, size)
    x0, time = VALUES[picks].unsqueeze(-1), times(t, 1, 1)  # (N, K, 1)
    eps = torch.randn(len(x0), 1, 1, generator=draws, dtype=torch.float64)
    x = perturb(SCHEDULE, x0[:, :1], time, eps)  # only the first of each batch is noised: (N, 1, 1)
    plain = LABELS[picks[:, 0]]
    averaged = (origin_posterior(SCHEDULE, x, x0, time) @ LABELS[picks].unsqueeze(-1)).flatten()

    x = x.flatten()
    alpha, sigma = SCHEDULE.alpha(times(t)), SCHEDULE.sigma(times(t))
    exact = (CHANCES.log() - 0.5 * ((x.unsqueeze(-1) - alpha * VALUES) / sigma) ** 2).softmax(-1) @ LABELS
    for low, high in ((-9.0, -1.0), (-1.0, -0.3), (-0.3, 0.3), (0.3, 1.0), (1.0, 9.0)):
        here = (x >= low) & (x < high)
        for target in (averaged, plain):
            error = (target - exact)[here]
            assert abs(float(error.mean())) < 4.5 * float(error.std()) / math.sqrt(len(error)) + 1e-9
    variances = [float((target - exact).square().mean()) for target in (averaged, plain)]
    assert variances[0] < variances[1] * (1.0 if size == 2 else 0.8)
    if size == 20:
        assert variances[0] < 0.25 * variances[1]


# The denoising loss with sources


def linear_net(weight: Tensor):
    """A noise predictor with two parameters."""
    return lambda x, t, s: weight[0] * x + weight[1] * t.unsqueeze(-1)


def test_a_source_alone_is_the_plain_loss() -> None:
    x0, t, eps = normal(1, 3), times(0.4, 1), normal(1, 3, seed=1)
    weight = torch.tensor([0.5, 0.2], dtype=torch.float64)
    plain, averaged = (
        denoising_loss(linear_net(weight), SCHEDULE, x0, None, t, eps, sources=sources)[0] for sources in (None, x0)
    )
    assert averaged.item() == pytest.approx(plain.item())


def test_sources_far_apart_are_the_plain_loss() -> None:
    """If each noised sample has only one possible source, nothing is averaged."""
    x0, t, eps = 100.0 * normal(6, 3), times(0.05, 6), normal(6, 3, seed=1)
    weight = torch.tensor([0.5, 0.2], dtype=torch.float64)
    plain, averaged = (
        denoising_loss(linear_net(weight), SCHEDULE, x0, None, t, eps, sources=sources) for sources in (None, x0)
    )
    assert averaged[0].item() == pytest.approx(plain[0].item())
    assert averaged[1]["eps_mse"].item() == pytest.approx(plain[1]["eps_mse"].item())


def test_the_noise_to_predict_is_the_mean_over_the_sources() -> None:
    """eps = Σ_j r_j (x_t - alpha x_0^j) / sigma costs nothing, and is the noise of the mean x_0."""
    x0, t, eps = normal(6, 3), torch.linspace(0.01, 0.9, 6, dtype=torch.float64), normal(6, 3, seed=1)
    x = perturb(SCHEDULE, x0, t, eps)
    alpha, sigma = SCHEDULE.alpha(t)[:, None, None], SCHEDULE.sigma(t)[:, None, None]
    each = (x.unsqueeze(1) - alpha * x0) / sigma  # (B, K, A): the noise if it came from source j
    mean = (origin_posterior(SCHEDULE, x, x0, t).unsqueeze(-1) * each).sum(1)
    loss, _ = denoising_loss(lambda x, t, s: mean, SCHEDULE, x0, None, t, eps, sources=x0)
    assert loss.item() == pytest.approx(0.0, abs=1e-18)
    assert denoising_loss(lambda x, t, s: mean, SCHEDULE, x0, None, t, eps)[0].item() > 0.1


def test_sources_leave_the_expected_gradient_and_take_away_variance() -> None:
    """Over many batches of 16, gradients with and without sources agree within the error of their difference."""
    weight = torch.tensor([0.5, 0.2], dtype=torch.float64, requires_grad=True)
    gradients: dict[bool, list[Tensor]] = {False: [], True: []}
    for seed in range(1500):
        draws = torch.Generator().manual_seed(seed)
        picks = torch.multinomial(CHANCES, 16, replacement=True, generator=draws)
        x0 = VALUES[picks].unsqueeze(-1)
        t = SCHEDULE.sample_times(torch.rand(16, generator=draws, dtype=torch.float64), 1.5)
        eps = torch.randn(16, 1, generator=draws, dtype=torch.float64)
        for averaged, found in gradients.items():
            sources = x0 if averaged else None
            loss, _ = denoising_loss(linear_net(weight), SCHEDULE, x0, None, t, eps, sources=sources)
            found.append(torch.autograd.grad(loss, weight)[0])
    plain, averaged = torch.stack(gradients[False]), torch.stack(gradients[True])
    difference = averaged - plain
    assert bool((difference.mean(0).abs() < 4.5 * difference.std(0) / math.sqrt(1500)).all())
    assert bool((difference.std(0) > 1e-3).all())  # but they are not identical
    assert bool((averaged.std(0) < 0.95 * plain.std(0)).any())
    assert bool((averaged.std(0) < 1.02 * plain.std(0)).all())


def test_float32_loses_nothing_at_t_min() -> None:
    """alpha / sigma is about 100 there, but nothing cancels when the target is a correction to eps."""
    x0, t, eps = normal(64, 2), times(SCHEDULE.t_min, 64), normal(64, 2, seed=1)

    def loss(dtype: torch.dtype) -> float:
        arguments = (x0.to(dtype), None, t.to(dtype), eps.to(dtype))
        return denoising_loss(lambda x, t, s: 0.5 * x, SCHEDULE, *arguments, sources=x0.to(dtype))[0].item()

    assert loss(torch.float32) == pytest.approx(loss(torch.float64), rel=1e-4)
