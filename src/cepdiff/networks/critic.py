"""Q networks: Q(s, a) for several critics at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cepdiff.errors import ConfigError
from cepdiff.networks.mlp import JointMLP


class QEnsemble(nn.Module):
    """Independent MLP critics (two: clipped double Q, Fujimoto et al. 2018).

    observations (..., S) and actions (..., A) with broadcasting leading axes -> (num_critics, ...).
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int] = (256, 256, 256),
        num_critics: int = 2,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if num_critics < 1:
            raise ConfigError(f"num_critics is {num_critics}; expected at least 1")
        self.critics = nn.ModuleList(
            JointMLP([action_size, observation_size], hidden, 1, activation) for _ in range(num_critics)
        )

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        # (..., 1) per critic -> (num_critics, ...)
        return torch.stack([critic(actions, observations).squeeze(-1) for critic in self.critics])
