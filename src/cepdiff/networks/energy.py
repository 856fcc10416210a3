"""Energy networks of the guidance stage: logits f(x_t, t, s)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cepdiff.networks.embeddings import FourierFeatures
from cepdiff.networks.mlp import JointMLP, present


class EnergyMLP(nn.Module):
    """The recipe's energy network: an MLP on (x_t, Fourier(t), s).

    x (..., A), t (...), condition (..., S) with broadcasting leading axes -> logits (...).
    """

    def __init__(
        self,
        condition_size: int,
        data_size: int,
        hidden: Sequence[int] = (256, 256, 256, 256),
        time_features: int = 32,
        activation: str = "silu",
        fourier_scale: float = 30.0,
    ) -> None:
        super().__init__()
        self.time = nn.Sequential(
            FourierFeatures(time_features, fourier_scale), nn.Linear(time_features, time_features)
        )
        self.net = JointMLP([n for n in (data_size, time_features, condition_size) if n], hidden, 1, activation)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        logits: Tensor = self.net(*present(x, self.time(t), condition))
        return logits.squeeze(-1)
