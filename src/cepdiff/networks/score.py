"""Noise prediction networks of the behavior model: eps_pred(x_t, t, s)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cepdiff.errors import ConfigError
from cepdiff.networks.embeddings import FourierFeatures
from cepdiff.networks.mlp import JointLinear, JointMLP, OutputLinear, present, residual_block
from cepdiff.ranges import Blocks, Even, EvenOrNone, Positive, Width


class ResidualBlock(nn.Module):
    """Two SiLU layers with the embedding added between them, and a (projected) skip connection."""

    def __init__(self, in_size: int, out_size: int, embedding_size: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(in_size, out_size), nn.SiLU())
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding_size, out_size))
        self.second = nn.Sequential(nn.Linear(out_size, out_size), nn.SiLU())
        self.skip = nn.Linear(in_size, out_size) if in_size != out_size else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`embedding` (..., embedding_size) has already been through its SiLU, once for all blocks."""
        hidden: Tensor = self.first(x) + self.embed[1](embedding)
        output: Tensor = self.second(hidden) + self.skip(x)
        return output


class ResidualUNet(nn.Module):
    """The recipe's residual MLP U-Net (official code of Lu et al. 2023), as a noise predictor.

    Input x (..., A), t (...), condition (..., S); leading axes broadcast, so that K actions of one state share its
    embedding and a common time is embedded once. Output (..., A).

    Args:
        condition_size: S, or 0 for an unconditional model.
        data_size: A.
        widths: widths of the three levels, used on the way down and up.
        time_features: number of Fourier features of t, even.
        condition_features: size of the embedded condition.
        embedding_size: size of the joint embedding that every block receives.
    """

    def __init__(
        self,
        condition_size: int,
        data_size: int,
        widths: Sequence[Width] = (512, 256, 128),
        time_features: Even = 32,
        condition_features: Width = 32,
        embedding_size: Width = 128,
        fourier_scale: Positive = 30.0,
    ) -> None:
        super().__init__()
        if len(widths) != 3:
            raise ConfigError(f"widths is {list(widths)}; expected three widths")
        features = FourierFeatures(time_features, fourier_scale)
        self.time = nn.Sequential(features, nn.Linear(time_features, time_features))
        self.condition = (
            nn.Sequential(nn.Linear(condition_size, condition_features), nn.SiLU()) if condition_size else None
        )
        joint = [condition_features, time_features] if condition_size else [time_features]
        self.joint = JointLinear(joint, embedding_size)
        self.embedding = nn.Sequential(nn.SiLU(), nn.Linear(embedding_size, embedding_size))
        wide, middle, narrow = widths
        down, up = pairwise((data_size, *widths)), ((2 * narrow, middle), (2 * middle, wide))
        self.down = nn.ModuleList(ResidualBlock(i, o, embedding_size) for i, o in down)
        self.bottom = ResidualBlock(narrow, narrow, embedding_size)
        self.up = nn.ModuleList(ResidualBlock(i, o, embedding_size) for i, o in up)
        # No `OutputLinear`: nothing cancels here, and float32 in this wide layer would cost a tenth of a step.
        self.output = nn.Linear(2 * wide, data_size)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        embedded_condition = None if self.condition is None else self.condition(condition)
        embedding = nn.functional.silu(self.embedding(self.joint(*present(embedded_condition, self.time(t)))))
        skips = []
        hidden = x
        for block in self.down:
            hidden = block(hidden, embedding)
            skips.append(hidden)
        hidden = self.bottom(hidden, embedding)
        for block in self.up:
            hidden = block(torch.cat([skips.pop(), hidden], -1), embedding)
        output: Tensor = self.output(torch.cat([skips.pop(), hidden], -1))
        return output


class MLPScore(nn.Module):
    """A plain MLP on (x_t, Fourier(t), s): small and fast, for small problems. Shapes as in `ResidualUNet`."""

    def __init__(
        self,
        condition_size: int,
        data_size: int,
        hidden: Sequence[Width] = (256, 256, 256),
        time_features: Even = 32,
        activation: str = "silu",
        fourier_scale: Positive = 1.0,
    ) -> None:
        super().__init__()
        self.time = FourierFeatures(time_features, fourier_scale)
        self.net = JointMLP([n for n in (data_size, time_features, condition_size) if n], hidden, data_size, activation)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        output: Tensor = self.net(*present(x, self.time(t), condition))
        return output


class ResidualMLPScore(nn.Module):
    """A residual MLP: (x_t, Fourier(t), s) into `width`, then `depth` pre-norm blocks. Shapes as in `ResidualUNet`.

    The condition has its own two layers, which separate a wide range of states before mixing.

    Args:
        condition_size: S, or 0 for an unconditional model.
        data_size: A.
        width: width of all layers.
        depth: number of residual blocks, of two layers each.
        time_features: number of Fourier features of t, even.
        fourier_scale: standard deviation of their frequencies.
        position_features: number of additional Fourier features of x_t, even, 0 for none. In few dimensions they
            resolve structures that are thin relative to the data's range, which plain inputs blur.
        position_scale: standard deviation of their frequencies, in periods per unit of x.
    """

    def __init__(
        self,
        condition_size: int,
        data_size: int,
        width: Width = 256,
        depth: Blocks = 3,
        time_features: Even = 32,
        fourier_scale: Positive = 1.0,
        position_features: EvenOrNone = 0,
        position_scale: Positive = 1.0,
    ) -> None:
        super().__init__()
        self.time = FourierFeatures(time_features, fourier_scale)
        self.position = FourierFeatures(position_features, position_scale, data_size) if position_features else None
        self.condition = (
            nn.Sequential(nn.Linear(condition_size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
            if condition_size
            else None
        )
        sizes = (data_size, position_features, time_features, width if condition_size else 0)
        self.joint = JointLinear([size for size in sizes if size], width)
        self.blocks = nn.ModuleList(residual_block(width) for _ in range(depth))
        self.output = nn.Sequential(nn.SiLU(), OutputLinear(width, data_size))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        embedded_condition = None if self.condition is None else self.condition(condition)
        position = None if self.position is None else self.position(x)
        hidden = self.joint(*present(x, position, self.time(t), embedded_condition))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        output: Tensor = self.output(hidden)
        return output
