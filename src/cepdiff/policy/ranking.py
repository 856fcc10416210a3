"""Tests of a run's critic on the buffer: does it rank the actions of a state?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.returns import known_returns
from cepdiff.data.rl.support_cache import SupportCache, support_noise
from cepdiff.energy.ranking import Estimate, fourier_features, rank_agreement, return_agreement
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.randomness import generator, stream_seed

MAX_ROWS = 10_000  # rows with support actions
MAX_DRAWN_ROWS = 4_000  # rows without, whose actions have to be drawn
DRAWN = 4  # behavior actions per row without support actions
BLOCK = 512  # rows at a time, so that activations stay in a core's cache
FEATURES = 256  # random features of the state, at most one per `ROWS_PER_FEATURE` rows
ROWS_PER_FEATURE = 20
MIN_EPISODES = 10  # fewer do not give a usable error


@dataclass(frozen=True)
class Ranking:
    """Tests of a critic's ranking, see `energy.ranking`; None with fewer than `MIN_EPISODES` episodes.

    Args:
        return_agreement: between the advantages of the buffer's actions and the returns that followed.
        critic_agreement: between the critics; None for one critic.
        shared_targets: True if the critics learn from one target. They then share its errors, and `critic_agreement` is
            an upper bound, not a test.
        held_out: True if `return_agreement` is on episodes that the critic was not trained on.
        learned_returns: True if the critic's targets are sums of several rewards. On its training episodes it agrees
            with them by construction, and `return_agreement` is an upper bound, not a test.
    """

    return_agreement: Estimate | None = None
    critic_agreement: Estimate | None = None
    shared_targets: bool = True
    held_out: bool = False
    learned_returns: bool = False

    @property
    def is_untested(self) -> bool:
        """True if the agreement with returns is only measured on returns that the critic was trained on."""
        return self.learned_returns and not self.held_out and self.return_agreement is not None

    @property
    def figures(self) -> dict[str, Estimate]:
        """The figures that were measured, by name."""
        found = {"return_agreement": self.return_agreement, "critic_agreement": self.critic_agreement}
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    @property
    def not_above_chance(self) -> list[str]:
        """The tests whose 95% interval is not above 0; `critic_agreement` with shared targets is not a test."""
        tests = {name: e for name, e in self.figures.items() if name != "critic_agreement" or not self.shared_targets}
        return [name for name, estimate in tests.items() if not estimate.above_chance]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `results.json`."""
        figures = {name: asdict(estimate) for name, estimate in self.figures.items()}
        return {
            "figures": figures,
            "not_above_chance": self.not_above_chance,
            "shared_targets": self.shared_targets,
            "held_out": self.held_out,
            "learned_returns": self.learned_returns,
        }

    def __str__(self) -> str:
        if not self.figures:
            return (
                f"the critic's ranking of actions is not tested: fewer than {MIN_EPISODES} episodes with known returns"
            )
        trained_on = "upper bound: it learned these returns" if self.learned_returns else "episodes it was trained on"
        remarks = {
            "return_agreement": "held-out episodes" if self.held_out else trained_on,
            "critic_agreement": "upper bound: the critics share their targets" if self.shared_targets else "",
        }
        found = []
        for name, estimate in self.figures.items():
            remark = f" ({remarks[name]})" if remarks[name] else ""
            found.append(f"{name.replace('_', ' ')} {estimate}{remark}")
        return f"the critic's ranking of actions, by chance 0: {', '.join(found)}"


@torch.no_grad()
def measure_ranking(
    critic: SoftmaxQCritic,
    values: Tensor,
    ids: Tensor,
    data: OfflineDataModule,
    support: SupportCache,
    sampler: GuidedSampler,
    *,
    seed: int,
    device: torch.device | str,
) -> Ranking:
    """Compare the critics by their `values` (C, M, K) at the states `ids` (M,), and the critic with known returns.

    The returns are those of the rows from `rows_to_test`.
    For rows without support actions, `sampler` draws `DRAWN` behavior actions each.
    """
    buffer, size = data.buffer, data.buffer.actions.shape[1]
    agreement: Estimate | None = None
    compared: Estimate | None = None
    episodes = buffer.episode_index[ids]
    if len(values) > 1 and len(torch.unique(episodes)) >= MIN_EPISODES:
        compared = rank_agreement(values.cpu(), episodes, size)
    rows, returns, held_out = rows_to_test(data, support, critic.discount, seed)
    episodes = buffer.episode_index[rows]
    if len(torch.unique(episodes)) >= MIN_EPISODES:
        draws = generator(seed, "ranking", "features")
        count = min(FEATURES, len(rows) // ROWS_PER_FEATURE)
        states = data.normalize(buffer.states[rows])
        directions = torch.randn(states.shape[-1], count, generator=draws)
        features = fourier_features(states, directions, 2.0 * math.pi * torch.rand(count, generator=draws))
        stream = stream_seed(seed, "ranking", "actions")
        advantages = []
        for some in torch.split(rows, BLOCK):
            s = data.normalize(buffer.states[some]).to(device)
            if held_out:
                actions = sampler.sample(s.unsqueeze(1), support_noise(stream, some, DRAWN, size).to(device)).float()
            else:
                actions = support.of(some).to(device)
            taken = critic.q_value(s, buffer.actions[some].to(device))
            advantages.append((taken - critic.q_value(s.unsqueeze(1), actions).mean(-1)).cpu())
        agreement = return_agreement(torch.cat(advantages), returns, features, episodes)
    unseen = held_out and "next_support_actions" in critic.batch_fields  # other critics train on all rows
    return Ranking(agreement, compared, not critic.independent_targets, unseen, critic.num_steps != 1)


def rows_to_test(
    data: OfflineDataModule, support: SupportCache, discount: float, seed: int
) -> tuple[Tensor, Tensor, bool]:
    """Rows drawn by `seed`, in ascending order, the returns that followed, and True if the rows are held out.

    Held-out rows are from episodes without any support actions, on which a backup over support actions is not trained.
    If there are at least `MIN_EPISODES` of these, up to `MAX_DRAWN_ROWS` of their rows are drawn, otherwise up to
    `MAX_ROWS` rows with support actions. There are no rows if the buffer is not in time order.
    """
    buffer = data.buffer
    if not buffer.chained:
        return torch.arange(0), torch.zeros(0), False
    returns, known = known_returns(buffer, data.rewards(), discount)
    cached = support.slots[: len(buffer)] >= 0
    seen = torch.zeros(buffer.num_episodes, dtype=torch.bool)
    seen[buffer.episode_index[cached]] = True
    fresh = known & ~seen[buffer.episode_index]
    held_out = len(torch.unique(buffer.episode_index[fresh])) >= MIN_EPISODES
    rows = (fresh if held_out else known & cached).nonzero().squeeze(-1)
    most = MAX_DRAWN_ROWS if held_out else MAX_ROWS
    rows = rows[torch.randperm(len(rows), generator=generator(seed, "ranking", "rows"))[:most]].sort().values
    return rows, returns[rows], held_out
