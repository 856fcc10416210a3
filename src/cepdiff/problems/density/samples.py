"""Samples of a density compared with exact ones: distances in units of the noise floor, their file and their figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cepdiff.energy.distances import energy_distance, noise_floor, sliced_wasserstein
from cepdiff.errors import RunError
from cepdiff.figures import PAGE, new_figure, save_figure, styled
from cepdiff.files import written_aside
from cepdiff.runs.results import Row

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sliced_wasserstein": sliced_wasserstein,
    "energy_distance": energy_distance,
}
COLUMNS = {"sliced_wasserstein": ("sliced W2", ".4f"), "energy_distance": ("energy distance", ".4f")}
SHOWN_POINTS = 4000
MARGIN = 0.04  # around the data, as a share of their range
# Names in the file of samples, formatted with a guidance scale.
EXACT = "exact, scale {:g}"
GUIDED = "guided, scale {:g}"
EXACT_SAMPLES = "exact samples"  # their name in figures

Samples = Mapping[str, NDArray[np.float32]]


def compare_samples(samples: Tensor, exact: Callable[[int], Tensor], scale: float, repeats: int) -> list[Row]:
    """One row per distance for `samples` (N, A): its mean over `repeats` exact samples of the same size.

    `exact(i)` is the i-th independent exact sample (N, A) of p ∝ q exp(-scale beta E). The floor is the mean distance
    between two of them.
    """
    rows = []
    for name, distance in DISTANCES.items():
        floor = noise_floor(distance, exact, repeats)
        values = [float(distance(samples, exact(index))) for index in range(repeats)]
        rows.append(Row(scale, name, sum(values) / repeats, floor=floor.mean, floor_error=floor.std))
    return rows


def write_samples(path: Path, samples: Mapping[str, Tensor]) -> None:
    """Write named samples as one `.npz` file."""
    with written_aside(path) as file:
        arrays: dict[str, Any] = {name: values.numpy() for name, values in samples.items()}
        np.savez(file, **arrays)


def read_samples(path: Path) -> dict[str, NDArray[np.float32]]:
    """The samples in a file; raises RunError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name], dtype=np.float32) for name in file}
    except Exception as error:  # NumPy and zipfile raise many kinds on a torn file
        raise RunError(f"{path} cannot be read; run the same `cepdiff fit` again") from error


@styled()
def plot_samples(samples: Samples, path: Path, title: str) -> None:
    """Data by energy; exact samples above guided ones, a column per scale (the first two coordinates)."""
    scales = [name.rpartition(" ")[2] for name in samples if name not in ("data", "energies")][::2]
    figure = new_figure(PAGE, 2 * min(2.6, PAGE / (1 + len(scales))) + 0.7)
    grid = figure.subplots(2, 1 + len(scales), squeeze=False)
    low, high = bounds(samples["data"])
    coloured = scatter(grid[0, 0], samples["data"], low, high, samples["energies"])
    grid[0, 0].set_title("data")
    grid[1, 0].set_axis_off()
    place = grid[1, 0].inset_axes((0.1, 0.9, 0.8, 0.06))
    figure.colorbar(coloured, cax=place, orientation="horizontal", label="energy").solids.set_alpha(1)
    for column, scale in zip(grid[:, 1:].T, scales, strict=True):
        for axes, name in zip(column, (EXACT, GUIDED), strict=True):
            scatter(axes, samples[name.format(float(scale))], low, high)
        column[0].set_title(f"guidance scale {scale}")
    for axes, name in zip(grid[:, 1], (EXACT_SAMPLES, "guided samples"), strict=True):
        axes.set_ylabel(name)
    figure.suptitle(title)
    save_figure(figure, path)


def bounds(data: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lower and upper limits of a picture of the data, with a margin."""
    room = MARGIN * (data.max(0) - data.min(0))
    return data.min(0) - room, data.max(0) + room


def scatter(
    axes: Any,
    points: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    colours: NDArray[np.float32] | None = None,
) -> Any:
    """Draw points in a square of the data's range, without ticks; return what matplotlib made of them."""
    shown = points[:SHOWN_POINTS]
    colour: Any = "tab:blue" if colours is None else colours[:SHOWN_POINTS]
    drawn = axes.scatter(shown[:, 0], shown[:, 1 % shown.shape[1]], c=colour, s=1, alpha=0.5, linewidths=0)
    axes.set_xlim(float(low[0]), float(high[0]))
    axes.set_ylim(float(low[1 % len(low)]), float(high[1 % len(high)]))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_box_aspect(1)
    return drawn
