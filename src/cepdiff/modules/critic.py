"""Stage 2: the in-support softmax Q-critic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cepdiff.energy.bellman import bellman_target, expectile_loss, lower_bound, softmax_entropy, softmax_value
from cepdiff.errors import ConfigError, DivergenceError
from cepdiff.modules.base import StageModule, frozen_copy, polyak_update
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.critic import QEnsemble
from cepdiff.networks.mlp import JointMLP
from cepdiff.ranges import Count, Fraction, NonNegative, OpenUnit, Positive, Range, Width, check_arguments
from cepdiff.types import Batch, Metrics

RUNAWAY_FACTOR = 10.0
DISCOUNTS = "discounts"  # batch field that only backups over several steps have
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
        num_steps: rewards per backup, after which the value is bootstrapped, see `data.rl.lookahead`; "episode" sums to
            the end of the episode, which gives the behavior policy's Q (Brandfonbrener et al. 2021).
        deviations: the value is the mean of the critics minus this many of their standard deviations, see
            `energy.bellman.lower_bound`; null takes the minimum.
        independent_targets: each critic bootstraps from its own target network, so that the spread of the critics
            measures uncertainty (Ghasemipour et al. 2022).
        energy_unit: unit of the energies -Q for guidance and samplers: "reward" (the scaled reward), or "spread" (the
            standard deviation of Q over a state's support actions, averaged over states). With "spread" an inverse
            temperature means the same at any reward scale.
        options: those of `StageModule`.
    """

    stage = "critic"
    batch_fields: tuple[str, ...] = (
        "observations", "actions", "rewards", "terminals", "next_observations", "next_support_actions",
    )  # fmt: skip
    several_steps: ClassVar[bool] = True
    """Set it in a class whose own `target` calls `backup`, which allows `num_steps` other than 1."""
    max_abs_reward: Tensor  # per step, of sums too

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net: Callable[[int, int], nn.Module] = QEnsemble,
        discount: Fraction = 0.99,
        tau: Annotated[float, Range(0, 1, "(]")] = 0.005,
        bellman_inverse_temperature: NonNegative = 1.0,
        num_steps: Count | Literal["episode"] = 1,
        deviations: NonNegative | None = None,
        independent_targets: bool = False,
        energy_unit: Literal["reward", "spread"] = "reward",
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
        self.num_steps = num_steps
        self.deviations = deviations
        self.independent_targets = independent_targets
        self.energy_unit = energy_unit
        owner = next(cls for cls in type(self).__mro__ if "target" in vars(cls))
        if num_steps != 1 and not vars(owner).get("several_steps"):
            raise ConfigError(
                f"critic.num_steps: {owner.__name__}.target may bootstrap after one step; let it return "
                "self.backup(batch, value), and set several_steps = True in the class"
            )
        if independent_targets and owner is not SoftmaxQCritic:
            raise ConfigError(f"critic.independent_targets: {owner.__name__}.target makes one target for all critics")
        if num_steps != 1:
            self.batch_fields = (*type(self).batch_fields, DISCOUNTS)
        self.register_buffer("max_abs_reward", torch.zeros(()))

    @property
    def sampling_net(self) -> nn.Module:
        """The target critics, which guidance learns from."""
        return self.target_net

    def q_value(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Lower bound of the target critics: (..., S), (..., A) -> (...), leading axes broadcast."""
        return lower_bound(self.target_net(observations, actions), self.deviations)

    def backup(self, batch: Batch, next_values: Tensor) -> Tensor:
        """Bellman target (B,), or (C, B) for each critic, from the `next_values` at `next_observations`."""
        return bellman_target(batch["rewards"], batch["terminals"], next_values, batch.get(DISCOUNTS, self.discount))

    @torch.no_grad()
    def target(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Bellman target (B,) of a minibatch, (C, B) with independent targets, and metrics of the backup."""
        beta_q = self.bellman_inverse_temperature
        # (B, 1, S) against (B, K, A) -> (C, B, K)
        next_q = self.target_net(batch["next_observations"].unsqueeze(1), batch["next_support_actions"])
        if not self.independent_targets:
            next_q = lower_bound(next_q, self.deviations)
        target = self.backup(batch, softmax_value(next_q, beta_q))
        return target, {"bellman_entropy": softmax_entropy(next_q, beta_q).mean()}

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        target, metrics = self.target(batch)
        q = self.net(batch["observations"], batch["actions"])  # (num_critics, B)
        loss = (q - target).square().mean(-1).sum()
        per_step = batch["rewards"].abs()  # of equal rewards that would give these sums
        if DISCOUNTS in batch:
            per_step = per_step * (1.0 - self.discount) / (1.0 - batch[DISCOUNTS])
        self.max_abs_reward.copy_(torch.maximum(self.max_abs_reward, per_step.max()))
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


class ExpectileQCritic(SoftmaxQCritic):
    """Implicit Q-learning (Kostrikov et al. 2022, Eq. 5 and 6).

    Q bootstraps from V(s'), and V(s) is an expectile of Q(s, a) over the data. Training needs no support actions.

    Args:
        observation_size: S.
        action_size: A.
        expectile: in (0, 1); 0.5 gives the behavior policy's value, towards 1 that of the best action in the data.
        value_hidden: widths of V's hidden layers.
        value_layer_norm: a LayerNorm before each activation of V, as in `QEnsemble`.
        options: those of `SoftmaxQCritic` except `independent_targets` and `bellman_inverse_temperature`.
    """

    several_steps = True
    batch_fields = ("observations", "actions", "rewards", "terminals", "next_observations")

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        expectile: OpenUnit = 0.7,
        value_hidden: Sequence[Width] = (256, 256),
        value_layer_norm: bool = False,
        **options: Any,
    ) -> None:
        check_arguments(ExpectileQCritic, locals(), self.stage)
        super().__init__(observation_size, action_size, **options)
        if self.bellman_inverse_temperature != 1.0:
            raise ConfigError(
                "critic.bellman_inverse_temperature: an expectile critic has no such softmax; leave it out"
            )
        self.expectile = expectile
        self.value_net = JointMLP([observation_size], value_hidden, 1, layer_norm=value_layer_norm)

    def value(self, observations: Tensor) -> Tensor:
        """V(s): (..., S) -> (...)."""
        values: Tensor = self.value_net(observations)
        return values.squeeze(-1)

    @torch.no_grad()
    def target(self, batch: Batch) -> tuple[Tensor, Metrics]:
        value = self.value(batch["next_observations"])
        return self.backup(batch, value), {"value": value.mean()}

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        q_loss, metrics = super().loss(batch, noise)
        with torch.no_grad():
            q = self.q_value(batch["observations"], batch["actions"])
        value_loss = expectile_loss(q - self.value(batch["observations"]), self.expectile)
        loss = q_loss + value_loss
        return loss, metrics | {"loss": loss.detach(), "value_loss": value_loss.detach()}


def percentile(ordered: Tensor, level: float) -> Tensor:
    """Percentile `level` in [0, 100] of sorted values (N,), interpolated linearly; never waits for the device."""
    position = level / 100.0 * (len(ordered) - 1)
    below = math.floor(position)
    return ordered[below].lerp(ordered[math.ceil(position)], position - below)
