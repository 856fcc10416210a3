"""Embeddings of the diffusion time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """Gaussian Fourier features of t (Tancik et al. 2020): [sin(2 pi w t), cos(2 pi w t)], w ~ N(0, scale²), fixed.

    `size` outputs, even. Shape (...) -> (..., size).
    """

    frequencies: Tensor

    def __init__(self, size: int = 32, scale: float = 30.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(size // 2) * scale)

    def forward(self, t: Tensor) -> Tensor:
        angles = 2.0 * math.pi * t.unsqueeze(-1) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)
