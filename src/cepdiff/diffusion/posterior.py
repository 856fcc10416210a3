"""Posterior over the clean samples that a noised one may have come from.

Let x_t be a noised version of one of K independent samples, chosen uniformly. Given x_t and all K, sample j was the one
with probability r_j ∝ N(x_t; alpha_t x_0^j, sigma_t² I). A training target that is a function of x_0 can therefore be
replaced by its mean under r without changing its expectation given x_t: the variance falls, and the optimum of a loss
that is linear in the target stays the same (Rao-Blackwell; for denoising, Xu et al. 2023, "Stable Target Field").
"""

from __future__ import annotations

from torch import Tensor

from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.precision import float32_products


def origin_posterior(schedule: NoiseSchedule, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """r (..., M, K): probability that noised `x` (..., M, A) came from each of K clean samples `x0` (..., K, A).

    `t` (..., M) or (..., 1) are the times of `x`; leading axes broadcast. Each `x` must come from one of `x0`.
    """
    t = t.unsqueeze(-1)  # (..., M) -> (..., M, 1)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    # -|x - alpha x0|² / 2 sigma² without |x|², which is the same for all K
    with float32_products(x):
        cross = (x / sigma) @ x0.transpose(-1, -2) * (alpha / sigma)
    return (cross - 0.5 * (alpha / sigma) ** 2 * x0.square().sum(-1).unsqueeze(-2)).softmax(-1)
