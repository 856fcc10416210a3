"""Distances between two samples, and how far apart two exact samples are.

Both distances are zero only for equal densities. Computed in float64 whatever the samples' type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cepdiff.energy.support_distance import pairwise_distance
from cepdiff.errors import ConfigError, DataError
from cepdiff.randomness import generator

BLOCK = 1 << 19  # float64 numbers held at a time, 4 MiB: staying in the cache is also faster


def sliced_wasserstein(
    x: Tensor, y: Tensor, num_projections: int = 256, seed: int = 0, block_size: int = BLOCK
) -> Tensor:
    """Sliced Wasserstein-2 distance between two samples of equal size; `x`, `y` (N, D) -> () in float64.

    √ of the mean over random unit directions of the squared W2 in 1-D, where sorting pairs the points (Bonneel et
    al. 2015). The directions depend only on (D, seed). A shift by v has distance |v|/√D. Raises DataError if sizes
    differ, shapes do not fit or a value is not finite; ConfigError for fewer than one projection.
    """
    x, y = checked_samples(x, y)
    if len(x) != len(y):
        raise DataError(f"samples of {len(x)} and {len(y)} points; the sliced Wasserstein distance needs equal sizes")
    if num_projections < 1:
        raise ConfigError(f"num_projections is {num_projections}; expected at least 1")
    directions = _unit_directions(num_projections, x.shape[-1], seed).to(x.device)
    squares = [
        # (P, D) and (N, D) -> (P, N); points are sorted along each direction
        ((some @ x.T).sort(-1).values - (some @ y.T).sort(-1).values).square().mean(-1)
        for some in torch.split(directions, max(1, block_size // len(x)))
    ]
    return torch.cat(squares).mean().sqrt()


def energy_distance(x: Tensor, y: Tensor, block_size: int = BLOCK) -> Tensor:
    """√(2 E|X-Y| - E|X-X'| - E|Y-Y'|) over all pairs, self-pairs included; `x` (N, D), `y` (M, D) -> () in float64.

    The V-statistic of Székely & Rizzo 2013: never negative, and with mean square E|X-X'| (1/N + 1/M) if both samples
    come from one density. Works in blocks of about `block_size` pairs. Raises DataError if shapes do not fit or a value
    is not finite.
    """
    x, y = checked_samples(x, y)
    between = _mean_distance(x, y, block_size)
    within = _mean_distance(x, x, block_size) + _mean_distance(y, y, block_size)
    return (2.0 * between - within).clamp(min=0.0).sqrt()  # only rounding can make it negative


class NoiseFloor(NamedTuple):
    """Mean and standard deviation of a distance between two exact samples: no sampler can measurably do better."""

    mean: float
    std: float


def noise_floor(
    distance: Callable[[Tensor, Tensor], Tensor], draw: Callable[[int], Tensor], repeats: int = 8
) -> NoiseFloor:
    """`distance` between independent exact samples `draw(2r)` and `draw(2r + 1)`, over r = 0...repeats-1.

    `draw(index)` returns a sample (N, D), independent per index. Raises ConfigError for fewer than two repeats.
    """
    if repeats < 2:
        raise ConfigError(f"repeats is {repeats}; a standard deviation needs at least 2")
    distances = torch.stack([distance(draw(2 * r), draw(2 * r + 1)).double() for r in range(repeats)])
    return NoiseFloor(distances.mean().item(), distances.std().item())


def _unit_directions(num_directions: int, size: int, seed: int) -> Tensor:
    """Directions (P, D) in float64, uniform on the unit sphere, determined by the arguments."""
    numbers = generator(seed, "directions", size)
    directions = torch.randn(num_directions, size, generator=numbers, dtype=torch.float64)
    return torch.nn.functional.normalize(directions, dim=-1)


def _mean_distance(x: Tensor, y: Tensor, block_size: int) -> Tensor:
    """Mean of |x_i - y_j| over all pairs; `x` (N, D), `y` (M, D) -> ()."""
    total = x.new_zeros(())
    for some in torch.split(x, max(1, block_size // len(y))):
        total += pairwise_distance(some, y).sum()
    return total / (len(x) * len(y))


def checked_samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both samples in float64; raises DataError unless both are finite and in the same space."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[-1] != y.shape[-1] or 0 in (*x.shape, *y.shape):
        raise DataError(f"samples of shapes {tuple(x.shape)} and {tuple(y.shape)}; expected (N, D) and (M, D)")
    for name, sample in (("first", x), ("second", y)):
        bad_rows = int((~sample.isfinite()).any(-1).sum())
        if bad_rows:
            raise DataError(f"{bad_rows} rows of the {name} sample hold NaN or infinity; expected finite values")
    return x.double(), y.double()
