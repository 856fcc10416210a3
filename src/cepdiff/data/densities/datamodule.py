"""Samples of q(x) of any dimension together with their energies E(x): no states, no critic."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cepdiff.components import import_function
from cepdiff.data.blocks import StageDataModule
from cepdiff.data.densities.densities import DENSITIES, Density, find_density, tilted_sample
from cepdiff.errors import ConfigError, DataError
from cepdiff.randomness import generator
from cepdiff.ranges import AtLeastTwo, Count, check_arguments
from cepdiff.types import Batch, DataSpec


class EnergyDataModule(StageDataModule):
    """Points of a density and their energies, for unconditional training of p(x) ∝ q(x) exp(-beta E(x)).

    Networks see the points scaled to [-1, 1] by the data's range, as the field `samples` (B, A); `energies` (B,) are
    relative to their minimum, which does not change p. To serve other data, subclass and override `load`, and
    `exact_samples` if you have something better than resampling.

    Args:
        dataset: one of the paper's 2-D densities (swissroll, 8gaussians, moons, rings, checkerboard, 2spirals), or an
            `.npz` file with `points` (N, A) and `energies` (N,).
        energy: "module.function" of points (N, A) -> energies (N,), replacing the dataset's own.
        num_points: number of points to draw from a named density.
        block_size: minibatches per `training_step`.
        seed: of the points and their order.
    """

    problem = "cepdiff.problems.density.points.PointDensity"

    def __init__(
        self,
        dataset: str,
        energy: str | None = None,
        num_points: AtLeastTwo = 1_000_000,
        block_size: Count = 50,
        seed: int = 0,
    ) -> None:
        super().__init__(block_size, seed)
        check_arguments(EnergyDataModule, locals(), "data")
        self.dataset = dataset
        self.energy = energy
        self.num_points = num_points
        self._energy_function = None if energy is None else import_function(energy, "data.energy")
        self._data: tuple[Tensor, Tensor] | None = None
        self._density: Density | None = None  # None for files, and for subclasses that override load()
        self.points_hash = ""  # hash of the points without energies; set by setup()
        self._hash = ""
        self._low = self._high = torch.empty(0)

    @property
    def dataset_name(self) -> str:
        return Path(self.dataset).stem

    @property
    def content_hash(self) -> str:
        self._loaded()
        return self._hash

    @property
    def spec(self) -> DataSpec:
        self._loaded()
        return DataSpec(0, len(self._low), tuple(self._low.tolist()), tuple(self._high.tolist()))

    @property
    def points(self) -> Tensor:
        """(N, A), not scaled."""
        return self._loaded()[0]

    @property
    def energies(self) -> Tensor:
        """(N,)."""
        return self._loaded()[1]

    def summary(self) -> str:
        """Points and dimensions."""
        return f"{len(self.points):,} points in {self.points.shape[1]} dimensions"

    def setup(self, stage: str | None = None) -> None:
        """Draw or read the points; only once."""
        if self._data is not None:
            return
        points, energies = self.load()
        check_points(points, energies, self.dataset)
        digest = hashlib.blake2b(points.numpy().tobytes(), digest_size=8)
        self.points_hash = digest.hexdigest()
        digest.update(energies.numpy().tobytes())
        self._hash = digest.hexdigest()
        self._low, self._high = points.amin(0), points.amax(0)
        if bool((self._low == self._high).any()):
            raise DataError(f"{self.dataset}: a coordinate is constant in all {len(points)} points")
        self._data = points, energies

    def load(self) -> tuple[Tensor, Tensor]:
        """Return points (N, A) and energies (N,), float32."""
        density = self._density = self.density()
        if density is not None:
            return density.sample(self.num_points, generator(self.seed, "density"))
        path = Path(self.dataset).expanduser()
        points, energies = read_points(path, need_energies=self._energy_function is None)
        if self._energy_function is not None:
            check_points(points, torch.zeros(points.shape[:1]), self.dataset)  # before the user's function sees them
            energies = evaluate_energy(self._energy_function, points, str(self.energy))
        return points, energies

    def density(self) -> Density | None:
        """Return the named density with the configured energy; None if the dataset is a file."""
        if self.dataset not in DENSITIES and Path(self.dataset).suffix == ".npz":
            return None
        density = find_density(self.dataset)
        function = self._energy_function
        if function is None:
            return density

        def sample(n: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
            points, _ = density.sample(n, draws)
            return points, evaluate_energy(function, points, str(self.energy))

        return replace(density, sample=sample)

    def exact_samples(self, n: int, inverse_temperature: float, draws: torch.Generator) -> Tensor:
        """`n` samples (n, A) of p ∝ q exp(-beta E): new draws from a named density, else weighted resampling of rows.

        Resampled rows may repeat. A user's energy has no known bound: for new draws it is clamped from below at the
        lowest energy in the data.
        """
        density = self._density
        if density is None:
            weights = (-inverse_temperature * (self.energies.double() - self.energies.min())).exp()
            total = weights.cumsum(0)  # torch.multinomial is limited to 2^24 rows
            uniform = torch.rand(n, generator=draws, dtype=torch.float64) * total[-1]
            return self.points[torch.searchsorted(total, uniform, right=True).clamp(max=len(total) - 1)]
        if self._energy_function is None:
            return tilted_sample(density, n, inverse_temperature, draws)
        lowest = float(self.energies.min())

        def bounded(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            points, energies = density.sample(count, generator)
            return points, energies.clamp(min=lowest)

        return tilted_sample(replace(density, sample=bounded), n, inverse_temperature, draws, lowest=lowest)

    def rows(self, fields: Sequence[str]) -> Tensor:
        return torch.arange(len(self.energies))

    def gatherer(self, fields: Sequence[str], device: torch.device | str = "cpu") -> Callable[[Tensor], Batch]:
        scaled = 2.0 * (self.points - self._low) / (self._high - self._low) - 1.0
        tables = {"samples": scaled, "energies": self.energies - self.energies.min()}
        for field in fields:
            if field not in tables:
                raise ConfigError(f"the module needs the batch field '{field}'; points have {', '.join(tables)}")
        held = {field: tables[field].to(device) for field in fields}
        return lambda rows: {field: table[rows] for field, table in held.items()}

    def _loaded(self) -> tuple[Tensor, Tensor]:
        if self._data is None:
            raise DataError("the points are not loaded yet: call setup() first")
        return self._data


def call_energy(function: Callable[[Tensor], Tensor], points: Tensor, name: str) -> Tensor:
    """Return what the user's function returns for `points`. Raises DataError if it raises."""
    try:
        return function(points)
    except Exception as error:  # the user's own code
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(
            f"the energy {name} raised {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        ) from error


def evaluate_energy(function: Callable[[Tensor], Tensor], points: Tensor, name: str) -> Tensor:
    """Energies (N,) float32 of `points` (N, A). Raises DataError unless the function returns finite values (N,)."""
    energies = call_energy(function, points, name)
    if not isinstance(energies, Tensor) or energies.shape != points.shape[:1]:
        found = tuple(energies.shape) if isinstance(energies, Tensor) else type(energies).__name__
        raise DataError(f"the energy {name} returned {found} for {tuple(points.shape)}; expected ({len(points)},)")
    if not bool(energies.isfinite().all()):
        row = int((~energies.isfinite()).nonzero()[0])
        raise DataError(
            f"the energy {name} is {float(energies[row])} at {points[row].tolist()}; expected finite numbers"
        )
    return energies.detach().float()


def read_points(path: Path, need_energies: bool = True) -> tuple[Tensor, Tensor]:
    """Read `points` (N, A) and `energies` (N,) of an `.npz` file; missing energies are 0 unless `need_energies`."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an .npz with points (N, A) and energies (N,)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], dtype=np.float32) for name in ("points", "energies") if name in file}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # NumPy, zipfile and zlib raise many kinds for a damaged file
        raise DataError(f"{path}: not an .npz file of numbers, or damaged; expected points (N, A)") from error
    if "points" not in arrays or (need_energies and "energies" not in arrays):
        raise DataError(f"{path}: no array '{'energies' if 'points' in arrays else 'points'}'")
    points = torch.from_numpy(arrays["points"])
    energies = torch.from_numpy(arrays["energies"]) if "energies" in arrays else torch.zeros(points.shape[:1])
    return points, energies


def check_points(points: Tensor, energies: Tensor, source: str) -> None:
    """Raise DataError unless there are N >= 2 finite points (N, A), A >= 1, with finite energies (N,)."""
    if points.ndim != 2 or len(points) < 2 or points.shape[1] < 1 or energies.shape != points.shape[:1]:
        raise DataError(
            f"{source}: points {tuple(points.shape)} and energies {tuple(energies.shape)}; expected (N, A) and (N,)"
        )
    for name, values in (("points", points), ("energies", energies)):
        finite = values.isfinite().reshape(len(values), -1).all(-1)
        if not bool(finite.all()):
            raise DataError(f"{source}: {name} are NaN or infinite in row {int((~finite).nonzero()[0])}")
