"""Noise schedules against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from cepdiff.diffusion.schedule import CosineVP, LinearVP, NoiseSchedule
from cepdiff.errors import ConfigError

SCHEDULES = [
    LinearVP(),
    LinearVP(beta_min=0.5, beta_max=12.0, t_min=1e-4),
    CosineVP(),
    CosineVP(t_max=0.98, t_min=1e-4),
]
IDS = ["linear", "linear-other", "cosine", "cosine-other"]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)


def times(schedule: NoiseSchedule, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.logspace(math.log10(schedule.t_min), 0.0, 400, dtype=torch.float64).to(dtype)


def test_linear_is_the_integral_of_beta() -> None:
    schedule = LinearVP()
    t = torch.tensor([0.2, 1.0], dtype=torch.float64)
    ramp = torch.linspace(0.0, 1.0, 20001, dtype=torch.float64)
    for time, log_alpha in zip(t, schedule.log_alpha(t), strict=True):
        beta = 0.1 + (20.0 - 0.1) * ramp * time  # beta(t'), and log alpha = -1/2 times its integral over [0, t]
        assert log_alpha.item() == pytest.approx(-0.5 * float(torch.trapezoid(beta, ramp * time)), rel=1e-9)


def test_cosine_is_the_published_formula() -> None:
    schedule = CosineVP(offset=0.008, t_max=0.995)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    f = ((0.995 * t + 0.008) / 1.008 * math.pi / 2).cos() / math.cos(0.008 / 1.008 * math.pi / 2)
    torch.testing.assert_close(schedule.alpha(t), f)


@every_schedule
def test_variance_is_preserved(schedule: NoiseSchedule) -> None:
    t = times(schedule)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), atol=1e-14, rtol=0)


@every_schedule
def test_lambda_is_half_the_log_of_the_signal_to_noise_ratio_and_falls(schedule: NoiseSchedule) -> None:
    t = times(schedule)
    torch.testing.assert_close(schedule.lam(t), (schedule.alpha(t) / schedule.sigma(t)).log())
    assert bool((schedule.lam(t).diff() < 0).all())
    assert bool((schedule.alpha(t).diff() < 0).all())
    assert bool((schedule.sigma(t).diff() > 0).all())


@every_schedule
def test_inverse_lambda_is_the_inverse(schedule: NoiseSchedule) -> None:
    t = times(schedule)
    torch.testing.assert_close(schedule.inverse_lambda(schedule.lam(t)), t, rtol=1e-8, atol=0)
    lam = torch.linspace(-3.0, 4.0, 50, dtype=torch.float64)
    torch.testing.assert_close(schedule.lam(schedule.inverse_lambda(lam)), lam, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=IDS[:2])
def test_float32_keeps_its_digits_near_t_min(schedule: NoiseSchedule) -> None:
    t = times(schedule, torch.float32)
    for name in ("sigma", "lam", "alpha"):
        exact = getattr(schedule, name)(t.double())
        torch.testing.assert_close(getattr(schedule, name)(t).double(), exact, rtol=1e-6, atol=1e-6 * (name == "lam"))
    lam = schedule.lam(t.double())
    torch.testing.assert_close(schedule.inverse_lambda(lam.float()).double(), t.double(), rtol=1e-5, atol=0)


@every_schedule
def test_training_times_fill_the_range(schedule: NoiseSchedule) -> None:
    t = schedule.sample_times(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert t.tolist() == pytest.approx([schedule.t_min, (1.0 + schedule.t_min) / 2.0, 1.0])


@every_schedule
def test_an_exponent_above_one_favours_small_times(schedule: NoiseSchedule) -> None:
    """The share of times below t is (t - t_min)^(1/exponent): the median moves, the ends stay."""
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    for exponent in (0.5, 1.0, 1.5, 3.0):
        t = schedule.sample_times(uniform, exponent)
        assert schedule.t_min <= float(t.min()) <= float(t.max()) < 1.0
        unit = (t - schedule.t_min) / (1.0 - schedule.t_min)
        assert float((unit < 0.2).double().mean()) == pytest.approx(0.2 ** (1.0 / exponent), abs=1e-3)
    assert torch.equal(schedule.sample_times(uniform), schedule.sample_times(uniform, 1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearVP(t_min=0.0),
        lambda: LinearVP(t_min=1.0),
        lambda: LinearVP(beta_min=0.0),
        lambda: LinearVP(beta_min=3.0, beta_max=2.0),
        lambda: LinearVP(beta_min=float("nan")),
        lambda: CosineVP(t_max=1.0),
        lambda: CosineVP(offset=0.0),
    ],
)
def test_impossible_constants_are_refused(make) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make()
