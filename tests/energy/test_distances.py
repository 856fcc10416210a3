"""Distances between samples against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from cepdiff.energy.distances import energy_distance, noise_floor, sliced_wasserstein
from cepdiff.errors import ConfigError, DataError

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
DISTANCES: list[Distance] = [sliced_wasserstein, energy_distance]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("distance", DISTANCES)
class TestBothDistances:
    def test_symmetric_and_positive(self, distance: Distance) -> None:
        x, y = normal(200, 3), 1.3 * normal(200, 3, seed=1)
        assert distance(x, y).item() == pytest.approx(distance(y, x).item(), rel=1e-12)
        assert distance(x, y).item() > 0.05

    def test_zero_for_equal_samples_in_any_order(self, distance: Distance) -> None:
        for seed in range(10):
            x = normal(300, 2, seed=seed)
            assert distance(x, x.clone()).item() == 0.0
            assert distance(x, x.flip(0)).item() == pytest.approx(0.0, abs=1e-7)  # √ of rounding error, of either sign

    def test_scales_with_the_samples_and_ignores_where_they_are(self, distance: Distance) -> None:
        """Expanding |x - y|² would not survive the offset."""
        x, y = normal(150, 2), normal(150, 2, seed=1) + 0.2
        near = distance(x, y).item()
        exponent = 0.5 if distance is energy_distance else 1.0
        assert distance(9.0 * x, 9.0 * y).item() == pytest.approx(9.0**exponent * near, rel=1e-12)
        assert distance(x + 1e5, y + 1e5).item() == pytest.approx(near, rel=1e-8)

    def test_float32_samples_cost_no_more_than_their_own_rounding(self, distance: Distance) -> None:
        x, y = normal(200, 2).float(), (normal(200, 2, seed=1) + 0.1).float()
        result = distance(x, y)
        assert result.shape == ()
        assert result.dtype == torch.float64
        assert result.item() == distance(x.double(), y.double()).item()

    def test_blocks_do_not_matter(self, distance: Distance) -> None:
        x, y = normal(64, 3), normal(64, 3, seed=1)
        whole = distance(x, y).item()
        for block_size in (1, 64, 100, 1000):
            assert distance(x, y, block_size=block_size).item() == pytest.approx(whole, rel=1e-12)  # type: ignore[call-arg]

    @pytest.mark.parametrize(
        ("x", "y"),
        [((5,), (5,)), ((5, 2), (5, 3)), ((0, 2), (0, 2)), ((5, 0), (5, 0)), ((1, 5, 2), (1, 5, 2))],
        ids=str,
    )
    def test_shapes_that_are_no_samples(self, distance: Distance, x: tuple[int, ...], y: tuple[int, ...]) -> None:
        with pytest.raises(DataError, match=r"samples of shapes \(.*expected \(N, D\) and \(M, D\)"):
            distance(torch.zeros(x), torch.zeros(y))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_values_that_are_not_finite(self, distance: Distance, value: float) -> None:
        broken = normal(10, 2)
        broken[3:5, 1] = value
        with pytest.raises(DataError, match="2 rows of the second sample"):
            distance(normal(10, 2), broken)
        with pytest.raises(DataError, match="2 rows of the first sample"):
            distance(broken, normal(10, 2))


def test_sliced_wasserstein_in_one_dimension_is_exact() -> None:
    x = normal(101, 1)
    assert sliced_wasserstein(x, x.flip(0) + 0.7).item() == pytest.approx(0.7, rel=1e-12)
    assert sliced_wasserstein(x, 3.0 * x).item() == pytest.approx(2.0 * x.square().mean().sqrt().item(), rel=1e-12)
    points, others = torch.tensor([[3.0], [0.0], [1.0]]), torch.tensor([[5.0], [1.0], [-2.0]])
    assert sliced_wasserstein(points, others).item() == pytest.approx(math.sqrt((2**2 + 0 + 2**2) / 3), rel=1e-12)


@pytest.mark.parametrize("size", [2, 5])
def test_sliced_wasserstein_of_a_shift_and_of_a_scale(size: int) -> None:
    """Over the sphere the mean of (θ·v)² is |v|² / D: a shift v has distance |v|/√D; x and 2x have RMS / √D."""
    x, shift = normal(50, size), normal(size, seed=1)
    many = partial(sliced_wasserstein, num_projections=40_000)
    assert many(x, x + shift).item() == pytest.approx(shift.norm().item() / math.sqrt(size), rel=0.01)
    root_mean_square = x.square().sum(-1).mean().sqrt().item()
    assert many(x, 2.0 * x).item() == pytest.approx(root_mean_square / math.sqrt(size), rel=0.01)


def test_directions_are_a_function_of_size_and_seed() -> None:
    x, y = normal(40, 2), normal(40, 2, seed=1)
    torch.manual_seed(1)
    first = sliced_wasserstein(x, y, 8)
    torch.manual_seed(2)
    assert torch.equal(first, sliced_wasserstein(x, y, 8))
    assert not torch.equal(first, sliced_wasserstein(x, y, 8, seed=1))
    # With many directions, different directions nearly agree.
    many = [sliced_wasserstein(x, y, 20_000, seed=seed).item() for seed in (0, 1)]
    assert many[0] == pytest.approx(many[1], rel=0.02)


def test_sliced_wasserstein_needs_equal_sizes_and_a_direction() -> None:
    with pytest.raises(DataError, match="samples of 4 and 5 points"):
        sliced_wasserstein(normal(4, 2), normal(5, 2))
    with pytest.raises(ConfigError, match="num_projections is 0"):
        sliced_wasserstein(normal(4, 2), normal(4, 2), num_projections=0)


def test_energy_distance_by_hand() -> None:
    x, y = normal(7, 3).tolist(), normal(4, 3, seed=1).tolist()

    def mean(first: list[list[float]], second: list[list[float]]) -> float:
        return sum(math.dist(a, b) for a in first for b in second) / (len(first) * len(second))

    expected = math.sqrt(2 * mean(x, y) - mean(x, x) - mean(y, y))
    assert energy_distance(torch.tensor(x), torch.tensor(y)).item() == pytest.approx(expected, rel=1e-6)
    assert energy_distance(torch.zeros(3, 2), torch.tensor([[3.0, 4.0]])).item() == pytest.approx(math.sqrt(10.0))


def test_energy_distance_in_one_dimension_is_that_of_the_distributions() -> None:
    """Its square is 2 ∫ (F - G)² over the empirical CDFs (Székely & Rizzo 2013)."""
    x, y = normal(300), 0.4 + 1.5 * normal(200, seed=1)
    steps = torch.cat([x, y]).sort().values
    gap = (x.unsqueeze(-1) <= steps).double().mean(0) - (y.unsqueeze(-1) <= steps).double().mean(0)
    expected = (2 * (gap[:-1].square() * steps.diff()).sum()).sqrt().item()
    assert energy_distance(x.unsqueeze(-1), y.unsqueeze(-1)).item() == pytest.approx(expected, rel=1e-9)


def test_energy_distance_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = normal(300), 0.4 + 1.5 * normal(200, seed=1)
    expected = float(stats.energy_distance(x.numpy(), y.numpy()))
    assert energy_distance(x.unsqueeze(-1), y.unsqueeze(-1)).item() == pytest.approx(expected, rel=1e-9)


def test_noise_floor_pairs_its_draws() -> None:
    asked: list[int] = []

    def draw(index: int) -> torch.Tensor:
        asked.append(index)
        return torch.full((3, 1), float(index**2))

    floor = noise_floor(sliced_wasserstein, draw, repeats=3)
    gaps = torch.tensor([1.0 - 0.0, 9.0 - 4.0, 25.0 - 16.0])
    assert sorted(asked) == list(range(6))
    assert floor.mean == pytest.approx(gaps.mean().item())
    assert floor.std == pytest.approx(gaps.std().item())
    with pytest.raises(ConfigError, match="repeats is 1"):
        noise_floor(sliced_wasserstein, draw, repeats=1)


@pytest.mark.parametrize("distance", [partial(sliced_wasserstein, num_projections=32), energy_distance])
def test_noise_floor_of_gaussians_shrinks_like_the_root_of_the_size(distance: Distance) -> None:
    small, large = (
        noise_floor(distance, lambda index, n=n: normal(n, 2, seed=index), repeats=40).mean  # type: ignore[misc]
        for n in (100, 1600)
    )
    assert small / large == pytest.approx(4.0, rel=0.15)


def test_noise_floor_of_the_energy_distance_is_known() -> None:
    """Its mean square is 2 E|X-X'| / n, which is 2 √π / n for a 2-D standard normal."""
    n = 200
    squares = noise_floor(lambda x, y: energy_distance(x, y).square(), lambda index: normal(n, 2, seed=index), 200)
    assert squares.mean == pytest.approx(2 * math.sqrt(math.pi) / n, abs=4 * squares.std / math.sqrt(200))
    assert squares.std < squares.mean
