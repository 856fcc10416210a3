"""Denoising losses of the noise prediction; they differ only in the weight per time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cepdiff.diffusion.posterior import origin_posterior
from cepdiff.diffusion.process import perturb
from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.errors import ConfigError, nearest
from cepdiff.precision import float32_products
from cepdiff.types import Metrics, NoisePredictor


def uniform_weight(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """w_t = 1, the reference recipe (Ho et al. 2020, Eq. 14); `t` (B,) -> (B,)."""
    return torch.ones_like(t)


def min_snr_weight(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """w_t = min(SNR_t, 5) / SNR_t (Hang et al. 2023, Eq. 9 for noise prediction); `t` (B,) -> (B,)."""
    return (5.0 * (-2.0 * schedule.lam(t)).exp()).clamp(max=1.0)


def sigmoid_weight(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """w_t = sigmoid(2 - 2 lambda_t) (Kingma & Gao 2023, Sec. 5), which favours high noise; `t` (B,) -> (B,)."""
    return (2.0 - 2.0 * schedule.lam(t)).sigmoid()


WEIGHTINGS: dict[str, Callable[[NoiseSchedule, Tensor], Tensor]] = {
    "uniform": uniform_weight,
    "min_snr": min_snr_weight,
    "sigmoid": sigmoid_weight,
}


def find_weighting(name: str) -> Callable[[NoiseSchedule, Tensor], Tensor]:
    """Return the weighting of that name; raises ConfigError with the nearest names if there is none."""
    if name not in WEIGHTINGS:
        raise ConfigError(f"no noise weighting '{name}'; known: {', '.join(WEIGHTINGS)}.{nearest(name, WEIGHTINGS)}")
    return WEIGHTINGS[name]


def denoising_loss(
    net: NoisePredictor,
    schedule: NoiseSchedule,
    x0: Tensor,
    condition: Tensor | None,
    t: Tensor,
    eps: Tensor,
    weighting: Callable[[NoiseSchedule, Tensor], Tensor] = uniform_weight,
    sources: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Mean over the batch of w_t ||eps - eps_pred(x_t, t, s)||² (Lu et al. 2023, Eq. 6).

    `x0`, `eps` (B, A), `condition` (B, S), `t` (B,) in [t_min, 1]. With `sources` (K, A), samples of the same density
    that include `x0`, the target is the mean noise given x_t and them, see `diffusion.posterior`.
    """
    x = perturb(schedule, x0, t, eps)
    if sources is not None:
        with float32_products(x):
            mean_x0 = origin_posterior(schedule, x, sources, t) @ sources  # (B, K) (K, A) -> (B, A)
        # Written as a correction of eps, which avoids cancellation at small sigma_t.
        eps = eps + (schedule.alpha(t) / schedule.sigma(t)).unsqueeze(-1) * (x0 - mean_x0)
    eps_pred = net(x, t, condition)
    squared_error = (eps - eps_pred).square().sum(-1)  # (B, A) -> (B,)
    loss = (weighting(schedule, t) * squared_error).mean()
    return loss, {"loss": loss.detach(), "eps_mse": squared_error.detach().mean() / x0.shape[-1]}
