"""Metrics of samples against closed forms, brute force and the values expected of exact samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from cepdiff.energy.distances import NoiseFloor
from cepdiff.energy.sample_metrics import (
    circular_wasserstein,
    density_coverage,
    frechet_distance,
    precision_recall,
    resample,
    reweighted_floor,
)
from cepdiff.errors import ConfigError, DataError

Neighbours = Callable[..., tuple[float, float]]
both = pytest.mark.parametrize("metric", [precision_recall, density_coverage])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


# Neighbours


REAL = column(0.0, 1.0, 2.0, 10.0, 30.0)  # radius to the first neighbour: 1, 1, 1, 8, 20
FAKE = column(0.5, 2.5, 60.0)  # radii 2, 2, 57.5


def test_precision_and_recall_by_hand() -> None:
    """0.5 and 2.5 lie in real balls, 60 in none; the ball of 60 contains 10 and 30, the others 0, 1 and 2."""
    assert precision_recall(REAL, FAKE, k=1) == pytest.approx((2 / 3, 1.0))
    assert precision_recall(REAL, FAKE[:2], k=1) == pytest.approx((1.0, 3 / 5))


def test_density_and_coverage_by_hand() -> None:
    """0.5 lies in the balls of 0 and 1, 2.5 in those of 2 and 10, 60 in none; no fake point lies near 30."""
    assert density_coverage(REAL, FAKE, k=1) == pytest.approx((4 / 3, 4 / 5))


def brute_force(real: torch.Tensor, fake: torch.Tensor, k: int) -> tuple[float, float, float, float]:
    """Point by point, in plain Python."""

    def radii(points: list[list[float]]) -> list[float]:
        return [sorted(math.dist(p, other) for other in points)[k] for p in points]

    real_points, fake_points = real.tolist(), fake.tolist()
    real_radii, fake_radii = radii(real_points), radii(fake_points)
    in_real = [
        [math.dist(f, r) <= radius for r, radius in zip(real_points, real_radii, strict=True)] for f in fake_points
    ]
    in_fake = [
        [math.dist(r, f) <= radius for f, radius in zip(fake_points, fake_radii, strict=True)] for r in real_points
    ]
    return (
        sum(map(any, in_real)) / len(fake_points),
        sum(map(any, in_fake)) / len(real_points),
        sum(map(sum, in_real)) / (k * len(fake_points)),
        sum(map(any, zip(*in_real, strict=True))) / len(real_points),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block_size", [1, 100, 1 << 19])
def test_neighbours_against_brute_force_in_blocks_of_any_size(k: int, block_size: int) -> None:
    real, fake = normal(60, 3), normal(45, 3, seed=1) + 1.0
    found = precision_recall(real, fake, k, block_size) + density_coverage(real, fake, k, block_size)
    assert found == pytest.approx(brute_force(real, fake, k))
    assert 0.05 < min(found) < 0.95


@both
def test_equal_samples_and_far_ones(metric: Neighbours) -> None:
    real = normal(50, 4)
    assert metric(real, real.flip(0)) == pytest.approx((1.0 if metric is precision_recall else 6 / 5, 1.0))
    assert metric(real, real + 1e3) == (0.0, 0.0)


def test_what_the_two_kinds_of_failure_look_like() -> None:
    """One of two modes: all samples look real, half the data are missing. Noise instead of samples: none looks real."""
    real = torch.cat([normal(200, 2), normal(200, 2, seed=1) + 50.0])
    half = precision_recall(real, normal(400, 2, seed=2))
    assert half.precision > 0.9
    assert half.recall == pytest.approx(0.5, abs=0.05)
    assert precision_recall(real, 25.0 + normal(400, 2, seed=3)).precision == 0.0


def test_exact_samples_reach_the_expected_density_and_coverage() -> None:
    """1 and 1 - 2^-k for any density (Naeem et al. 2020, Sec. 3.3), so floors are known in advance."""
    found = [density_coverage(normal(300, 2, seed=2 * i), normal(300, 2, seed=2 * i + 1), k=2) for i in range(20)]
    assert sum(value.density for value in found) / 20 == pytest.approx(1.0, abs=0.03)
    assert sum(value.coverage for value in found) / 20 == pytest.approx(0.75, abs=0.02)


def test_copies_of_one_sample_lie_in_their_balls_of_radius_zero() -> None:
    copies = column(0.3, 0.3, 0.3, 0.3, 5.0)
    assert precision_recall(copies, column(0.3, 0.3, 0.3, 0.3), k=3) == (1.0, 4 / 5)


@both
@pytest.mark.parametrize("k", [0, -1, 4, 9])
def test_a_number_of_neighbours_that_is_not_there(metric: Neighbours, k: int) -> None:
    for real, fake in ((normal(4, 2), normal(9, 2)), (normal(9, 2), normal(4, 2))):
        with pytest.raises(ConfigError, match=f"k is {k}; expected at least 1 and less than the 4 samples"):
            metric(real, fake, k=k)


@pytest.mark.parametrize("metric", [precision_recall, density_coverage, frechet_distance])
def test_features_that_are_none(metric: Callable[..., object]) -> None:
    with pytest.raises(DataError, match=r"samples of shapes \(9, 2\) and \(9, 3\)"):
        metric(normal(9, 2), normal(9, 3))
    broken = normal(9, 2)
    broken[4, 0] = math.nan
    with pytest.raises(DataError, match="1 rows of the second sample"):
        metric(normal(9, 2), broken)


# Fréchet distance


def with_moments(mean: torch.Tensor, covariance: torch.Tensor, n: int = 40, seed: int = 0) -> torch.Tensor:
    """Points (n, D) with exactly these sample moments."""
    points = normal(n, len(mean), seed=seed)
    white = math.sqrt(n - 1) * torch.linalg.qr(points - points.mean(0)).Q
    return mean + white @ torch.linalg.cholesky(covariance).T


def test_frechet_of_diagonal_gaussians() -> None:
    """Σ (m - m')² + (s - s')²."""
    m = torch.tensor([[0.0, 1.0, -2.0], [0.5, 1.0, 0.0]], dtype=torch.float64)
    s = torch.tensor([[1.0, 2.0, 0.5], [3.0, 2.0, 0.1]], dtype=torch.float64)
    first, second = (with_moments(m[i], s[i].square().diag(), seed=i) for i in range(2))
    expected = (m[0] - m[1]).square().sum() + (s[0] - s[1]).square().sum()
    assert frechet_distance(first, second).item() == pytest.approx(float(expected), rel=1e-10)


def test_frechet_of_gaussians_whose_covariances_do_not_commute() -> None:
    """Against the eigenvalues of C C', which are real and positive although C C' is not symmetric."""
    roots = normal(2, 4, 4)
    first, second = (with_moments(normal(4, seed=i), roots[i] @ roots[i].T, seed=i) for i in range(2))
    covariances = [points.T.cov() for points in (first, second)]
    cross = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.sqrt().sum()
    expected = (first.mean(0) - second.mean(0)).square().sum() + sum(c.trace() for c in covariances) - 2.0 * cross
    assert frechet_distance(first, second).item() == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(second, first).item() == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("n", [5, 200])
def test_frechet_of_fewer_samples_than_features_keeps_its_digits(n: int) -> None:
    """Singular covariances: zero between equal samples, and a shift is exact."""
    x = normal(n, 20)
    assert frechet_distance(x, x.flip(0)).item() == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(x, x + 1e-4).item() == pytest.approx(20e-8, rel=1e-4)
    scaled = x.mean(0) + 3.0 * (x - x.mean(0))
    assert frechet_distance(x, scaled).item() == pytest.approx(4.0 * float(x.T.cov().trace()), rel=1e-10)


def test_frechet_needs_two_samples() -> None:
    with pytest.raises(DataError, match="sets of 1 and 5 samples; a covariance needs at least 2"):
        frechet_distance(normal(1, 2), normal(5, 2))


# The circle


def points(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [(0.1, 0.3, 0.2), (0.05, 0.95, 0.1), (0.0, 0.5, 0.5), (0.2, 0.2, 0.0), (-0.9, 3.3, 0.2)],
)
def test_two_points_on_the_circle(x: float, y: float, expected: float) -> None:
    assert circular_wasserstein(points(x), points(y)).item() == pytest.approx(expected, abs=1e-12)


def test_a_point_against_the_uniform_density() -> None:
    """The mean distance to a point is 1/4."""
    grid = (torch.arange(1000).double() + 0.5) / 1000
    assert circular_wasserstein(points(0.123), grid).item() == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_circle_against_all_cyclic_matchings(seed: int) -> None:
    """For equally many points on a circle, the best matching is one of the N cyclic ones of the sorted points."""
    x, y = uniform(17, seed=seed).square(), uniform(17, seed=seed + 100)
    apart = (x.sort().values - torch.stack([y.sort().values.roll(i) for i in range(17)])).abs()
    best = torch.minimum(apart, 1.0 - apart).mean(-1).min()
    assert circular_wasserstein(x, y).item() == pytest.approx(float(best), rel=1e-12)
    assert circular_wasserstein(y, x).item() == pytest.approx(float(best), rel=1e-12)
    assert circular_wasserstein(x + 0.37, y + 0.37).item() == pytest.approx(float(best), rel=1e-9)


def test_weights_count_points() -> None:
    x, counts = uniform(6), torch.tensor([1, 3, 0, 2, 1, 5])
    y, other = uniform(4, seed=1), torch.tensor([2, 2, 1, 3])
    expected = circular_wasserstein(x.repeat_interleave(counts), y.repeat_interleave(other))
    assert circular_wasserstein(x, y, 7.0 * counts, other).item() == pytest.approx(expected.item(), rel=1e-12)
    assert circular_wasserstein(x, y.repeat_interleave(other), counts).item() == pytest.approx(expected.item())


def test_histograms_one_bin_apart() -> None:
    centres = (torch.arange(12) + 0.5) / 12
    counts = torch.tensor([0, 0, 4, 7, 2, 0, 0, 0, 0, 0, 0, 1])
    moved = circular_wasserstein(centres, centres, counts, counts.roll(1))
    assert moved.item() == pytest.approx(1 / 12, rel=1e-6)
    assert moved.dtype == torch.float64


def test_hues_of_several_pixels_are_one_sample() -> None:
    x, y = uniform(5, 4), uniform(3, 2, seed=1)
    assert circular_wasserstein(x, y).item() == circular_wasserstein(x.flatten(), y.flatten()).item()


@pytest.mark.parametrize(
    ("x", "weights"),
    [([], None), ([0.1, math.nan], None), ([0.1], [-1.0]), ([0.1], [0.0]), ([0.1, 0.2], [1.0]), ([0.1], [math.inf])],
    ids=str,
)
def test_what_is_no_sample_on_the_circle(x: list[float], weights: list[float] | None) -> None:
    given = None if weights is None else torch.tensor(weights)
    with pytest.raises(DataError, match=r"the first sample .* is invalid"):
        circular_wasserstein(torch.tensor(x), points(0.5), given)
    with pytest.raises(DataError, match=r"the second sample .* is invalid"):
        circular_wasserstein(points(0.5), torch.tensor(x), None, given)


# Reweighted data


def test_resampled_rows_are_drawn_by_weight() -> None:
    values, weights = torch.arange(4).double().unsqueeze(-1).expand(4, 2), torch.tensor([0.0, 1.0, 3.0, 4.0])
    drawn = resample(values, weights, 40_000, seed=0, index=0)
    assert drawn.shape == (40_000, 2)
    shares = torch.bincount(drawn[:, 0].long(), minlength=4) / 40_000
    assert shares.tolist() == pytest.approx([0.0, 1 / 8, 3 / 8, 1 / 2], abs=0.01)
    assert shares[0] == 0.0


def test_a_resample_is_a_function_of_seed_and_index() -> None:
    values, weights = uniform(50), uniform(50, seed=1)
    first = resample(values, weights, 20, seed=0, index=0)
    assert torch.equal(first, resample(values, weights, 20, seed=0, index=0))
    assert not torch.equal(first, resample(values, weights, 20, seed=0, index=1))
    assert not torch.equal(first, resample(values, weights, 20, seed=1, index=0))


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0], [1.0, math.nan]], ids=str)
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(DataError, match=r"weights \(.\,\) of 2 rows; expected one per row"):
        resample(torch.zeros(2), torch.tensor(weights), 5, 0, 0)


def test_the_floor_is_that_of_two_independent_resamples() -> None:
    hues, weights = uniform(500), (-3.0 * uniform(500)).exp()
    floor = reweighted_floor(circular_wasserstein, hues, weights, 100, seed=3, repeats=4)
    draws = [resample(hues, weights, 100, 3, index) for index in range(8)]
    distances = torch.stack([circular_wasserstein(draws[2 * r], draws[2 * r + 1]) for r in range(4)])
    assert floor == NoiseFloor(distances.mean().item(), distances.std().item())
    larger = reweighted_floor(circular_wasserstein, hues, weights, 10_000, seed=3, repeats=4)
    assert larger.mean == pytest.approx(floor.mean / 10.0, rel=0.6)  # falls with the square root of the size


def test_reweighted_data_are_within_the_floor_and_the_prior_is_not() -> None:
    """The intended use: exact samples are near 1 floor, samples from q far above."""
    hues = uniform(4000)
    weights = (-8.0 * hues).exp()
    floor = reweighted_floor(circular_wasserstein, hues, weights, 1000, seed=0)
    exact = -torch.log1p(-uniform(1000, seed=5) * (1.0 - math.exp(-8.0))) / 8.0  # p(h) ∝ exp(-8 h), by inversion

    def multiple(samples: torch.Tensor) -> float:
        values = [float(circular_wasserstein(samples, resample(hues, weights, 1000, 0, i))) for i in range(8)]
        return sum(values) / 8 / floor.mean

    assert multiple(exact) < 2.0
    assert multiple(hues[:1000]) > 10.0
