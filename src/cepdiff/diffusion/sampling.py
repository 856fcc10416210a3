"""Guided sampling in one call: network, schedule, solver and guidance put together."""

from __future__ import annotations

from torch import Tensor

from cepdiff.diffusion.guidance import guided_noise
from cepdiff.diffusion.process import clamp_data, data_from_noise
from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.types import EnergyLogits, NoisePredictor


def sample_guided(
    eps_net: NoisePredictor,
    schedule: NoiseSchedule,
    solver: DPMSolver,
    condition: Tensor | None,
    noise: Tensor,
    *,
    logits: EnergyLogits | None = None,
    guidance_scale: Tensor | None = None,
    data_bound: float | None = None,
    guide_every_row: bool = False,
) -> Tensor:
    """Samples of p(x|s) ∝ q(x|s) exp(-scale beta E) of the shape of `noise` (..., A).

    Without guidance, or with `guide_every_row`, `condition` (..., S) and `guidance_scale` (...) broadcast against the
    leading axes of `noise`; otherwise all have one batch axis. Data predictions and the result are clamped to
    [-data_bound, data_bound] unless it is None. `guide_every_row` computes gradients at scale 0 too, for a fixed
    sequence of operators. Call under `torch.no_grad`.
    """
    predictor = guided_noise(eps_net, logits, schedule, condition, guidance_scale, guide_every_row)
    data_predictor = data_from_noise(schedule, predictor)
    if data_bound is None:
        return solver.sample(data_predictor, schedule, noise)
    samples = solver.sample(clamp_data(data_predictor, data_bound), schedule, noise)
    return samples.clamp(-data_bound, data_bound)
