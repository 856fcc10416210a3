"""Stage 2: the in-support softmax Q-critic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from cepdiff.energy.bellman import bellman_target, softmax_entropy, softmax_value
from cepdiff.errors import ConfigError, DivergenceError
from cepdiff.modules.base import StageModule, frozen_copy, polyak_update
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.critic import QEnsemble
from cepdiff.ranges import Count, Fraction, NonNegative, Positive, Range, check_arguments
from cepdiff.types import Batch, Metrics

RUNAWAY_FACTOR = 10.0
# The percentiles of Q on a batch that are logged, as q_p5, ...
Q_PERCENTILES = (5, 50, 95)


class SoftmaxQCritic(StageModule):
    """Twin Q networks trained on the in-support softmax backup (Lu et al. 2023, Eq. 15 and Algorithm 1).

    Batches hold `observations` (B, S), `actions` (B, A), `rewards` (B,), `terminals` (B,), `next_observations` (B, S)
    and `next_support_actions` (B, K, A).

    Args:
        observation_size: S.
        action_size: A.
        net: `net(observation_size, action_size)` makes the critics, (B, S) and (B, A) -> (num_critics, B).
        discount: gamma in [0, 1).
        tau: rate in (0, 1] at which the target critics follow the critics per step.
        bellman_inverse_temperature: beta_Q of the softmax over next support actions, at least 0.
        options: those of `StageModule`.
    """

    stage = "critic"
    batch_fields = ("observations", "actions", "rewards", "terminals", "next_observations", "next_support_actions")
    max_abs_reward: Tensor

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net: Callable[[int, int], nn.Module] = QEnsemble,
        discount: Fraction = 0.99,
        tau: Annotated[float, Range(0, 1, "(]")] = 0.005,
        bellman_inverse_temperature: NonNegative = 1.0,
        learning_rate: Positive = 3e-4,
        batch_size: Count = 256,
        **options: Any,
    ) -> None:
        check_arguments(SoftmaxQCritic, locals(), self.stage)
        super().__init__(net(observation_size, action_size), learning_rate, batch_size, **options)
        if self.ema_net is not None:
            raise ConfigError("critic.ema_decay: the target critics are the critic's average; set critic.tau instead")
        self.target_net = frozen_copy(self.net)
        self.discount = discount
        self.tau = tau
        self.bellman_inverse_temperature = bellman_inverse_temperature
        self.register_buffer("max_abs_reward", torch.zeros(()))

    @property
    def sampling_net(self) -> nn.Module:
        """The target critics, which guidance learns from."""
        return self.target_net

    def q_value(self, observations: Tensor, actions: Tensor) -> Tensor:
        """min over the target critics: (..., S), (..., A) -> (...), leading axes broadcast."""
        values: Tensor = self.target_net(observations, actions)
        return values.amin(0)

    @torch.no_grad()
    def target(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Bellman target (B,) of a minibatch, and metrics of the backup."""
        beta_q = self.bellman_inverse_temperature
        # (B, 1, S) against (B, K, A) -> (B, K)
        next_q = self.q_value(batch["next_observations"].unsqueeze(1), batch["next_support_actions"])
        target = bellman_target(batch["rewards"], batch["terminals"], softmax_value(next_q, beta_q), self.discount)
        return target, {"bellman_entropy": softmax_entropy(next_q, beta_q).mean()}

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        target, metrics = self.target(batch)
        q = self.net(batch["observations"], batch["actions"])  # (num_critics, B)
        loss = (q - target).square().mean(-1).sum()
        self.max_abs_reward.copy_(torch.maximum(self.max_abs_reward, batch["rewards"].abs().max()))
        q = q.detach()
        ordered = q.float().flatten().sort().values  # (num_critics * B,)
        return loss, {
            "loss": loss.detach(),
            "q": q.mean(),
            "q_abs_max": q.abs().max(),
            "target": target.mean(),
            "twin_gap": (q.amax(0) - q.amin(0)).mean(),
            **{f"q_p{level}": percentile(ordered, level) for level in Q_PERCENTILES},
            **metrics,
        }

    def after_step(self) -> None:
        super().after_step()
        polyak_update(self.target_net, self.net, self.tau)

    def check_block(self, metrics: dict[str, Tensor], first_step: int) -> None:
        """Also refuse values beyond ten times max|r| / (1 - gamma), the largest that the data allow."""
        super().check_block(metrics, first_step)
        limit = RUNAWAY_FACTOR * float(self.max_abs_reward) / (1.0 - self.discount)
        beyond = metrics["q_abs_max"] > max(limit, 1.0)
        if bool(beyond.any()):
            step = first_step + int(beyond.nonzero()[0])
            largest = float(metrics["q_abs_max"].max())
            raise DivergenceError(
                f"Q values ran away at step {step} of the critic stage: |Q| = {largest:.3g}, while rewards and "
                f"discount allow {limit / RUNAWAY_FACTOR:.3g}; try a smaller critic.tau or critic.learning_rate"
            )


def percentile(ordered: Tensor, level: float) -> Tensor:
    """Percentile `level` in [0, 100] of sorted values (N,), interpolated linearly; never waits for the device."""
    position = level / 100.0 * (len(ordered) - 1)
    below = math.floor(position)
    return ordered[below].lerp(ordered[math.ceil(position)], position - below)
