"""Stage 1: the behavior diffusion q(a|s)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cepdiff.diffusion.losses import denoising_loss, find_weighting
from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.modules.base import Noise, StageModule
from cepdiff.networks.score import ResidualUNet
from cepdiff.types import Batch, Metrics


class BehaviorDiffusion(StageModule):
    """Denoising diffusion of actions given observations (Lu et al. 2023, Sec. 4.1).

    Batches hold `observations` (B, S) and `actions` (B, A) in [-1, 1].

    Args:
        observation_size: S; 0 makes an unconditional model.
        action_size: A.
        net: `net(observation_size, action_size)` makes the noise predictor.
        schedule: the forward process; None is `LinearVP()`.
        weighting: of a time in the loss: "uniform" (the recipe), "min_snr" or "sigmoid", see `diffusion.losses`.
        options: those of `StageModule`: learning_rate, batch_size, lr_schedule, weight_decay, max_grad_norm, ema_decay.
    """

    stage = "behavior"
    batch_fields = ("observations", "actions")

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net: Callable[[int, int], nn.Module] = ResidualUNet,
        schedule: NoiseSchedule | None = None,
        weighting: str = "uniform",
        learning_rate: float = 1e-4,
        batch_size: int = 4096,
        **options: Any,
    ) -> None:
        super().__init__(net(observation_size, action_size), learning_rate, batch_size, **options)
        self.schedule = schedule or LinearVP()
        self.weighting = find_weighting(weighting)

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        actions = batch["actions"]
        t = self.schedule.sample_times(noise.uniform(len(actions)))
        eps = noise.normal(*actions.shape)
        return denoising_loss(self.net, self.schedule, actions, batch.get("observations"), t, eps, self.weighting)
