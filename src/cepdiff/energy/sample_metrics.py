"""Distances of a model's samples from real ones: in a feature space, and on the circle of hues.

Features (N, D) come from the caller's network. Computed in float64, in blocks of bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cepdiff.energy.distances import BLOCK, NoiseFloor, checked_samples, noise_floor
from cepdiff.energy.support_distance import pairwise_distance
from cepdiff.errors import ConfigError, DataError
from cepdiff.randomness import generator


class PrecisionRecall(NamedTuple):
    """Share of fake samples that look real, and share of real samples that fake ones cover, in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density (about 1 for exact samples, no upper bound) and coverage (in [0, 1])."""

    density: float
    coverage: float


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, block_size: int = BLOCK) -> PrecisionRecall:
    """Improved precision and recall of `fake` (M, D) against `real` (N, D) (Kynkäänniemi et al. 2019).

    A sample's ball reaches to its k-th nearest neighbour in its own set. Precision is the share of fake samples inside
    a real sample's ball, recall the share of real samples inside a fake sample's ball. Raises DataError if shapes do
    not fit or a value is not finite; ConfigError if k is not below both N and M.
    """
    real, fake = checked_samples(real, fake)
    looks_real = torch.cat([inside.any(-1) for inside in _inside_balls(fake, real, k, block_size)])
    covered = torch.cat([inside.any(-1) for inside in _inside_balls(real, fake, k, block_size)])
    return PrecisionRecall(looks_real.double().mean().item(), covered.double().mean().item())


def density_coverage(real: Tensor, fake: Tensor, k: int = 5, block_size: int = BLOCK) -> DensityCoverage:
    """Density and coverage of `fake` (M, D) against `real` (N, D) (Naeem et al. 2020), less sensitive to outliers.

    Density is the mean number of real balls around a fake sample, divided by k; coverage is the share of real samples
    whose ball holds a fake one. Exact samples have a coverage of about 1 - 2^-k if M = N. Balls and errors as in
    `precision_recall`.
    """
    real, fake = checked_samples(real, fake)
    hits = torch.zeros(len(real), dtype=torch.int64, device=real.device)
    for inside in _inside_balls(fake, real, k, block_size):
        hits += inside.sum(0)
    return DensityCoverage(hits.sum().item() / (k * len(fake)), (hits > 0).double().mean().item())


def frechet_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Squared Fréchet distance between the Gaussians fitted to `real` (N, D) and `fake` (M, D) -> ().

    |m - m'|² + tr(C + C' - 2 (C C')^½) (Heusel et al. 2017; FID with Inception's features). With C = R^T R from a QR
    decomposition, the trace of the root is the sum of the singular values of R R'^T, which avoids a matrix root and its
    large rounding errors for singular C. Raises DataError if shapes do not fit, a value is not finite or a set has
    fewer than two samples.
    """
    real, fake = checked_samples(real, fake)
    if min(len(real), len(fake)) < 2:
        raise DataError(f"sets of {len(real)} and {len(fake)} samples; a covariance needs at least 2")
    roots = [
        torch.linalg.qr(features - features.mean(0), mode="r").R / (len(features) - 1) ** 0.5
        for features in (real, fake)
    ]
    traces = sum(root.square().sum() for root in roots)
    shift = (real.mean(0) - fake.mean(0)).square().sum()
    distance: Tensor = shift + traces - 2.0 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return distance.clamp(min=0.0)  # only rounding can make it negative


def circular_wasserstein(
    x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> Tensor:
    """Wasserstein-1 distance between two samples on a circle of circumference 1 (hues), in [0, 0.5] -> () in float64.

    Exact: the integral of |F - G - c| over the circle, where F and G are the distribution functions and c the median of
    F - G (Rabin, Delon & Gousseau 2011, "Transportation distances on the circle"). `x` and `y`, of any shape, are taken
    modulo 1; weights have the same shape, None for equal ones: a histogram is its bins' centres with weights. Raises
    DataError if a value is not finite, a weight is negative, or no weight is positive.
    """
    x, masses = _circular(x, x_weights, "first")
    y, other_masses = _circular(y, y_weights, "second")
    positions, order = torch.cat([x, y]).sort()
    difference = torch.cat([masses, -other_masses])[order].cumsum(0)  # F - G from each position to the next
    gaps = torch.cat([positions[1:], positions[:1] + 1.0]) - positions
    ranks = difference.argsort()
    median = difference[ranks[torch.searchsorted(gaps[ranks].cumsum(0), 0.5)]]
    return (gaps * (difference - median).abs()).sum()


def wasserstein_1(x: Tensor, y: Tensor) -> Tensor:
    """Wasserstein-1 distance of two samples (N,) of numbers of the same size -> ()."""
    return (x.sort().values - y.sort().values).abs().mean()


def image_hues(images: Tensor) -> Tensor:
    """One hue in [0, 1) per image of `images` (N, 3, H, W) in [-1, 1] -> (N,).

    The angle of the sum over pixels of the colours' projections on the hue plane, whose lengths are their chromas:
    black and grey pixels do not count. 0 for a grey image.
    """
    red, green, blue = ((images.double() + 1.0) / 2.0).unbind(1)
    x = (red - (green + blue) / 2.0).sum((-2, -1))
    y = (3.0**0.5 / 2.0 * (green - blue)).sum((-2, -1))
    return torch.remainder(torch.atan2(y, x) / (2.0 * math.pi), 1.0)


def resample(values: Tensor, weights: Tensor, size: int, seed: int, index: int) -> Tensor:
    """Draw `size` rows of `values` (N, ...) by `weights` (N,), with replacement: exp(-beta E) reweights q to p.

    Determined by the arguments; another `index` draws an independent sample. Raises DataError for invalid weights.
    """
    if weights.shape != values.shape[:1] or not _are_weights(weights):
        raise DataError(
            f"weights {tuple(weights.shape)} of {len(values)} rows; expected one per row, finite, 0 or more, not all 0"
        )
    draws = generator(seed, "resample", index)
    return values[torch.multinomial(weights.double().cpu(), size, replacement=True, generator=draws).to(values.device)]


def reweighted_floor(
    distance: Callable[[Tensor, Tensor], Tensor],
    values: Tensor,
    weights: Tensor,
    size: int,
    seed: int,
    repeats: int = 8,
) -> NoiseFloor:
    """`noise_floor` of `distance` between independent `resample`s of `size` rows, indices 0 ... 2 repeats - 1."""
    return noise_floor(distance, lambda index: resample(values, weights, size, seed, index), repeats)


def _inside_balls(points: Tensor, centres: Tensor, k: int, block_size: int) -> Iterator[Tensor]:
    """Yield blocks of rows of a table (P, C): True where `points` (P, D) are in the balls of `centres` (C, D).

    Balls are closed: copies of a sample are in its ball of radius 0.
    """
    smaller = min(len(points), len(centres))
    if not 1 <= k < smaller:
        raise ConfigError(f"k is {k}; expected at least 1 and less than the {smaller} samples of a set")
    rows = max(1, block_size // len(centres))
    # k + 1, because the nearest is the sample itself.
    radii = torch.cat([pairwise_distance(some, centres).kthvalue(k + 1).values for some in torch.split(centres, rows)])
    for some in torch.split(points, rows):
        yield pairwise_distance(some, centres) <= radii


def _circular(values: Tensor, weights: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """Positions (N,) in [0, 1) and masses (N,) that sum to one, in float64."""
    weights = torch.ones_like(values) if weights is None else weights
    if weights.shape != values.shape or not bool(values.isfinite().all()) or not _are_weights(weights):
        raise DataError(
            f"the {name} sample {tuple(values.shape)} with weights {tuple(weights.shape)} is invalid; "
            "expected finite values, and weights of the same shape, finite, 0 or more, not all 0"
        )
    masses = weights.double().flatten()
    return values.double().flatten().remainder(1.0), masses / masses.sum()


def _are_weights(weights: Tensor) -> bool:
    """True if all are finite and 0 or more, and not all are 0."""
    return bool((weights.isfinite() & (weights >= 0.0)).all() & (weights > 0.0).any())
