"""How far guided samples are from exact ones: rows of a table, in units of what two exact samples are apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cepdiff.energy.distances import energy_distance, noise_floor, sliced_wasserstein
from cepdiff.errors import RunError
from cepdiff.files import write_json, written_aside

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sliced_wasserstein": sliced_wasserstein,
    "energy_distance": energy_distance,
}
TITLES = {"sliced_wasserstein": "sliced W2", "energy_distance": "energy distance"}
SHOWN_POINTS = 4000
# Names in the file of samples, to be filled with a guidance scale.
EXACT = "exact, scale {:g}"
GUIDED = "guided, scale {:g}"


@dataclass(frozen=True)
class DistanceRow:
    """Samples of one guidance scale against exact ones of p ∝ q exp(-scale beta E), by one distance.

    Args:
        guidance_scale: s; only 0 (the prior) and 1 are exact in the limit.
        distance: its name, a key of `DISTANCES`.
        value: mean distance to `repeats` exact samples of the same size.
        floor: mean distance between two exact samples; `floor_std` its standard deviation over the pairs.
    """

    guidance_scale: float
    distance: str
    value: float
    floor: float
    floor_std: float

    @property
    def multiple(self) -> float:
        """`value` as a multiple of the noise floor; about 1 where the two cannot be told apart.

        Infinite where the floor is 0: rows of a file drawn by weight are then one and the same row.
        """
        return self.value / self.floor if self.floor else math.inf


def compare_samples(
    samples: Tensor, exact: Callable[[int], Tensor], guidance_scale: float, repeats: int
) -> list[DistanceRow]:
    """A row a distance for `samples` (N, A); `exact(i)` is the i-th independent exact sample (N, A)."""
    rows = []
    for name, distance in DISTANCES.items():
        floor = noise_floor(distance, exact, repeats)
        values = [float(distance(samples, exact(index))) for index in range(repeats)]
        rows.append(DistanceRow(guidance_scale, name, sum(values) / repeats, floor.mean, floor.std))
    return rows


def format_distances(rows: Sequence[DistanceRow]) -> str:
    """An aligned text table, a line a guidance scale."""
    columns = [["guidance scale", *(f"{scale:g}" for scale in dict.fromkeys(row.guidance_scale for row in rows))]]
    for name in DISTANCES:
        here = [row for row in rows if row.distance == name]
        columns.append([TITLES[name], *(f"{row.value:.4f}" for row in here)])
        columns.append(["noise floor", *(f"{row.floor:.4f} ± {row.floor_std:.4f}" for row in here)])
        columns.append(["multiple", *(f"{row.multiple:.2f}" for row in here)])
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in zip(*columns, strict=True)
    )


def write_distances(path: Path, rows: Sequence[DistanceRow], about: Mapping[str, Any]) -> None:
    """`about` and the rows with their multiples as JSON; null for an infinite one."""
    multiples = [row.multiple if math.isfinite(row.multiple) else None for row in rows]
    found = [{**asdict(row), "multiple": multiple} for row, multiple in zip(rows, multiples, strict=True)]
    write_json(path, {**about, "distances": found})


def read_distances(path: Path) -> tuple[list[DistanceRow], dict[str, Any]]:
    """Rows and everything else of a file that `write_distances` wrote; raises RunError where it is damaged."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        found = about.pop("distances")
        return [DistanceRow(**{key: row[key] for key in DistanceRow.__annotations__}) for row in found], about
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged; delete it and run the same command again") from error


def write_samples(path: Path, samples: Mapping[str, Tensor]) -> None:
    """Named samples as one `.npz` file."""
    with written_aside(path) as file:
        arrays: dict[str, Any] = {name: values.numpy() for name, values in samples.items()}
        np.savez(file, **arrays)


def read_samples(path: Path) -> dict[str, NDArray[np.float32]]:
    """What `write_samples` wrote; raises RunError where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name], dtype=np.float32) for name in file}
    except Exception as error:  # NumPy and zipfile raise many kinds on a torn file
        raise RunError(f"{path} cannot be read; run the same `cepdiff fit` again") from error


def plot_samples(samples: Mapping[str, NDArray[np.float32]], path: Path, title: str) -> None:
    """Data coloured by their energy, exact samples and guided ones side by side (the first two coordinates)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in samples if name != "energies"]
    figure = Figure(figsize=(3 * len(names), 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    low, high = samples["data"].min(0), samples["data"].max(0)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        colours = samples["energies"] if name == "data" else None
        scatter(axes, samples[name], low, high, colours)
        axes.set_title({"data": "data, by energy"}.get(name, name), fontsize=9)
    figure.suptitle(title)
    with written_aside(path) as file:
        figure.savefig(file, dpi=120, format="png")


def scatter(
    axes: Any,
    points: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    colours: NDArray[np.float32] | None = None,
) -> Any:
    """Points in a square of the data's range, without ticks; returns what matplotlib drew them as."""
    shown = points[:SHOWN_POINTS]
    colour: Any = "tab:blue" if colours is None else colours[:SHOWN_POINTS]
    drawn = axes.scatter(shown[:, 0], shown[:, 1 % shown.shape[1]], c=colour, s=1, alpha=0.5, linewidths=0)
    axes.set_xlim(float(low[0]), float(high[0]))
    axes.set_ylim(float(low[1 % len(low)]), float(high[1 % len(high)]))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_box_aspect(1)
    return drawn
