"""The 2-D densities against closed forms, and rejection sampling against the exact weights."""

from __future__ import annotations

import math

import pytest
import torch

from cepdiff.data.densities.densities import CHUNK, DENSITIES, Density, find_density, tilted_sample
from cepdiff.errors import ConfigError, DataError

N = 100_000
ERRORS = 4.5  # standard errors a correct mean may be off; fixed seeds, so the tests do not flicker


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(name: str, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    points, energies = DENSITIES[name].sample(n, numbers())
    return points.double(), energies.double()


def assert_mean(values: torch.Tensor, expected: float) -> None:
    """The mean of `values` (n,) equals the expected one within its standard error."""
    error = values.std() / math.sqrt(len(values))
    assert abs(float(values.mean()) - expected) < ERRORS * float(error), (float(values.mean()), expected)


def assert_uniform(values: torch.Tensor) -> None:
    """The Kolmogorov-Smirnov statistic of `values` (n,) against uniform on [0, 1] is below its 99.98 % quantile."""
    rank = torch.arange(1, len(values) + 1) / len(values)
    gap = (values.sort().values - rank).abs().max()
    assert 0.0 <= float(values.min()) <= float(values.max()) <= 1.0
    assert float(gap) < 2.15 / math.sqrt(len(values))


def assert_shares(labels: torch.Tensor, shares: list[float], slack: float = 0.0) -> None:
    """Labels 0, 1, ... (n,) occur as often as `shares` say, within binomial errors."""
    n = len(labels)
    assert int(labels.max()) < len(shares)
    for label, share in enumerate(shares):
        found = float((labels == label).double().mean())
        assert abs(found - share) < ERRORS * math.sqrt(share * (1 - share) / n) + slack, (label, found, share)


@pytest.mark.parametrize("name", DENSITIES)
class TestEveryDensity:
    def test_shapes_types_and_range(self, name: str) -> None:
        density = DENSITIES[name]
        points, energies = density.sample(5001, numbers())
        assert density.name == name
        assert points.shape == (5001, 2)
        assert energies.shape == (5001,)
        assert points.dtype == energies.dtype == torch.float32
        assert float(energies.min()) >= 0.0
        assert float(energies.max()) <= 1.0
        # The whole range is used, so that a given beta means the same for every density.
        assert float(energies.min()) < 0.05
        assert float(energies.max()) > 0.95
        assert float(points.abs().max()) < 5.0

    def test_the_generator_alone_decides(self, name: str) -> None:
        torch.manual_seed(1)
        first = DENSITIES[name].sample(50, numbers(3))
        torch.manual_seed(2)
        again, other = DENSITIES[name].sample(50, numbers(3)), DENSITIES[name].sample(50, numbers(4))
        for a, b, c in zip(first, again, other, strict=True):
            assert torch.equal(a, b)
            assert not torch.equal(a, c)

    def test_rows_are_independent(self, name: str) -> None:
        """Rows are not sorted by component or paired: neighbours and rows half a sample apart are uncorrelated."""
        columns = torch.cat([draw(name)[0], draw(name)[1].unsqueeze(-1)], -1)
        columns = (columns - columns.mean(0)) / columns.std(0)
        for lag in (1, 2, N // 4, N // 2):
            correlation = (columns[:-lag] * columns[lag:]).mean(0)
            assert float(correlation.abs().max()) < ERRORS / math.sqrt(N - lag)

    def test_a_sample_can_be_empty(self, name: str) -> None:
        points, energies = DENSITIES[name].sample(0, numbers())
        assert points.shape == (0, 2)
        assert energies.shape == (0,)


def test_there_are_the_six_of_the_paper() -> None:
    assert list(DENSITIES) == ["swissroll", "8gaussians", "moons", "rings", "checkerboard", "2spirals"]
    assert len({density.title for density in DENSITIES.values()}) == 6


def test_swissroll() -> None:
    """∫ t cos t and ∫ t sin t over [1.5π, 4.5π] are 6π and 2; E t² is (a² + ab + b²) / 3; the noise is 1 / 5."""
    points, energies = draw("swissroll")
    assert_mean(points[:, 0], 6 * math.pi / (3 * math.pi) / 5)
    assert_mean(points[:, 1], 2 / (3 * math.pi) / 5)
    square = points.square().sum(-1)
    a, b = 1.5 * math.pi, 4.5 * math.pi
    assert_mean(square, ((a * a + a * b + b * b) / 3 + 2) / 25)
    torch.testing.assert_close(energies, (1 - square / 9).clamp(min=0.0), atol=1e-6, rtol=0)
    # Where the curve crosses the positive x axis (t = 4π), it is a band as wide as the noise.
    band = points[(points[:, 1].abs() < 0.05) & (points[:, 0] > 1.9)][:, 0]
    assert len(band) > 300
    assert float(band.mean()) == pytest.approx(4 * math.pi / 5, abs=0.05)
    assert float(band.std()) == pytest.approx(0.2, rel=0.1)


def test_eight_gaussians() -> None:
    """The first is at (0, 1), the others follow counterclockwise, and the energy falls from 1 to 0 along the way."""
    points, energies = draw("8gaussians")
    k = (7 * (1 - energies)).round().long()
    torch.testing.assert_close(energies, 1 - k / 7.0, atol=1e-6, rtol=0, check_dtype=False)
    assert_shares(k, [1 / 8] * 8)
    for component in range(8):
        angle = component * math.pi / 4
        here = points[k == component] - torch.tensor([-math.sin(angle), math.cos(angle)]) * 4 / math.sqrt(2)
        assert_mean(here[:, 0], 0.0)
        assert_mean(here[:, 1], 0.0)
        assert_mean(here.square().sum(-1), 2 * 0.5**2 / 2)
        assert_mean(here[:, 0] * here[:, 1], 0.0)
        assert_mean(here[:, 0].square() - here[:, 1].square(), 0.0)


def test_moons() -> None:
    """A half circle has mean height 2/π, and its points are at radius 1 from the centre of their own moon."""
    points, energies = draw("moons")
    assert_shares(energies.long(), [1 / 2, 1 / 2])
    assert set(energies.tolist()) == {0.0, 1.0}
    unit = (points - torch.tensor([-1.0, -0.2])) / 2
    for energy, centre, side in ((1.0, (0.0, 0.0), 1.0), (0.0, (1.0, 0.5), -1.0)):
        here = unit[energies == energy] - torch.tensor(centre)
        assert_mean(here[:, 0], 0.0)
        assert_mean(side * here[:, 1], 2 / math.pi)
        square = here.square().sum(-1)
        assert_mean(square, 1 + 2 * 0.1**2)
        assert_mean((square - 1 - 2 * 0.1**2).square(), 4 * 0.1**2 + 4 * 0.1**4)
        assert_mean(here[:, 0].square(), 1 / 2 + 0.1**2)


def test_rings() -> None:
    """|x|² of a point at radius R with noise s has mean R² + 2s² and variance 4R²s² + 4s⁴; its angle is uniform."""
    points, energies = draw("rings")
    levels = [1.0, 0.0, 2 / 3, 1 / 3]
    ring = (energies.unsqueeze(-1) - torch.tensor(levels)).abs().argmin(-1)
    torch.testing.assert_close(energies, torch.tensor(levels).double()[ring], atol=1e-6, rtol=0)
    assert_shares(ring, [1 / 4] * 4)
    for number, radius in enumerate((0.75, 1.5, 2.25, 3.0)):
        here = points[ring == number]
        square, noise = here.square().sum(-1), 0.08
        assert_mean(square, radius**2 + 2 * noise**2)
        assert_mean((square - square.mean()).square(), 4 * radius**2 * noise**2 + 4 * noise**4)
        assert_uniform(torch.atan2(here[:, 1], here[:, 0]) / (2 * math.pi) + 0.5)


def test_checkerboard() -> None:
    points, energies = draw("checkerboard")
    for end in (points.amax(0), -points.amin(0)):
        assert 3.999 < float(end.min()) <= float(end.max()) <= 4.0
    column, row = (points / 2).floor().long().unbind(-1)
    assert bool(((column + row) % 2 == 0).all())
    fields, counts = (4 * (column + 2) + row + 2).unique(return_counts=True)
    assert len(fields) == 8
    assert_shares(torch.arange(8).repeat_interleave(counts), [1 / 8] * 8)
    for within in (points / 2 - (points / 2).floor()).unbind(-1):
        assert_uniform(within)
    across = points[:, 0]
    expected = ((across > -2) & (across <= 0)) | (across > 2)
    assert torch.equal(energies, expected.double())


def test_two_spirals() -> None:
    """The energy gives the angle n, so the arm can be subtracted: u/2 + 0.3 noise remains on each axis."""
    points, energies = draw("2spirals")
    assert_uniform(energies.square())
    outer = energies > 0.4  # closer to the centre the arms touch
    n = 3 * math.pi * energies[outer]
    arm = torch.stack([-n.cos() * n, n.sin() * n], -1)
    left = torch.stack([3 * points[outer] - arm, -3 * points[outer] - arm])
    arm_of = left.square().sum(-1).argmin(0)
    assert_shares(arm_of, [1 / 2, 1 / 2])
    for axis in left[arm_of, torch.arange(len(n))].unbind(-1):
        assert_mean(axis, 1 / 4)
        assert_mean((axis - 1 / 4).square(), 1 / 48 + 0.3**2)


def test_an_unknown_density_names_the_nearest() -> None:
    assert find_density("moons") is DENSITIES["moons"]
    with pytest.raises(ConfigError, match=r"8gausians.*checkerboard.*Did you mean 8gaussians\?"):
        find_density("8gausians")


@pytest.mark.parametrize("beta", [0.0, 3.0, 10.0])
def test_tilted_gaussians_have_the_exact_weights(beta: float) -> None:
    points = tilted_sample(DENSITIES["8gaussians"], 20_000, beta, numbers(1))
    angles = torch.arange(8) * math.pi / 4
    centres = torch.stack([-angles.sin(), angles.cos()], -1) * 4 / math.sqrt(2)
    nearest = torch.cdist(points, centres).argmin(-1)
    boltzmann = [math.exp(-beta * (1 - k / 7)) for k in range(8)]
    # The border is three standard deviations from a centre: 0.2 % of a component counts as its neighbours.
    assert_shares(nearest, [weight / sum(boltzmann) for weight in boltzmann], slack=0.002)
    last = points[nearest == 7] - centres[7]  # within a component nothing changes
    assert float(last.mean(0).abs().max()) < ERRORS * 0.36 / math.sqrt(len(last))
    assert float(last.std(0).mean()) == pytest.approx(0.5 / math.sqrt(2), rel=0.03)


@pytest.mark.parametrize("beta", [0.5, 4.0, 30.0])
def test_a_continuous_energy_follows_the_truncated_exponential(beta: float) -> None:
    """Uniform E is tilted to the CDF (1 - exp(-beta e)) / (1 - exp(-beta)); independent coordinates are unchanged."""

    def sample(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        points = torch.rand(n, 2, generator=generator)
        return points, points[:, 0]

    points = tilted_sample(Density("ramp", "Ramp", sample), 30_000, beta, numbers()).double()
    assert_uniform((1 - (-beta * points[:, 0]).exp()) / (1 - math.exp(-beta)))
    assert_uniform(points[:, 1])


def test_a_tilted_sample_has_its_size_and_its_seed() -> None:
    density = DENSITIES["rings"]
    for n in (1, 7, CHUNK + 1, 3 * CHUNK):
        assert tilted_sample(density, n, 5.0, numbers()).shape == (n, 2)
    long, short = (tilted_sample(density, n, 5.0, numbers()) for n in (3 * CHUNK, CHUNK))
    assert torch.equal(long[:CHUNK], short)
    assert len(long.unique(dim=0)) > len(long) - 5  # no draw is used twice
    assert not torch.equal(tilted_sample(density, CHUNK, 5.0, numbers(1)), short)


def test_beta_zero_draws_the_density_itself() -> None:
    points, _ = DENSITIES["swissroll"].sample(100, numbers())
    assert torch.equal(tilted_sample(DENSITIES["swissroll"], 100, 0.0, numbers()), points)


def test_energies_may_be_measured_from_another_lowest_one() -> None:
    """A constant added to the energies changes no draw if `lowest` includes it; otherwise it may waste draws."""
    moved = Density("moved", "Moved", lambda n, g: ((drawn := DENSITIES["rings"].sample(n, g))[0], drawn[1] - 5.0))
    points = tilted_sample(moved, 3 * CHUNK, 2.0, numbers(), lowest=-5.0)
    torch.testing.assert_close(points, tilted_sample(DENSITIES["rings"], 3 * CHUNK, 2.0, numbers()))
    with pytest.raises(DataError, match="'moved' has energies below -4, or NaN"):
        tilted_sample(moved, 5, 2.0, numbers(), lowest=-4.0)


@pytest.mark.parametrize("beta", [-0.1, math.inf, -math.inf, math.nan])
def test_beta_must_be_finite_and_not_negative(beta: float) -> None:
    with pytest.raises(ConfigError, match=r"inverse_temperature is .*at least 0"):
        tilted_sample(DENSITIES["moons"], 10, beta, numbers())


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="n is 0"):
        tilted_sample(DENSITIES["moons"], 0, 1.0, numbers())


def test_a_hopeless_temperature_ends_with_a_message() -> None:
    barren = Density("barren", "Barren", lambda n, generator: (torch.zeros(n, 2), torch.ones(n)))
    with pytest.raises(ConfigError, match=f"only 0 of {2 * CHUNK} draws of 'barren'.*at inverse_temperature 100"):
        tilted_sample(barren, 5, 100.0, numbers(), max_draws=CHUNK + 1)


@pytest.mark.parametrize("value", [-1e-3, math.nan])
def test_energies_that_rejection_cannot_serve_are_refused(value: float) -> None:
    def sample(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        energies = torch.zeros(n)
        energies[n // 2] = value
        return torch.zeros(n, 2), energies

    with pytest.raises(DataError, match="'wrong' has energies below 0, or NaN"):
        tilted_sample(Density("wrong", "Wrong", sample), 5, 1.0, numbers())
