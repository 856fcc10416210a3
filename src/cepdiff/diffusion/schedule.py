"""Noise schedules: alpha_t, sigma_t and lambda_t = log(alpha_t / sigma_t) of x_t = alpha_t x_0 + sigma_t eps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor

from cepdiff.errors import ConfigError
from cepdiff.ranges import OpenUnit, Positive, Range, check_arguments


class NoiseSchedule(ABC):
    """A variance-preserving forward process; subclasses define `log_alpha` and the inverse of lambda_t.

    `t_min` in (0, 1) is the smallest diffusion time of training, and the time at which samplers end.
    """

    def __init__(self, t_min: OpenUnit = 1e-3) -> None:
        check_arguments(NoiseSchedule, locals(), "schedule")
        self.t_min = t_min

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t for diffusion times in (0, 1], of the shape of `t`."""

    @abstractmethod
    def inverse_lambda(self, lam: Tensor) -> Tensor:
        """The diffusion time t at which lambda_t equals `lam`, of the shape of `lam`."""

    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient alpha_t in (0, 1)."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient sigma_t = sqrt(1 - alpha_t²), without cancellation near t = 0."""
        return (-torch.expm1(2.0 * self.log_alpha(t))).sqrt()

    def lam(self, t: Tensor) -> Tensor:
        """Half log-SNR lambda_t = log(alpha_t / sigma_t), strictly decreasing in t."""
        return self.log_alpha(t) - self.sigma(t).log()

    def sample_times(self, uniform: Tensor, exponent: float = 1.0) -> Tensor:
        """Training times t_min + (1 - t_min) u^exponent in [t_min, 1) from uniform numbers u in [0, 1).

        Exponents above 1 favour small times, where the guidance gradient is steepest.
        """
        return self.t_min + (1.0 - self.t_min) * uniform**exponent


Rate = Annotated[float, Range(0, 300, "(]")]  # at higher rates alpha_1 underflows in float32


class LinearVP(NoiseSchedule):
    """VP-SDE with a linear beta(t) (Song et al. 2021, Eq. 32-33): log alpha_t = -(b1-b0)/4 t² - b0/2 t."""

    def __init__(self, beta_min: Rate = 0.1, beta_max: Rate = 20.0, t_min: OpenUnit = 1e-3) -> None:
        super().__init__(t_min)
        check_arguments(LinearVP, locals(), "schedule")
        if not beta_min < beta_max:
            raise ConfigError(f"schedule.beta_min is {beta_min}; expected less than beta_max, which is {beta_max}")
        self.beta_min = beta_min
        self.beta_max = beta_max

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def inverse_lambda(self, lam: Tensor) -> Tensor:
        # alpha² = sigmoid(2 lambda), so -2 log alpha = softplus(-2 lambda) = (b1-b0)/2 t² + b0 t.
        minus_2_log_alpha = torch.nn.functional.softplus(-2.0 * lam)
        slope = self.beta_max - self.beta_min
        # The root in the form without cancellation: 2c / (b + sqrt(b² + 2 a c)).
        root = (self.beta_min**2 + 2.0 * slope * minus_2_log_alpha).sqrt()
        return 2.0 * minus_2_log_alpha / (self.beta_min + root)


class CosineVP(NoiseSchedule):
    """Cosine schedule (Nichol & Dhariwal 2021): alpha_t = cos(pi/2 (t' + s)/(1 + s)) / cos(pi/2 s/(1 + s)).

    Times run over t' = t * t_max, which keeps alpha_1 above zero.
    """

    def __init__(self, offset: Positive = 0.008, t_max: OpenUnit = 0.995, t_min: OpenUnit = 1e-3) -> None:
        super().__init__(t_min)
        check_arguments(CosineVP, locals(), "schedule")
        self.offset = offset
        self.t_max = t_max
        self._log_cos_0 = math.log(math.cos(0.5 * math.pi * offset / (1.0 + offset)))

    def log_alpha(self, t: Tensor) -> Tensor:
        angle = 0.5 * math.pi * (t * self.t_max + self.offset) / (1.0 + self.offset)
        return angle.cos().log() - self._log_cos_0

    def inverse_lambda(self, lam: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.nn.functional.softplus(-2.0 * lam)
        angle = (log_alpha + self._log_cos_0).exp().acos()
        return (angle * 2.0 / math.pi * (1.0 + self.offset) - self.offset) / self.t_max
