"""DPM-Solver++ (Lu et al. 2022b, arXiv 2211.01095): the diffusion ODE in half log-SNR, by data prediction.

One step from lambda_s to lambda_t = lambda_s + h keeps the linear part exact,
x_t = (sigma_t / sigma_s) x_s + sigma_t ∫ e^lambda x0_pred(lambda) dlambda, and expands x0_pred to `order` terms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import torch
from torch import Tensor

from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.ranges import Range, check_arguments
from cepdiff.types import Predictor

Spacing = Literal["time_uniform", "logsnr", "time_quadratic", "mixed"]
MIXED_WEIGHT = 0.3  # of the uniform times; measured with few steps in 2 and 8 dimensions (docs/exactness.md)


@dataclass(frozen=True)
class Point:
    """One time of the grid: t, alpha_t, sigma_t and lambda_t as Python floats (computed in float64)."""

    t: float
    alpha: float
    sigma: float
    lam: float


# The data prediction at a point of the grid; a callback that gets (t, x_t) after each step.
PointPredictor = Callable[[Tensor, Point], Tensor]
StepCallback = Callable[[float, Tensor], None]


def grid_point(schedule: NoiseSchedule, t: Tensor) -> Point:
    """The schedule's coefficients at the float64 scalar `t`."""
    alpha, sigma, lam = schedule.alpha(t), schedule.sigma(t), schedule.lam(t)
    return Point(float(t), float(alpha), float(sigma), float(lam))


@lru_cache(maxsize=64)  # a policy asks at every step of an episode; a tracer must find Python floats
def time_grid(schedule: NoiseSchedule, num_steps: int, spacing: Spacing) -> tuple[Point, ...]:
    """`num_steps + 1` points from t = 1 down to `schedule.t_min`.

    Steps are equal in t ("time_uniform"), in lambda_t ("logsnr") or in sqrt(t) ("time_quadratic"). "mixed" times are
    geometric means of the first two, which shortens the steps at large t, where few "logsnr" steps are too long.
    """
    ends = torch.tensor([1.0, schedule.t_min], dtype=torch.float64)
    ramp = torch.linspace(0.0, 1.0, num_steps + 1, dtype=torch.float64)
    if spacing == "time_uniform":
        times = torch.lerp(ends[0], ends[1], ramp)
    elif spacing == "time_quadratic":
        times = torch.lerp(ends[0].sqrt(), ends[1].sqrt(), ramp).square()
    else:
        lams = schedule.lam(ends)
        times = schedule.inverse_lambda(torch.lerp(lams[0], lams[1], ramp))
        if spacing == "mixed":
            times = times ** (1.0 - MIXED_WEIGHT) * torch.lerp(ends[0], ends[1], ramp) ** MIXED_WEIGHT
        times[0], times[-1] = ends[0], ends[1]
    return tuple(grid_point(schedule, t) for t in times)


@lru_cache(maxsize=256)
def between(schedule: NoiseSchedule, s: Point, t: Point, fraction: float) -> Point:
    """The point at `fraction` of the way from s to t in lambda."""
    lam = torch.tensor(s.lam + fraction * (t.lam - s.lam), dtype=torch.float64)
    return grid_point(schedule, schedule.inverse_lambda(lam))


def first_order(x: Tensor, s: Point, t: Point, x0: Tensor) -> Tensor:
    """DPM-Solver++(1), which is DDIM: x_t of x_s and the data prediction at s (Eq. 9 with one term)."""
    phi_1 = math.expm1(s.lam - t.lam)
    return (t.sigma / s.sigma) * x - (t.alpha * phi_1) * x0


def multistep_second(x: Tensor, s: Point, t: Point, history: list[tuple[Point, Tensor]]) -> Tensor:
    """DPM-Solver++(2M) (Algorithm 2); `history` ends with (s, x0_pred at s) after the step before it."""
    (s1, x0_1), (_, x0) = history[-2:]
    r = (s.lam - s1.lam) / (t.lam - s.lam)
    return first_order(x, s, t, x0 + 0.5 * ((x0 - x0_1) / r))


def multistep_third(x: Tensor, s: Point, t: Point, history: list[tuple[Point, Tensor]]) -> Tensor:
    """DPM-Solver++(3M): backward differences over the last three data predictions.

    `second` is the divided difference, half the second derivative: hence the factor 2 of phi_3, without which (as in
    the reference implementation) the method is of second order.
    """
    (s2, x0_2), (s1, x0_1), (_, x0) = history[-3:]
    h = t.lam - s.lam
    r0, r1 = (s.lam - s1.lam) / h, (s1.lam - s2.lam) / h
    d_0, d_1 = (x0 - x0_1) / r0, (x0_1 - x0_2) / r1
    first = d_0 + r0 / (r0 + r1) * (d_0 - d_1)
    second = (d_0 - d_1) / (r0 + r1)
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / h + 1.0
    phi_3 = phi_2 / h - 0.5
    return first_order(x, s, t, x0) + (t.alpha * phi_2) * first - (2.0 * t.alpha * phi_3) * second


def singlestep_second(
    x: Tensor, s: Point, t: Point, predict: PointPredictor, middle: Point, x0: Tensor | None = None
) -> Tensor:
    """DPM-Solver++(2S) (Algorithm 1) with one point in the `middle` of s and t in lambda.

    2 evaluations, 1 where the data prediction `x0` at s is at hand.
    """
    x0 = predict(x, s) if x0 is None else x0
    r = (middle.lam - s.lam) / (t.lam - s.lam)
    x0_mid = predict(first_order(x, s, middle, x0), middle)
    return first_order(x, s, t, x0 + 0.5 / r * (x0_mid - x0))


def singlestep_third(x: Tensor, s: Point, t: Point, predict: PointPredictor, inner: tuple[Point, Point]) -> Tensor:
    """DPM-Solver++(3S) with two `inner` points between s and t in lambda; 3 evaluations."""
    first, second = inner
    h = t.lam - s.lam
    r1, r2 = (first.lam - s.lam) / h, (second.lam - s.lam) / h
    x0 = predict(x, s)
    x0_1 = predict(first_order(x, s, first, x0), first)
    phi_22 = math.expm1(-r2 * h) / (r2 * h) + 1.0
    x_2 = first_order(x, s, second, x0) + (second.alpha * phi_22 * r2 / r1) * (x0_1 - x0)
    x0_2 = predict(x_2, second)
    phi_2 = math.expm1(-h) / h + 1.0
    return first_order(x, s, t, x0) + (t.alpha * phi_2 / r2) * (x0_2 - x0)


class DPMSolver:
    """Samples x at t_min from noise at t = 1 with `num_steps` evaluations of a data predictor.

    Args:
        num_steps: network evaluations (NFE).
        order: of the method.
        method: "multistep" reuses earlier predictions, "singlestep" evaluates at points between; both spend
            `num_steps` evaluations (a singlestep grid ends with a shorter step where `order` does not divide it).
        spacing: see `time_grid`.
        lower_order_final: multistep only: first order into the last point, steadier with few steps.
        denoise_to_zero: one more evaluation at t_min, whose data prediction is the result.
    """

    def __init__(
        self,
        num_steps: Annotated[int, Range(1, 10_000, "[]")] = 15,
        order: Literal[1, 2, 3] = 2,
        method: Literal["multistep", "singlestep"] = "multistep",
        spacing: Spacing = "logsnr",
        lower_order_final: bool = True,
        denoise_to_zero: bool = False,
    ) -> None:
        check_arguments(DPMSolver, locals(), "solver")
        self.num_steps = num_steps
        self.order = order
        self.method = method
        self.spacing: Spacing = spacing
        self.lower_order_final = lower_order_final
        self.denoise_to_zero = denoise_to_zero

    def sample(
        self, data_predictor: Predictor, schedule: NoiseSchedule, noise: Tensor, callback: StepCallback | None = None
    ) -> Tensor:
        """A sample of the shape of `noise` (..., A), which is standard normal.

        `data_predictor(x_t, t)` is called with `t` as a scalar tensor. `callback(t, x_t)` sees each grid point.
        """

        def predict(x: Tensor, point: Point) -> Tensor:
            return data_predictor(x, torch.full((), point.t, dtype=x.dtype, device=x.device))

        solve = self._multistep if self.method == "multistep" else self._singlestep
        x, end = solve(predict, schedule, noise, callback)
        return predict(x, end) if self.denoise_to_zero else x

    def _multistep(
        self, predict: PointPredictor, schedule: NoiseSchedule, x: Tensor, callback: StepCallback | None
    ) -> tuple[Tensor, Point]:
        # A third-order method needs a start of second order, or its first step dominates the error: one interval
        # costs two evaluations.
        two_stage_start = self.order == 3 and self.num_steps >= 3
        num_intervals = self.num_steps - two_stage_start
        grid = time_grid(schedule, num_intervals, self.spacing)
        history: list[tuple[Point, Tensor]] = []
        for step, (s, t) in enumerate(itertools.pairwise(grid)):
            history = [*history, (s, predict(x, s))][-self.order :]
            order = min(self.order, len(history))
            if self.lower_order_final:
                order = min(order, num_intervals - step)
            if step == 0 and two_stage_start:
                x = singlestep_second(x, s, t, predict, between(schedule, s, t, 1 / 2), x0=history[0][1])
            elif order == 1:
                x = first_order(x, s, t, history[-1][1])
            elif order == 2:
                x = multistep_second(x, s, t, history)
            else:
                x = multistep_third(x, s, t, history)
            if callback is not None:
                callback(t.t, x)
        return x, grid[-1]

    def _singlestep(
        self, predict: PointPredictor, schedule: NoiseSchedule, x: Tensor, callback: StepCallback | None
    ) -> tuple[Tensor, Point]:
        # Whole steps of the full order, then one of what is left of the budget.
        whole, rest = divmod(self.num_steps, self.order)
        orders = [self.order] * whole + ([rest] if rest else [])
        grid = time_grid(schedule, len(orders), self.spacing)
        for order, s, t in zip(orders, grid[:-1], grid[1:], strict=True):
            if order == 1:
                x = first_order(x, s, t, predict(x, s))
            elif order == 2:
                x = singlestep_second(x, s, t, predict, between(schedule, s, t, 1 / 2))
            else:
                x = singlestep_third(x, s, t, predict, (between(schedule, s, t, 1 / 3), between(schedule, s, t, 2 / 3)))
            if callback is not None:
                callback(t.t, x)
        return x, grid[-1]
