"""Stage 1: the behavior diffusion q(a|s)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cepdiff.diffusion.losses import denoising_loss, find_weighting
from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.errors import ConfigError
from cepdiff.modules.base import StageModule
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.score import ResidualUNet
from cepdiff.ranges import Count, Positive
from cepdiff.types import Batch, Metrics


class BehaviorDiffusion(StageModule):
    """Denoising diffusion of actions given observations (Lu et al. 2023, Sec. 4.1).

    Batches hold `observations` (B, S) and `actions` (B, A) in [-1, 1]; `samples` (B, A) for an unconditional model, and
    `labels` (B,) if its network has `num_classes`.

    Args:
        observation_size: S; 0 makes an unconditional model.
        action_size: A.
        net: `net(observation_size, action_size)` makes the noise predictor.
        schedule: the forward process; None is `LinearVP()`.
        weighting: of times in the loss: "uniform" (the recipe), "min_snr" or "sigmoid", see `diffusion.losses`.
        average_targets: average the noise to predict over the samples of the batch that a noised one may have come
            from, see `diffusion.posterior`: the same optimum, less variance. For unconditional models only.
        options: those of `StageModule`.
    """

    stage = "behavior"
    batch_fields: tuple[str, ...] = ("observations", "actions")

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net: Callable[[int, int], nn.Module] = ResidualUNet,
        schedule: NoiseSchedule | None = None,
        weighting: str = "uniform",
        average_targets: bool = False,
        learning_rate: Positive = 1e-4,
        batch_size: Count = 4096,
        **options: Any,
    ) -> None:
        super().__init__(net(observation_size, action_size), learning_rate, batch_size, **options)
        self.by_class = getattr(self.net, "num_classes", None) is not None
        if average_targets and (observation_size or self.by_class):
            raise ConfigError(
                "behavior.average_targets needs an unconditional model: samples of other states or classes cannot be "
                "averaged"
            )
        if not observation_size:
            self.batch_fields = ("labels", "samples") if self.by_class else ("samples",)
        self.schedule = schedule or LinearVP()
        self.weighting = find_weighting(weighting)
        self.average_targets = average_targets
        self.check_micro_batch(contrasted=average_targets)

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        x0 = batch[self.batch_fields[-1]]  # (B, A)
        t = self.schedule.sample_times(noise.uniform(len(x0)))
        eps = noise.normal(*x0.shape)
        sources = self.from_all_ranks(x0, noise) if self.average_targets else None
        condition = batch["labels"].unsqueeze(-1) if self.by_class else batch.get("observations")  # (B, 1) or (B, S)
        return denoising_loss(self.net, self.schedule, x0, condition, t, eps, self.weighting, sources)
