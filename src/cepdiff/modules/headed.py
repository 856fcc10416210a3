"""Stage 3 of samples with several energies: one energy network with a head for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.energy.objectives import EnergyObjective
from cepdiff.errors import ConfigError
from cepdiff.modules.guidance import BatchEnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.precision import float32_products
from cepdiff.ranges import AtLeastTwo, Count, Positive
from cepdiff.types import Batch, Metrics


class HeadedEnergyGuidance(BatchEnergyGuidance):
    """Contrastive energy prediction of H energies at once, such as those of classes or hues (Lu et al. 2023).

    Batches hold `samples` of q (B, A) and their `energies` (B, H) >= 0. The contrastive set of each head is the batch,
    over all processes. Energies of labels, -log p(h|x), are 0 for a sample's own class and infinite for the
    others: CEP is then InfoNCE, each class's logits normalised over the batch. A class without a sample in the batch
    adds nothing to the loss.

    With a large beta, exp(-beta E) must not underflow: the data module measures each head's energies from that head's
    lowest one in the data, a constant that leaves p unchanged. (The lowest of a batch would not do: it differs from
    batch to batch, and would weight the batches.)

    Args:
        observation_size: must be 0.
        net: `net(observation_size, action_size)` makes the energy network, called as net(x (..., A), t, None) ->
            logits (..., H).
        objective: CEP, a baseline, or for labels `NoisyClassifier` and `DPSClassifier`; None is `CEP()`.
        times_per_step: diffusion times per step, one drawn from each of this many equal parts of the range; each costs
            a pass of the network over the batch.
        options: these and the arguments that are not listed here are those of `BatchEnergyGuidance`.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net: Callable[[int, int], nn.Module],
        schedule: NoiseSchedule | None = None,
        objective: EnergyObjective | None = None,
        times_per_step: Count = 1,
        average_targets: bool = True,
        time_exponent: Positive = 1.0,
        learning_rate: Positive = 3e-4,
        batch_size: AtLeastTwo = 128,
        **options: Any,
    ) -> None:
        super().__init__(
            observation_size,
            action_size,
            net,
            schedule,
            objective,
            times_per_step,
            average_targets,
            time_exponent,
            learning_rate,
            batch_size=batch_size,
            **options,
        )
        self._checked = False

    def on_fit_start(self) -> None:
        """Check the energies of each fit once."""
        super().on_fit_start()
        self._checked = False

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        x0 = batch["samples"]  # (B, A) of this rank
        sources, energies = self.from_all_ranks(x0, noise), self.from_all_ranks(batch["energies"], noise)
        if energies.ndim != 2:
            raise ConfigError(
                f"energies of a batch have shape {tuple(energies.shape)}; expected (B, H), one for each head "
                "(BatchEnergyGuidance takes a single energy)"
            )
        energies = energies.T  # (K, H) -> (H, K)
        if not self._checked:  # once a fit: it waits for the device, which a captured step must not
            self.objective.check_heads(energies)
            self._checked = True
        logits, origins = self.logits_at_times(x0, sources, noise)  # (T, B, H), or (B, H) on clean samples
        if logits.shape[-2:] != (len(x0), len(energies)):
            raise ConfigError(
                f"the energy network gives logits {tuple(logits.shape)} for {len(x0)} samples; expected "
                f"(..., {len(x0)}, {len(energies)}), because the data have {len(energies)} energies: give "
                "guidance.net that many heads"
            )
        logits = self.from_all_ranks(logits.transpose(-1, -2), noise, axis=-1)  # (..., B, H) -> (..., H, K)
        targets = self.objective.targets(energies, per_set=False)
        if origins is not None:  # (H, K) @ (T, K, B) -> (T, H, B) -> (T, H, K)
            with float32_products(targets):
                targets = targets @ origins.transpose(-1, -2)
            targets = self.from_all_ranks(targets, noise, axis=-1)
        return self.with_label_ess(self.objective.loss(logits, targets), energies)
