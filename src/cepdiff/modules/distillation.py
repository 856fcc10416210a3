"""Stage 4, if it is wanted: a network that draws the guided sampler's actions in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cepdiff.modules.base import StageModule
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.one_step import OneStepNet
from cepdiff.ranges import Count, Positive, check_arguments
from cepdiff.types import Batch, Metrics


class Distillation(StageModule):
    """Regression of a sampler's actions on its noise (Luhman and Luhman 2021, Eq. 5; Park et al. 2025, Eq. 8).

    A deterministic solver maps noise z, state s and guidance scale w to one action T(z, s, w), so the network
    f(z, s, w) that minimises E |f(z, s, w) - T(z, s, w)|² is that map, and not a mean over actions.

    Batches hold `observations` (B, S) and, for K draws in each state, `noise` (B, K, Z), `guidance_scales` (B, K) and
    the sampler's `support_actions` (B, K, A). Nothing is drawn while it trains.

    Args:
        observation_size: S.
        action_size: A.
        noise_size: Z, of the sampler.
        net: `net(observation_size, action_size, noise_size)` makes the network.
        options: those of `StageModule`.
    """

    stage = "distillation"
    supplied = frozenset({"observation_size", "action_size", "noise_size"})
    batch_fields: tuple[str, ...] = ("observations", "noise", "guidance_scales", "support_actions")

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        noise_size: int,
        net: Callable[[int, int, int], nn.Module] = OneStepNet,
        learning_rate: Positive = 1e-3,
        batch_size: Count = 64,
        **options: Any,
    ) -> None:
        check_arguments(Distillation, locals(), self.stage)
        super().__init__(net(observation_size, action_size, noise_size), learning_rate, batch_size, **options)

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        found = self.net(batch["noise"], batch["observations"].unsqueeze(1), batch["guidance_scales"])  # (B, K, A)
        loss = (found - batch["support_actions"]).square().mean()
        return loss, {"loss": loss.detach(), "rms_error": loss.detach().sqrt()}
