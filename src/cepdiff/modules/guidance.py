"""Stage 3: the energy network that guides the behavior diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cepdiff.diffusion.process import perturb
from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.energy.objectives import CEP, EnergyObjective
from cepdiff.modules.base import Noise, StageModule
from cepdiff.networks.energy import EnergyMLP
from cepdiff.types import Batch, Metrics


class EnergyGuidance(StageModule):
    """Contrastive energy prediction inside the behavior policy's support (Lu et al. 2023, Eq. 16, Algorithm 1).

    Batches hold `observations` (B, S), `support_actions` (B, K, A) and their `energies` (B, K), here -Q(s, a).

    Args:
        observation_size: S; 0 makes an unconditional energy.
        action_size: A.
        net: `net(observation_size, action_size)` makes the energy network (its output is a logit, -E_t).
        schedule: the forward process of the behavior stage; None is `LinearVP()`.
        objective: CEP, MSE or ExponentialMSE with its inverse temperature beta; None is `CEP()`.
        options: those of `StageModule`.
    """

    stage = "guidance"
    batch_fields = ("observations", "support_actions", "energies")

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net: Callable[[int, int], nn.Module] = EnergyMLP,
        schedule: NoiseSchedule | None = None,
        objective: EnergyObjective | None = None,
        learning_rate: float = 3e-4,
        batch_size: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(net(observation_size, action_size), learning_rate, batch_size, **options)
        self.schedule = schedule or LinearVP()
        self.objective = objective or CEP()

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        actions = batch["support_actions"]  # (B, K, A)
        t = self.schedule.sample_times(noise.uniform(len(actions), 1))  # one time for the K actions of a state
        x = perturb(self.schedule, actions, t, noise.normal(*actions.shape))
        condition = batch["observations"].unsqueeze(1) if "observations" in batch else None
        logits = self.net(x, t, condition)  # (B, K)
        return self.objective(logits, batch["energies"])
