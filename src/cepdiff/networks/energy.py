"""Energy networks of the guidance stage: logits f(x_t, t, s)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.networks.embeddings import FourierFeatures
from cepdiff.networks.mlp import JointLinear, JointMLP, OutputLinear, present, residual_block
from cepdiff.ranges import Blocks, Even, EvenOrNone, Positive, Width


class EnergyMLP(nn.Module):
    """The recipe's energy network: an MLP on (x_t, Fourier(t), s).

    x (..., A), t (...), condition (..., S) with broadcasting leading axes -> logits (...).
    """

    def __init__(
        self,
        condition_size: int,
        data_size: int,
        hidden: Sequence[Width] = (256, 256, 256, 256),
        time_features: Even = 32,
        activation: str = "silu",
        fourier_scale: Positive = 30.0,
    ) -> None:
        super().__init__()
        features = FourierFeatures(time_features, fourier_scale)
        self.time = nn.Sequential(features, nn.Linear(time_features, time_features))
        self.net = JointMLP([n for n in (data_size, time_features, condition_size) if n], hidden, 1, activation)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        logits: Tensor = self.net(*present(x, self.time(t), condition))
        return logits.squeeze(-1)


class ResidualEnergy(nn.Module):
    """A residual MLP on (alpha_t x_t, Fourier(lambda_t), s), whose gradient has the right limit for t -> 1.

    Since -∇E_t = alpha_t / sigma_t² (E_p[x_0|x_t] - E_q[x_0|x_t]), the gradient vanishes like alpha_t where x_t is all
    noise; so does that of any function of alpha_t x_t. Half log-SNR lambda_t resolves small times better than t.
    Shapes as in `EnergyMLP`.

    Args:
        condition_size: S, or 0.
        data_size: A.
        width: width of all layers.
        depth: number of residual blocks, of two layers each.
        time_features: number of Fourier features of lambda_t, even.
        position_features: number of additional Fourier features of alpha_t x_t, even, 0 for none. In few dimensions
            they help to separate neighbouring points, which plain inputs in [-1, 1] learn slowly.
        position_scale: standard deviation of their frequencies, in periods per unit of x.
        schedule: noise schedule of alpha_t and lambda_t; None is `LinearVP()`.
    """

    def __init__(
        self,
        condition_size: int,
        data_size: int,
        width: Width = 128,
        depth: Blocks = 2,
        time_features: Even = 32,
        position_features: EvenOrNone = 0,
        position_scale: Positive = 1.0,
        schedule: NoiseSchedule | None = None,
    ) -> None:
        super().__init__()
        self.schedule = schedule or LinearVP()
        self.time = FourierFeatures(time_features, scale=0.1)  # lambda_t spans about 10
        self.position = FourierFeatures(position_features, position_scale, data_size) if position_features else None
        sizes = (data_size, position_features, time_features, condition_size)
        self.joint = JointLinear([size for size in sizes if size], width)
        self.blocks = nn.ModuleList(residual_block(width) for _ in range(depth))
        self.output = nn.Sequential(nn.SiLU(), OutputLinear(width, 1))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        signal = self.schedule.alpha(t).unsqueeze(-1) * x
        position = None if self.position is None else self.position(signal)
        hidden = self.joint(*present(signal, position, self.time(self.schedule.lam(t)), condition))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits: Tensor = self.output(hidden)
        return logits.squeeze(-1)
