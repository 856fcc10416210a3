"""Conversion of flat samples, A = C * H * W values with channels first, to square images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cepdiff.errors import ConfigError


def square_side(data_size: int, channels: int) -> int:
    """Side H = W of images with `channels` channels and `data_size` values; raises ConfigError if there is none."""
    side = math.isqrt(data_size // channels)
    if channels * side * side != data_size or not side:
        raise ConfigError(f"{data_size} values do not form a square image of {channels} channels: check channels")
    return side


def refuse_condition(condition_size: int, name: str) -> None:
    """Raise ConfigError for data with a condition, which image networks do not take."""
    if condition_size:
        raise ConfigError(f"{name} takes no condition, but the data's observations have {condition_size} values")


def as_images(x: Tensor, t: Tensor, channels: int) -> tuple[Tensor, Tensor, torch.Size]:
    """Return images (N, C, H, W), their times (N,) and the leading axes (...) of N, from `x` (..., A) and `t` (...).

    The leading axes of `x` and `t` broadcast against each other.
    """
    leading: torch.Size = torch.broadcast_shapes(x.shape[:-1], t.shape)  # type: ignore[no-untyped-call]
    side = square_side(x.shape[-1], channels)
    images = x.expand(*leading, x.shape[-1]).reshape(-1, channels, side, side)  # (..., A) -> (N, C, H, W)
    return images, t.expand(leading).reshape(-1), leading
