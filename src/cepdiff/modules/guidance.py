"""Stage 3: the energy network that guides the behavior diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cepdiff.diffusion.posterior import origin_posterior
from cepdiff.diffusion.process import perturb
from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.energy.objectives import CEP, EnergyObjective, effective_sample_size, mean_where
from cepdiff.errors import ConfigError
from cepdiff.modules.base import StageModule
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.energy import EnergyMLP, ResidualEnergy
from cepdiff.precision import float32_products
from cepdiff.ranges import AtLeastTwo, Count, Positive, check_arguments
from cepdiff.types import Batch, Metrics


class EnergyGuidance(StageModule):
    """Contrastive energy prediction inside the behavior policy's support (Lu et al. 2023, Eq. 16, Algorithm 1).

    Batches hold `observations` (B, S), `support_actions` (B, K, A) and their `energies` (B, K), here -Q(s, a).

    Args:
        observation_size: S; 0 makes an unconditional energy.
        action_size: A.
        net: `net(observation_size, action_size)` makes the energy network (its output is a logit, -E_t).
        schedule: the forward process of the behavior stage; None is `LinearVP()`.
        objective: CEP, or a baseline, with its inverse temperature beta; None is `CEP()`.
        average_targets: average a noised sample's target over the samples of its set that it may have come from, see
            `diffusion.posterior`: the same optimum, less variance.
        time_exponent: times are drawn as u^exponent; above 1 favours small ones.
        options: those of `StageModule`.
    """

    stage = "guidance"
    batch_fields: tuple[str, ...] = ("observations", "support_actions", "energies")

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net: Callable[[int, int], nn.Module] = EnergyMLP,
        schedule: NoiseSchedule | None = None,
        objective: EnergyObjective | None = None,
        average_targets: bool = False,
        time_exponent: Positive = 1.0,
        learning_rate: Positive = 3e-4,
        batch_size: Count = 256,
        **options: Any,
    ) -> None:
        check_arguments(EnergyGuidance, locals(), self.stage)
        super().__init__(net(observation_size, action_size), learning_rate, batch_size, **options)
        self.schedule = schedule or LinearVP()
        self.objective = objective or CEP()
        self.average_targets = average_targets
        self.time_exponent = time_exponent

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        actions, energies = batch["support_actions"], batch["energies"]  # (B, K, A), (B, K)
        uniform = noise.uniform(len(actions), 1)  # one time per state, for its K actions
        condition = batch["observations"].unsqueeze(1) if "observations" in batch else None
        logits, origins = self.noised_logits(actions, actions, uniform, noise.normal(*actions.shape), condition)
        targets = self.objective.targets(energies)
        if origins is not None:
            targets = average(targets, origins)
        return self.with_label_ess(self.objective.loss(logits, targets), energies)

    def noised_logits(
        self, x0: Tensor, sources: Tensor, uniform: Tensor, eps: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (..., M) of clean samples `x0` (..., M, A) noised by `eps` at times made of `uniform` (..., 1).

        If targets are averaged, also the probability (..., M, K) that a noised sample came from each of `sources`
        (..., K, A). An objective on clean samples gets their logits, and no probabilities.
        """
        if self.objective.on_clean:
            return self.net(x0, x0.new_full((), self.schedule.t_min), condition), None
        t = self.schedule.sample_times(uniform, self.time_exponent)
        x = perturb(self.schedule, x0, t, eps)
        origins = origin_posterior(self.schedule, x, sources, t) if self.average_targets else None
        return self.net(x, t, condition), origins

    def with_label_ess(self, result: tuple[Tensor, Metrics], energies: Tensor) -> tuple[Tensor, Metrics]:
        """Add the effective sample size of the contrastive sets' weights to the metrics of a loss.

        Its mean is over the sets with at least one sample: a class may have none in a batch.
        """
        ess = effective_sample_size(energies, self.objective.inverse_temperature)
        return result[0], result[1] | {"label_ess": mean_where(ess, ess > 0.0)}


class BatchEnergyGuidance(EnergyGuidance):
    """Contrastive energy prediction without conditions: the contrastive set is the batch, over all processes.

    Batches hold `samples` of q (B, A) and their `energies` (B,) >= 0; K is the global batch size. All K samples are
    noised at each of `times_per_step` diffusion times, one contrast per time (Lu et al. 2023, Eq. 12: one time).

    Args:
        observation_size: must be 0.
        times_per_step: diffusion times per step, one drawn from each of this many equal parts of the range.
        options: these and the arguments that are not listed here are those of `EnergyGuidance`; `batch_size`, K, is
            at least 2.
    """

    batch_fields = ("samples", "energies")

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net: Callable[[int, int], nn.Module] = ResidualEnergy,
        schedule: NoiseSchedule | None = None,
        objective: EnergyObjective | None = None,
        times_per_step: Count = 8,
        average_targets: bool = True,
        time_exponent: Positive = 1.5,
        learning_rate: Positive = 3e-3,
        batch_size: AtLeastTwo = 256,  # actions are contrasted within the batch
        **options: Any,
    ) -> None:
        check_arguments(BatchEnergyGuidance, locals(), self.stage)
        super().__init__(
            observation_size,
            action_size,
            net,
            schedule,
            objective,
            average_targets,
            time_exponent,
            learning_rate,
            batch_size,
            **options,
        )
        if observation_size:
            raise ConfigError(f"BatchEnergyGuidance takes no condition; observations have size {observation_size}")
        self.times_per_step = times_per_step
        self.check_micro_batch(contrasted=True)

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        x0 = batch["samples"]  # (B, A) of this rank
        sources, energies = self.from_all_ranks(x0, noise), self.from_all_ranks(batch["energies"], noise)
        energies, condition = self.contrasts(energies, noise)
        logits, origins = self.logits_at_times(x0, sources, noise, condition)
        logits = self.from_all_ranks(logits.expand(self.times_per_step, len(x0)), noise, axis=1)  # (T, B) -> (T, K)
        targets = self.objective.targets(energies, per_set=False).expand_as(logits)
        if origins is not None:
            targets = self.from_all_ranks(average(targets, origins), noise, axis=1)
        return self.with_label_ess(self.objective.loss(logits, targets), energies)

    def contrasts(self, energies: Tensor, noise: RandomStream) -> tuple[Tensor, Tensor | None]:
        """The energies to contrast, (K,) or (T, K) per time, and the condition (T, 1, S) of their logits, or None."""
        return energies, None

    def logits_at_times(
        self, x0: Tensor, sources: Tensor, noise: RandomStream, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`noised_logits` (T, B) of this rank's `x0` (B, A) at the T times of a step, which all ranks share."""
        parts = torch.arange(self.times_per_step, device=x0.device).unsqueeze(-1)  # (T, 1)
        uniform = (parts + noise.shared_uniform(self.times_per_step, 1)) / self.times_per_step
        eps = torch.stack([noise.normal(*x0.shape) for _ in range(self.times_per_step)])  # (T, B, A)
        return self.noised_logits(x0, sources, uniform, eps, condition)


def average(targets: Tensor, origins: Tensor) -> Tensor:
    """Mean of `targets` (..., K) under `origins` (..., M, K): (..., M)."""
    with float32_products(origins):
        return (origins @ targets.unsqueeze(-1)).squeeze(-1)
