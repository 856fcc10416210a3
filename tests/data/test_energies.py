"""Points with energies: sources, what the networks see, exact samples, invalid input."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cepdiff.data.densities.datamodule import EnergyDataModule
from cepdiff.data.densities.densities import DENSITIES
from cepdiff.errors import CepdiffError, ConfigError, DataError
from cepdiff.randomness import generator

N = 5000
ERRORS = 4.5  # standard errors a correct mean may be off; fixed seeds, so the tests do not flicker
OWN = """
import torch
calls = []
def first(points):
    calls.append(len(points))
    return points[:, 0].clone().requires_grad_()
def double(points): return points[:, 0].double()
def whole(points): return torch.arange(len(points))
def nan(points): return torch.where(torch.arange(len(points)) == 3, torch.nan, points[:, 0])
def infinite(points): return torch.full((len(points),), torch.inf)
def table(points): return points
def column(points): return points[:, :1]
def array(points): return points[:, 0].numpy()
def scalar(points): return points.sum()
def clumsy(points): return points[:, 7]
number = 3
"""


def ready(dataset: str | Path, **options: object) -> EnergyDataModule:
    """A data module with its points loaded."""
    data = EnergyDataModule(str(dataset), **{"num_points": N, **options})  # type: ignore[arg-type]
    data.setup()
    return data


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_shares(found: torch.Tensor, shares: torch.Tensor, n: int) -> None:
    """Counts of `n` draws fit their probabilities, within binomial errors."""
    slack = ERRORS * (shares * (1 - shares) / n).sqrt() + 1e-9
    assert bool(((found / n - shares).abs() <= slack).all()), (found / n, shares)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of energies next to the configuration."""
    (tmp_path / "own_energies.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_energies"
    sys.modules.pop("own_energies", None)


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    """`make_file(name=array)`: an `.npz` of five points in 2-D; None drops an array."""

    def make(**changes: object) -> Path:
        arrays = {
            "points": np.array([[0, 0], [1, 2], [2, 0], [3, 6], [4, 4]], dtype=np.float32),
            "energies": np.array([1.0, 0.5, 2.0, 0.0, 1.5], dtype=np.float32),
            **changes,
        }
        path = tmp_path / "own.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]
        return path

    return make


class TestNamedDensities:
    @pytest.mark.parametrize("name", DENSITIES)
    def test_points_and_energies_are_those_of_the_density(self, name: str) -> None:
        data = ready(name, seed=3)
        points, energies = DENSITIES[name].sample(N, generator(3, "density"))
        assert torch.equal(data.points, points)
        assert torch.equal(data.energies, energies)
        assert data.dataset_name == name

    def test_the_seed_alone_decides(self) -> None:
        torch.manual_seed(1)
        first = ready("rings", seed=1)
        torch.manual_seed(2)
        again, other = ready("rings", seed=1), ready("rings", seed=2)
        assert torch.equal(first.points, again.points)
        assert first.content_hash == again.content_hash
        assert not torch.equal(first.points, other.points)
        assert first.points_hash != other.points_hash

    def test_points_are_drawn_once(self, own: str) -> None:
        data = ready("moons", energy=f"{own}.first")
        before = data.points
        data.setup("fit")
        assert data.points is before
        assert sys.modules[own].calls == [N]

    def test_nothing_is_there_before_setup(self) -> None:
        data = EnergyDataModule("moons", num_points=10)
        for ask in (lambda: data.points, lambda: data.content_hash, lambda: data.spec):
            with pytest.raises(DataError, match=r"call setup\(\) first"):
                ask()


class TestFiles:
    def test_points_and_energies_of_a_file(self, make_file: Callable[..., Path]) -> None:
        data = ready(make_file())
        assert data.dataset_name == "own"
        assert data.points.tolist() == [[0, 0], [1, 2], [2, 0], [3, 6], [4, 4]]
        assert data.energies.tolist() == [1.0, 0.5, 2.0, 0.0, 1.5]
        assert data.sizes == (0, 2)

    def test_float64_and_integers_become_float32(self, make_file: Callable[..., Path]) -> None:
        path = make_file(points=np.arange(10).reshape(5, 2), energies=np.linspace(0, 1, 5))
        data = ready(path)
        assert data.points.dtype == data.energies.dtype == torch.float32
        np.testing.assert_allclose(data.energies, np.linspace(0, 1, 5), rtol=1e-6)

    @pytest.mark.parametrize("size", [1, 3])
    def test_any_dimension(self, make_file: Callable[..., Path], size: int) -> None:
        points = np.random.default_rng(0).normal(size=(5, size))
        data = ready(make_file(points=points))
        assert data.sizes == (0, size)
        assert data.exact_samples(7, 1.0, numbers()).shape == (7, size)

    def test_a_file_in_the_home_folder(
        self, make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_file()
        monkeypatch.setenv("HOME", str(tmp_path))
        assert len(ready("~/own.npz").points) == 5

    def test_an_energy_function_stands_for_missing_energies(self, make_file: Callable[..., Path], own: str) -> None:
        for path in (make_file(energies=None), make_file()):
            assert ready(path, energy=f"{own}.first").energies.tolist() == [0, 1, 2, 3, 4]


class TestEnergyFunctions:
    @pytest.mark.parametrize("name", ["first", "double", "whole"])
    def test_energies_are_plain_float32(self, own: str, name: str) -> None:
        data = ready("moons", energy=f"{own}.{name}")
        assert data.energies.dtype == torch.float32
        assert not data.energies.requires_grad
        expected = torch.arange(N).float() if name == "whole" else data.points[:, 0]
        assert torch.equal(data.energies, expected)

    def test_the_points_stay_those_of_the_density(self, own: str) -> None:
        plain, other = ready("moons"), ready("moons", energy=f"{own}.first")
        assert torch.equal(plain.points, other.points)
        assert plain.points_hash == other.points_hash
        assert plain.content_hash != other.content_hash

    def test_hashes_of_files_tell_points_from_energies(self, make_file: Callable[..., Path]) -> None:
        data = ready(make_file())
        energies = ready(make_file(energies=np.arange(5.0)))
        points = ready(make_file(points=np.arange(10.0).reshape(5, 2)))
        assert data.points_hash == energies.points_hash != points.points_hash
        assert len({data.content_hash, energies.content_hash, points.content_hash}) == 3


class TestWhatNetworksSee:
    def test_points_fill_the_cube_and_go_back_by_the_bounds(self) -> None:
        data = ready("rings")
        batch = data.gatherer(("samples", "energies"))(data.rows(("samples", "energies")))
        assert batch["samples"].amin(0).tolist() == [-1.0, -1.0]
        assert batch["samples"].amax(0).tolist() == [1.0, 1.0]
        low, high = torch.tensor(data.spec.action_low), torch.tensor(data.spec.action_high)
        torch.testing.assert_close(low + (batch["samples"] + 1) / 2 * (high - low), data.points, atol=1e-5, rtol=0)
        assert torch.equal(low, data.points.amin(0))
        assert torch.equal(high, data.points.amax(0))
        assert data.sizes == (0, 2)

    def test_energies_are_measured_from_the_lowest(self, make_file: Callable[..., Path]) -> None:
        data = ready(make_file(energies=np.array([-3.0, -4.0, 5.0, 6.0, 7.0])))
        rows = torch.tensor([[0, 1], [4, 2]])
        batch = data.gatherer(("energies",))(rows)
        assert set(batch) == {"energies"}
        assert batch["energies"].tolist() == [[1.0, 0.0], [11.0, 9.0]]
        assert data.energies[0] == -3.0  # the data's own

    def test_an_unknown_field_names_those_there_are(self) -> None:
        with pytest.raises(ConfigError, match=r"batch field 'observations'.*samples, energies"):
            ready("moons").gatherer(("samples", "observations"))


class TestExactSamples:
    def test_modes_of_a_named_density_have_their_weights(self) -> None:
        """A component's mean is its centre, so the mean of p is Σ w_k c_k with w_k ∝ exp(-beta E_k)."""
        data, n, beta = ready("8gaussians"), 20_000, 4.0
        samples = data.exact_samples(n, beta, numbers()).double()
        angles = math.pi / 2 + torch.arange(8) * math.pi / 4
        centres = torch.stack([angles.cos(), angles.sin()], -1).double() * 4 / math.sqrt(2)
        shares = torch.softmax(-beta * (1 - torch.arange(8).double() / 7), 0)
        expected = shares @ centres
        spread = (shares @ centres.square() - expected.square() + 0.125).sqrt()
        assert bool(((samples.mean(0) - expected).abs() < ERRORS * spread / math.sqrt(n)).all())
        nearest = torch.cdist(samples, centres).argmin(-1)
        assert_shares(nearest.bincount(minlength=8), shares, n)

    def test_they_are_fresh_and_a_function_of_the_generator(self) -> None:
        data = ready("rings")
        first, again, other = (data.exact_samples(500, 3.0, numbers(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.cdist(first, data.points).min() > 0

    def test_rows_of_a_file_come_by_weight(self, make_file: Callable[..., Path]) -> None:
        data, n = ready(make_file(energies=np.array([1e4, 1e4 + 1, 1e4 + 2, 1e4, 1e4 + 0.5]))), 20_000
        for beta in (0.0, 0.7, 3.0):
            samples = data.exact_samples(n, beta, numbers())
            same = (samples.unsqueeze(1) == data.points).all(-1)  # (n, 5)
            assert bool((same.sum(-1) == 1).all())
            assert_shares(same.sum(0), torch.softmax(-beta * data.energies.double(), 0), n)
        assert torch.equal(data.exact_samples(50, 3.0, numbers(1)), data.exact_samples(50, 3.0, numbers(1)))

    def test_a_great_beta_leaves_the_lowest_row(self, make_file: Callable[..., Path]) -> None:
        samples = ready(make_file()).exact_samples(100, 1e6, numbers())
        assert samples.unique(dim=0).tolist() == [[3.0, 6.0]]

    def test_an_own_energy_on_a_named_density(self, own: str) -> None:
        """E = x_1 shifts each Gaussian of variance v by -beta v and weights it by exp(-beta c_1)."""
        data, n, beta = ready("8gaussians", energy=f"{own}.first", num_points=200_000), 5000, 0.7
        samples = data.exact_samples(n, beta, numbers()).double()
        angles = torch.arange(8) * math.pi / 4
        centres = torch.stack([angles.cos(), angles.sin()], -1).double() * 4 / math.sqrt(2)
        shares = torch.softmax(-beta * centres[:, 0], 0)
        expected = shares @ centres - torch.tensor([beta * 0.125, 0.0], dtype=torch.float64)
        assert bool(((samples.mean(0) - expected).abs() < ERRORS * samples.std(0) / math.sqrt(n)).all())
        assert torch.cdist(samples[:100], data.points.double()).min() > 0  # fresh samples, not rows

    def test_an_own_energy_on_a_file(self, make_file: Callable[..., Path], own: str) -> None:
        samples = ready(make_file(), energy=f"{own}.first").exact_samples(100, 1e6, numbers())
        assert samples.unique(dim=0).tolist() == [[0.0, 0.0]]


def test_a_subclass_needs_load_alone() -> None:
    class Own(EnergyDataModule):
        def load(self) -> tuple[torch.Tensor, torch.Tensor]:
            points = torch.tensor([[0.0], [1.0], [2.0]])
            return points, points[:, 0]

    data = Own("of my own")
    data.setup()
    assert data.dataset_name == "of my own"
    assert data.sizes == (0, 1)
    assert data.exact_samples(10, 1e6, numbers()).unique().tolist() == [0.0]


NAN, INFINITE = math.nan, math.inf


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"points": np.array([[0, 1], [2, 3], [4, NAN], [NAN, 0], [1, 1.0]])}, "points are NaN or infinite in row 2"),
        ({"points": np.array([[0, 1], [2, 3], [4, 5], [6, 7], [-INFINITE, 1]])}, "infinite in row 4"),
        ({"points": np.array([[0, 1], [1e300, 3], [4, 5], [6, 7], [0, 1]])}, "infinite in row 1"),  # beyond float32
        ({"energies": np.array([0, NAN, 0, 0, 0])}, "energies are NaN or infinite in row 1"),
        ({"energies": np.array([0, 0, 0, INFINITE, 0])}, "energies are NaN or infinite in row 3"),
        ({"energies": np.zeros(4)}, r"points \(5, 2\) and energies \(4,\); expected \(N, A\) and \(N,\)"),
        ({"energies": np.zeros((5, 1))}, r"energies \(5, 1\)"),
        ({"points": np.arange(5.0)}, r"points \(5,\)"),
        ({"points": np.zeros((5, 2, 2))}, r"points \(5, 2, 2\)"),
        ({"points": np.zeros((5, 0))}, r"points \(5, 0\)"),
        ({"points": np.zeros((1, 2)), "energies": np.zeros(1)}, r"points \(1, 2\)"),
        ({"points": np.zeros((0, 2)), "energies": np.zeros(0)}, r"points \(0, 2\)"),
        ({"points": np.float32(3), "energies": np.float32(3)}, r"points \(\)"),
        ({"points": np.array([[0, 1], [0, 2], [0, 3], [0, 4], [0, 5.0]])}, "a coordinate is constant in all 5 points"),
        ({"points": None}, "no array 'points'"),
        ({"energies": None}, "no array 'energies'"),
        ({"points": np.array([["a", "b"]] * 5)}, "not an .npz file of numbers, or damaged"),
        ({"points": np.array([[None, {}]] * 5)}, "not an .npz file of numbers, or damaged"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_unusable_arrays(make_file: Callable[..., Path], changes: dict[str, object], expected: str) -> None:
    path = make_file(**changes)
    with pytest.raises(DataError, match=expected) as raised:
        ready(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"points": np.array([[0, 1], [NAN, 3.0]])}, "points are NaN or infinite in row 1"),
        ({"points": np.arange(5.0)}, r"points \(5,\)"),
        ({"points": np.float32(3), "energies": None}, r"points \(\)"),
    ],
)
def test_unusable_points_never_reach_the_energy_function(
    make_file: Callable[..., Path], own: str, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        ready(make_file(**changes), energy=f"{own}.first")
    assert sys.modules[own].calls == []


def test_missing_torn_and_foreign_files(make_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: no such file; expected an \.npz with points"):
        ready(tmp_path / "none.npz")
    folder = tmp_path / "folder.npz"
    folder.mkdir()
    with pytest.raises(DataError, match="no such file"):
        ready(folder)
    whole = make_file().read_bytes()
    packed = tmp_path / "packed.npz"
    rng = np.random.default_rng(0)
    np.savez_compressed(packed, points=rng.normal(size=(500, 2)), energies=rng.normal(size=500))
    flipped = bytearray(packed.read_bytes())
    flipped[200:300] = bytes(255 - byte for byte in flipped[200:300])
    single = tmp_path / "single.npy"
    np.save(single, np.zeros((5, 2)))
    contents = {
        "torn": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"points,energies\n1,2\n",
        "flipped": bytes(flipped),
        "one_array": single.read_bytes(),
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.npz: not an \.npz file of numbers, or damaged") as raised:
            ready(path)
        assert "pickle" not in str(raised.value), "advice that would run foreign code"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nan", r"nan at \[.*\]; expected finite numbers"),
        ("infinite", r"inf at \[.*\]; expected finite numbers"),
        ("table", rf"returned \({N}, 2\) for \({N}, 2\); expected \({N},\)"),
        ("column", rf"returned \({N}, 1\)"),
        ("scalar", r"returned \(\)"),
        ("array", "returned ndarray"),
        ("clumsy", r"raised IndexError: .*own_energies\.py, line \d+\)"),
    ],
)
def test_energy_functions_that_give_no_energies(own: str, name: str, expected: str) -> None:
    with pytest.raises(DataError, match=rf"the energy {own}\.{name} .*{expected}"):
        ready("moons", energy=f"{own}.{name}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dataset": "ringz"}, r"unknown density 'ringz'.*checkerboard.*Did you mean rings\?"),
        ({"dataset": "8gausians"}, r"Did you mean 8gaussians\?"),
        ({"num_points": 1}, "data.num_points is 1; expected at least 2"),
        ({"num_points": -5}, "data.num_points is -5"),
        ({"block_size": 0}, "data.block_size is 0"),
        ({"energy": "own_energies.frist"}, r"data.energy: 'own_energies' has no function 'frist'.*Did you mean first"),
        ({"energy": "own_energies.number"}, "data.energy: own_energies.number is not a function"),
        ({"energy": "first"}, "'first' is not a function path; expected package.module.first"),
        ({"energy": "nowhere.first"}, "data.energy: there is no module 'nowhere'"),
    ],
)
def test_options_that_cannot_be(own: str, options: dict[str, object], expected: str) -> None:
    with pytest.raises(CepdiffError, match=expected):
        ready(**{"dataset": "rings", **options})  # type: ignore[arg-type]
