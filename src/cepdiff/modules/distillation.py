"""Stage 4 (optional): a network that reproduces the sampler's actions in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from cepdiff.modules.base import StageModule
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.one_step import OneStepNet
from cepdiff.ranges import Count, Positive, check_arguments
from cepdiff.types import Batch, Metrics


class Distillation(StageModule):
    """Regression of a sampler's actions on its noise (Luhman and Luhman 2021, arXiv 2101.02388).

    A deterministic solver maps noise z, state s and guidance scale w to one action T(z, s, w). The network f(z, s, w)
    that minimises E |f(z, s, w) - T(z, s, w)|² is therefore T itself, not a mean over actions. Flow Q-learning distils
    its policy with the same term (Park et al. 2025, arXiv 2502.02538). Its term for Q is left out, because the sampler
    is already guided.

    Batches hold `observations` (B, S), `noise` (B, Z), `guidance_scales` (B,) and the sampler's `actions` (B, A), all
    drawn before training.

    Args:
        observation_size: S.
        action_size: A.
        noise_size: Z, of the sampler.
        net: `net(observation_size, action_size, noise_size)` makes the network.
        options: those of `StageModule`.
    """

    stage = "distillation"
    supplied = frozenset({"observation_size", "action_size", "noise_size"})
    batch_fields: tuple[str, ...] = ("observations", "noise", "guidance_scales", "actions")

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        noise_size: int,
        net: Callable[[int, int, int], nn.Module] = OneStepNet,
        learning_rate: Positive = 3e-3,
        batch_size: Count = 256,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        **options: Any,
    ) -> None:
        check_arguments(Distillation, locals(), self.stage)
        made = net(observation_size, action_size, noise_size)
        super().__init__(made, learning_rate, batch_size, lr_schedule, **options)

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        found = self.net(batch["noise"], batch["observations"], batch["guidance_scales"])  # (B, A)
        loss = (found - batch["actions"]).square().mean()
        return loss, {"loss": loss.detach(), "rms_error": loss.detach().sqrt()}
