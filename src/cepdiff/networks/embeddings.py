"""Fourier embeddings of the diffusion time, and of positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """Gaussian Fourier features (Tancik et al. 2020): [sin(2 pi W v), cos(2 pi W v)], W ~ N(0, scale²), fixed.

    `size` is even. Maps a time (...) or, with `input_size`, a vector (..., input_size) to (..., size).
    """

    frequencies: Tensor

    def __init__(self, size: int = 32, scale: float = 30.0, input_size: int | None = None) -> None:
        super().__init__()
        shape = (size // 2,) if input_size is None else (input_size, size // 2)
        self.register_buffer("frequencies", torch.randn(shape) * scale)

    def forward(self, v: Tensor) -> Tensor:
        phases = v.unsqueeze(-1) * self.frequencies if self.frequencies.ndim == 1 else v @ self.frequencies
        angles = 2.0 * math.pi * phases
        return torch.cat([angles.sin(), angles.cos()], -1)
