"""Q networks: Q(s, a) for several critics at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cepdiff.networks.mlp import JointMLP
from cepdiff.ranges import Repeats, Width


class QEnsemble(nn.Module):
    """Independent MLP critics (two: clipped double Q, Fujimoto et al. 2018).

    observations (..., S) and actions (..., A) with broadcasting leading axes -> (num_critics, ...). `layer_norm` adds a
    LayerNorm before each activation, which bounds values far from the data (Ball et al. 2023).
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[Width] = (256, 256, 256),
        num_critics: Repeats = 2,
        activation: str = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.critics = nn.ModuleList(
            JointMLP([action_size, observation_size], hidden, 1, activation, layer_norm) for _ in range(num_critics)
        )

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        # (..., 1) per critic -> (num_critics, ...)
        return torch.stack([critic(actions, observations).squeeze(-1) for critic in self.critics])
