"""Timesteps of a discrete process for given diffusion times, matched by log-SNR.

A network trained on a variance-preserving process with N steps gets the noise level as a timestep k in 0..N-1, where
x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) eps. It works for any other variance-preserving process: at equal half log-SNR
lambda both have the same alpha and sigma (Kingma et al. 2021, "Variational Diffusion Models", Sec. 5.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.errors import ConfigError
from cepdiff.networks.images.library import image_library

# Timestep of t = 1 without a discrete process: UNet2DModel's sinusoids are made for numbers up to about this.
TIMESTEPS_PER_UNIT = 1000.0
# Keys of a scheduler's config that describe the process; the others are about sampling.
PROCESS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


def scaled_times(t: Tensor) -> Tensor:
    """Timesteps of networks trained from scratch, of the shape of `t` in (0, 1]."""
    return t * TIMESTEPS_PER_UNIT


def alphas_cumprod(scheduler: Mapping[str, Any], where: str) -> Tensor:
    """abar (N,) of the discrete process that a diffusers scheduler's config describes; messages start with `where`.

    Raises:
        ConfigError: the scheduler has no betas (not a variance-preserving process) or invalid values.
        MissingExtraError: diffusers is not installed.
    """
    if not ({"beta_schedule", "trained_betas"} & scheduler.keys()):
        name = scheduler.get("_class_name", "the scheduler")
        raise ConfigError(f"{where}: {name} has no beta_schedule; expected a discrete variance-preserving process")
    process = {name: scheduler[name] for name in PROCESS if name in scheduler}
    try:
        return torch.as_tensor(image_library().DDPMScheduler(**process).alphas_cumprod)
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}: cannot build a discrete process from {process} ({error})") from error


class MatchedTimesteps(nn.Module):
    """Timesteps of a discrete process for the times of `schedule`, by equal half log-SNR.

    The process is described by `alphas_cumprod`, its abar (N,), decreasing in (0, 1). Between its steps, lambda is
    interpolated linearly; times outside them get the first or last step. A last step without any signal (zero terminal
    SNR) has no lambda and is dropped.
    """

    lambdas: Tensor

    def __init__(self, alphas_cumprod: Tensor, schedule: NoiseSchedule) -> None:
        super().__init__()
        lambdas = 0.5 * torch.logit(alphas_cumprod.double())
        if lambdas[-1] == -torch.inf:
            lambdas = lambdas[:-1]
        if len(lambdas) < 2 or not bool(lambdas.isfinite().all() and (lambdas.diff() < 0.0).all()):
            raise ConfigError("the scheduler's alphas_cumprod must decrease from step to step, between 1 and 0")
        self.schedule = schedule
        # Not saved with the weights: they follow from the arguments.
        self.register_buffer("lambdas", lambdas.flip(0).float(), persistent=False)  # increasing, step N-1 first
        self.first_time, self.last_time = schedule.inverse_lambda(lambdas[[0, -1]]).tolist()

    def within(self, t: Tensor) -> Tensor:
        """Clamp `t` to the times that the process covers."""
        return t.clamp(self.first_time, self.last_time)

    def forward(self, t: Tensor) -> Tensor:
        """Fractional timesteps in [0, N-1], of the shape of `t`."""
        lam = self.schedule.lam(t).to(self.lambdas.dtype).contiguous()
        above = torch.searchsorted(self.lambdas, lam).clamp(1, len(self.lambdas) - 1)
        low, high = self.lambdas[above - 1], self.lambdas[above]
        position = above - 1 + ((lam - low) / (high - low)).clamp(0.0, 1.0)
        return len(self.lambdas) - 1 - position
