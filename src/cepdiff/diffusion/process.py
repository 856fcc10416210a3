"""The forward process, and conversions between noise, score, data and velocity predictions.

Since x_t = alpha_t x_0 + sigma_t eps: x0_pred = (x_t - sigma_t eps_pred) / alpha_t, score = -eps / sigma_t. Solvers in
this package need a data prediction and networks are held as noise predictions; these adapters convert other ones.
"""

from __future__ import annotations

from torch import Tensor

from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.types import Predictor


def perturb(schedule: NoiseSchedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t (..., A) of data `x0` (..., A) at times `t` (...) with standard normal `eps` (..., A).

    Leading axes broadcast, so one time may serve K samples.
    """
    t = t.unsqueeze(-1)  # (...) -> (..., 1)
    return schedule.alpha(t) * x0 + schedule.sigma(t) * eps


def data_from_noise(schedule: NoiseSchedule, eps_predictor: Predictor) -> Predictor:
    """Data predictor x0_pred(x_t, t) from a noise predictor eps_pred(x_t, t); `t` is a scalar tensor."""
    return lambda x, t: (x - schedule.sigma(t) * eps_predictor(x, t)) / schedule.alpha(t)


def data_from_score(schedule: NoiseSchedule, score: Predictor) -> Predictor:
    """Data predictor from a score, by Tweedie's formula: x0_pred = (x_t + sigma_t² score) / alpha_t."""
    return lambda x, t: (x + schedule.sigma(t) ** 2 * score(x, t)) / schedule.alpha(t)


def noise_from_velocity(schedule: NoiseSchedule, v_predictor: Predictor) -> Predictor:
    """Noise predictor from a predictor of the velocity v = alpha_t eps - sigma_t x_0 (Salimans & Ho 2022, App. D).

    eps_pred = alpha_t v_pred + sigma_t x_t; `t` broadcasts against `x`.
    """
    return lambda x, t: schedule.alpha(t) * v_predictor(x, t) + schedule.sigma(t) * x


def noise_from_data(schedule: NoiseSchedule, x0_predictor: Predictor) -> Predictor:
    """Noise predictor from a data predictor, the inverse of `data_from_noise`; `t` broadcasts against `x`."""
    return lambda x, t: (x - schedule.alpha(t) * x0_predictor(x, t)) / schedule.sigma(t)


def clamp_data(predictor: Predictor, bound: float) -> Predictor:
    """A data predictor whose output is clamped to [-bound, bound].

    If the data are within the bounds, this does not change the exact model, because x0_pred is the mean of the (guided)
    data given x_t, which is in their convex hull; it removes a learned model's error beyond them.
    """
    return lambda x, t: predictor(x, t).clamp(-bound, bound)
