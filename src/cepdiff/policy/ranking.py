"""How far a run's critic can rank the actions of a state, measured on the buffer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.returns import known_returns
from cepdiff.data.rl.support_cache import SupportCache
from cepdiff.energy.ranking import Estimate, fourier_features, rank_agreement, return_agreement
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.randomness import generator

MAX_ROWS = 20_000
BLOCK = 2048  # rows whose support actions are valued at a time
FEATURES = 256  # random features of the state, but at most one for this many rows:
ROWS_PER_FEATURE = 20
MIN_EPISODES = 10  # fewer say too little about the error


@dataclass(frozen=True)
class Ranking:
    """Tests of a critic's ranking, see `energy.ranking`; None with fewer than `MIN_EPISODES` episodes.

    Args:
        return_agreement: of the advantages of the buffer's actions with the returns that followed.
        critic_agreement: of the critics with each other; None for one critic.
        shared_targets: True if the critics learn from one target. They then share its errors: `critic_agreement` is an
            upper bound, and no test.
    """

    return_agreement: Estimate | None = None
    critic_agreement: Estimate | None = None
    shared_targets: bool = True

    @property
    def figures(self) -> dict[str, Estimate]:
        """The figures that were measured, by name."""
        found = {"return_agreement": self.return_agreement, "critic_agreement": self.critic_agreement}
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    @property
    def not_above_chance(self) -> list[str]:
        """The tests whose 95% interval does not lie above 0; critics that share their targets are no test."""
        tests = {name: e for name, e in self.figures.items() if name != "critic_agreement" or not self.shared_targets}
        return [name for name, estimate in tests.items() if not estimate.above_chance]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `results.json`."""
        figures = {name: asdict(estimate) for name, estimate in self.figures.items()}
        return {"figures": figures, "not_above_chance": self.not_above_chance, "shared_targets": self.shared_targets}

    def __str__(self) -> str:
        if not self.figures:
            return (
                f"the critic's ranking of actions is not tested: fewer than {MIN_EPISODES} episodes with known returns"
            )
        found = ", ".join(f"{name.replace('_', ' ')} {estimate}" for name, estimate in self.figures.items())
        shared = self.critic_agreement is not None and self.shared_targets
        bound = " (an upper bound: the critics share their targets)" if shared else ""
        return f"the critic's ranking of actions, by chance 0: {found}{bound}"


@torch.no_grad()
def measure_ranking(
    critic: SoftmaxQCritic,
    data: OfflineDataModule,
    support: SupportCache,
    ids: Tensor,
    *,
    seed: int,
    device: torch.device | str,
) -> Ranking:
    """Compare the critics at the states `ids` (M,), and the critic with the returns of up to `MAX_ROWS` rows.

    The rows are drawn by `seed` from those with support actions and known returns.
    """
    buffer = data.buffer
    returns, known = known_returns(buffer, data.rewards(), critic.discount)
    rows = (known & (support.slots[: len(buffer)] >= 0)).nonzero().squeeze(-1)
    rows = rows[torch.randperm(len(rows), generator=generator(seed, "ranking", "rows"))[:MAX_ROWS]].sort().values
    episodes, episodes_of_ids = buffer.episode_index[rows], buffer.episode_index[ids]

    def at(ids: Tensor) -> tuple[Tensor, Tensor]:  # normalised states (M, S) and support actions (M, K, A)
        states = data.normalize(buffer.states[ids]).to(device)
        return states, torch.from_numpy(support.actions[support.slots[ids].numpy()]).to(device)

    def values_of_critics(ids: Tensor) -> Tensor:
        states, actions = at(ids)
        values: Tensor = critic.sampling_net(states.unsqueeze(1), actions)
        return values.cpu()  # (C, M, K)

    def advantages(ids: Tensor) -> Tensor:
        states, actions = at(ids)
        taken = critic.q_value(states, buffer.actions[ids].to(device))
        return (taken - critic.q_value(states.unsqueeze(1), actions).mean(-1)).cpu()  # (M,)

    def features(ids: Tensor) -> Tensor:
        states, draws = data.normalize(buffer.states[ids]), generator(seed, "ranking", "features")
        count = min(FEATURES, len(ids) // ROWS_PER_FEATURE)
        directions = torch.randn(states.shape[-1], count, generator=draws)
        return fourier_features(states, directions, 2.0 * math.pi * torch.rand(count, generator=draws))

    def in_blocks(function: Callable[[Tensor], Tensor], ids: Tensor, axis: int) -> Tensor:
        return torch.cat([function(some) for some in ids.split(BLOCK)], axis)

    found: Estimate | None = None
    compared: Estimate | None = None
    if buffer.chained and len(episodes.unique()) >= MIN_EPISODES:
        found = return_agreement(in_blocks(advantages, rows, 0), returns[rows], features(rows), episodes)
    q = in_blocks(values_of_critics, ids, 1)
    if len(q) > 1 and len(episodes_of_ids.unique()) >= MIN_EPISODES:
        compared = rank_agreement(q, episodes_of_ids, buffer.actions.shape[1])
    return Ranking(found, compared, shared_targets=not getattr(critic, "independent_targets", False))
