"""DPM-Solver++ against a Gaussian with known score and known exact path of the diffusion ODE."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from cepdiff.diffusion.process import data_from_noise, data_from_score
from cepdiff.diffusion.schedule import CosineVP, LinearVP, NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver, time_grid
from cepdiff.errors import ConfigError

MEAN, STD = 0.6, 0.4
SPACINGS = ("time_uniform", "logsnr", "time_quadratic", "mixed")
METHODS = ("multistep", "singlestep")


def marginal(schedule: NoiseSchedule, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of x_t for x_0 ~ N(MEAN, STD²)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt()


def gaussian(schedule: NoiseSchedule):
    """The Gaussian's exact data predictor."""

    def score(x, t):
        mean, std = marginal(schedule, t)
        return -(x - mean) / std**2

    return data_from_score(schedule, score)


def exact_path(schedule: NoiseSchedule, noise: torch.Tensor, t: float) -> torch.Tensor:
    """x_t on the ODE path through `noise` at t = 1: in one dimension (x_t - mean_t) / std_t is constant."""
    mean_1, std_1 = marginal(schedule, torch.ones((), dtype=torch.float64))
    mean, std = marginal(schedule, torch.tensor(t, dtype=torch.float64))
    return mean + std * (noise - mean_1) / std_1


def noise_1d() -> torch.Tensor:
    return torch.linspace(-2.5, 2.5, 11, dtype=torch.float64).unsqueeze(-1)


def error(solver: DPMSolver, schedule: NoiseSchedule) -> float:
    noise = noise_1d()
    x = solver.sample(gaussian(schedule), schedule, noise)
    return float((x - exact_path(schedule, noise, schedule.t_min)).abs().max())


def count_calls(predictor):
    calls: list[torch.Tensor] = []

    def counting(x, t):
        calls.append(t)
        return predictor(x, t)

    return counting, calls


@pytest.mark.parametrize("schedule", [LinearVP(t_min=0.1), CosineVP(t_max=0.9, t_min=0.1)], ids=["linear", "cosine"])
def test_order_of_convergence(schedule: NoiseSchedule, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors fall as h^order; the table shows them.

    The path ends at t = 0.1: with the constants near t = 0 the asymptotic slope would need thousands of steps.
    """
    counts = (96, 192, 384)
    lines = [f"{type(schedule).__name__:<10} method      spacing         order  error at {counts}       slope"]
    failures = []
    for order, method, spacing in itertools.product((1, 2, 3), METHODS, SPACINGS):
        errors = [error(DPMSolver(n, order, method, spacing, lower_order_final=False), schedule) for n in counts]
        slope = math.log2(errors[-2] / errors[-1])
        values = "  ".join(f"{value:.1e}" for value in errors)
        lines.append(f"{'':<10} {method:<11} {spacing:<15} {order}      {values}  {slope:.2f}")
        slow = (order, method, spacing) == (3, "singlestep", "mixed")  # 2.77 here, and rising with the steps
        if not order - (0.25 if slow else 0.2) <= slope <= order + 0.3:
            failures.append(lines[-1])
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert not failures, failures


@pytest.mark.parametrize("method", METHODS)
def test_higher_orders_are_better_at_the_recipes_budget(method: str) -> None:
    errors = [error(DPMSolver(15, order, method, "logsnr"), LinearVP()) for order in (1, 2, 3)]
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[0] / 4
    assert errors[1] < 0.1


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize(("order", "method", "spacing"), [*itertools.product((1, 2, 3), METHODS, SPACINGS)])
def test_every_budget_is_spent_exactly(order: int, method: str, spacing: str, denoise: bool) -> None:
    schedule = LinearVP()
    for num_steps in (1, 2, 3, 4, 5, 7, 15):
        predictor, calls = count_calls(gaussian(schedule))
        solver = DPMSolver(num_steps, order, method, spacing, denoise_to_zero=denoise)
        x = solver.sample(predictor, schedule, noise_1d())
        assert len(calls) == num_steps + denoise
        assert all(t.shape == () and schedule.t_min * (1 - 1e-9) <= float(t) <= 1.0 for t in calls)
        assert bool(x.isfinite().all())


@pytest.mark.parametrize("spacing", SPACINGS[:3])
def test_grid(spacing: str) -> None:
    schedule = LinearVP()
    grid = time_grid(schedule, 10, spacing)
    ruler = {"time_uniform": lambda p: p.t, "logsnr": lambda p: p.lam, "time_quadratic": lambda p: math.sqrt(p.t)}
    ticks = torch.tensor([ruler[spacing](point) for point in grid], dtype=torch.float64)
    assert len(grid) == 11
    assert grid[0].t == 1.0
    assert grid[-1].t == pytest.approx(schedule.t_min, rel=1e-12)
    torch.testing.assert_close(ticks.diff(), ticks.diff().mean().expand(10))
    for point in grid:
        t = torch.tensor(point.t, dtype=torch.float64)
        assert point.alpha == pytest.approx(float(schedule.alpha(t)), rel=1e-9)
        assert point.sigma == pytest.approx(float(schedule.sigma(t)), rel=1e-9)


def test_mixed_times_are_geometric_means() -> None:
    schedule = LinearVP()
    mixed, logsnr, uniform = (time_grid(schedule, 10, spacing) for spacing in ("mixed", "logsnr", "time_uniform"))
    assert (mixed[0], mixed[-1]) == (logsnr[0], logsnr[-1])
    for point, one, other in zip(mixed, logsnr, uniform, strict=True):
        assert math.log(point.t) == pytest.approx(0.7 * math.log(one.t) + 0.3 * math.log(other.t), abs=1e-9)


@pytest.mark.parametrize(("order", "method"), [*itertools.product((1, 2, 3), METHODS)])
def test_the_callback_sees_every_grid_point(order: int, method: str) -> None:
    schedule, seen = LinearVP(), []
    solver = DPMSolver(48, order, method, "logsnr")
    result = solver.sample(gaussian(schedule), schedule, noise_1d(), callback=lambda t, x: seen.append((t, x)))
    times = [t for t, _ in seen]
    assert times == sorted(times, reverse=True)
    assert times[-1] == pytest.approx(schedule.t_min)
    assert len(times) == len(set(times)) >= 48 / order
    assert torch.equal(seen[-1][1], result)
    for t, x in seen:  # each of them lies on the path
        torch.testing.assert_close(x, exact_path(schedule, noise_1d(), t), rtol=0, atol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_denoising_to_zero_gives_the_data_prediction_of_the_last_point(method: str) -> None:
    schedule = LinearVP()
    plain = DPMSolver(15, 2, method).sample(gaussian(schedule), schedule, noise_1d())
    denoised = DPMSolver(15, 2, method, denoise_to_zero=True).sample(gaussian(schedule), schedule, noise_1d())
    expected = gaussian(schedule)(plain, torch.tensor(schedule.t_min, dtype=torch.float64))
    torch.testing.assert_close(denoised, expected, rtol=1e-9, atol=1e-12)
    assert not torch.equal(denoised, plain)


@pytest.mark.parametrize("method", METHODS)
def test_lower_order_final_is_a_first_order_last_step_of_multistep(method: str) -> None:
    schedule = LinearVP()
    steps = {
        final: DPMSolver(6, 2, method, lower_order_final=final).sample(gaussian(schedule), schedule, noise_1d())
        for final in (True, False)
    }
    assert torch.equal(steps[True], steps[False]) == (method == "singlestep")


def test_samples_are_a_function_of_the_noise_alone_in_every_dtype() -> None:
    schedule = LinearVP()
    predictor = data_from_noise(schedule, lambda x, t: 0.9 * x)
    noise = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    solver = DPMSolver()
    first, second = (solver.sample(predictor, schedule, noise) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float32
    assert first.shape == noise.shape
    exact = solver.sample(predictor, schedule, noise.double())
    torch.testing.assert_close(first.double(), exact, rtol=1e-4, atol=1e-4)
    row = solver.sample(predictor, schedule, noise[2:3])
    torch.testing.assert_close(row, first[2:3])


@pytest.mark.parametrize(
    "arguments", [{"num_steps": 0}, {"order": 4}, {"order": 0}, {"method": "euler"}, {"spacing": "karras"}]
)
def test_impossible_settings_are_refused(arguments) -> None:
    (name,) = arguments
    with pytest.raises(ConfigError, match=name):
        DPMSolver(**arguments)
