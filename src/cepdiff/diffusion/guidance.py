"""Energy guidance: the gradient of the intermediate energy, added to the noise prediction.

∇log p_t = ∇log q_t - ∇E_t (Lu et al. 2023, Eq. 8). Logits f are -E_t up to a constant, so the guided noise is
eps_pred - s sigma_t ∇f; guidance scale s = 1 is exact, other values are a knob.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.types import EnergyLogits, NoisePredictor, Predictor


def logits_gradient(logits: EnergyLogits, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """∇_x f(x_t, t, s), of the shape of `x` (..., A). Works under `torch.no_grad`, and detaches its result."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        t, condition = t.clone(), None if condition is None else condition.clone()  # inference tensors cannot be saved
        (gradient,) = torch.autograd.grad(logits(x, t, condition).sum(), x)
    return gradient


def predicted_data_logits(clean_logits: EnergyLogits, eps_net: NoisePredictor, schedule: NoiseSchedule) -> EnergyLogits:
    """Logits at x_t from logits at clean samples: f(x0_pred(x_t, t, s), t_min, s) (Chung et al. 2023, "DPS").

    Inexact: the energy of the mean is not -log of the mean of exp(-E). Its gradient runs through `eps_net`.
    """

    def logits(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        times = t.unsqueeze(-1)  # (...) -> (..., 1)
        x0_pred = (x - schedule.sigma(times) * eps_net(x, t, condition)) / schedule.alpha(times)
        return clean_logits(x0_pred, torch.full_like(t, schedule.t_min), condition)

    return logits


def guided_noise(
    eps_net: NoisePredictor,
    logits: EnergyLogits | None,
    schedule: NoiseSchedule,
    condition: Tensor | None,
    guidance_scale: Tensor | None,
    every_row: bool = False,
) -> Predictor:
    """A noise predictor (x_t, t) of the guided density, with a condition (B, S) and scale (B,) per row.

    The gradient is computed only for rows whose scale is not zero, and not at all if there are none, or `logits` or
    `guidance_scale` is None. With `every_row` it is computed for all, so that no shape depends on a value and the host
    never waits for the device; rows at scale zero ignore theirs, and leading axes broadcast. `t` is a scalar tensor.
    """
    if logits is None or guidance_scale is None:
        return lambda x, t: eps_net(x, t, condition)
    rows = None if every_row else guidance_scale.nonzero().squeeze(-1)  # (B,) -> rows with guidance
    if rows is None or len(rows) == len(guidance_scale):
        scale = guidance_scale.unsqueeze(-1)  # -> (B, 1)
        guided = scale != 0

        def predict_every(x: Tensor, t: Tensor) -> Tensor:
            shift = schedule.sigma(t) * scale * logits_gradient(logits, x, t, condition)
            return eps_net(x, t, condition) - shift.where(guided, 0.0)  # 0 times an infinite gradient would be NaN

        return predict_every
    if len(rows) == 0:
        return lambda x, t: eps_net(x, t, condition)
    some_scales = guidance_scale[rows].unsqueeze(-1)  # -> (rows, 1)
    some_conditions = None if condition is None else condition[rows]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        shift = -schedule.sigma(t) * some_scales * logits_gradient(logits, x[rows], t, some_conditions)
        return eps_net(x, t, condition).index_add(0, rows, shift)

    return predict
