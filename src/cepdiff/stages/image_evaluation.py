"""Guided images held against what they should be: metrics a guidance scale and head, as a table and a file.

A judge knows the real images and says how far samples of a head are from them. Each of its distances has a noise
floor: what two independent sets of real (or exactly reweighted) images of the same size are apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.data.images.energies import from_bytes
from cepdiff.energy.sample_metrics import circular_wasserstein, resample, reweighted_floor
from cepdiff.errors import RunError
from cepdiff.files import write_json

CHUNK = 1 << 22  # values of images at a time


@dataclass(frozen=True)
class ImageRow:
    """Metrics of the samples of one guidance scale and head, by name; `head` is "" for the means over all heads."""

    guidance_scale: float
    head: str
    metrics: Mapping[str, float]


class Judge(Protocol):
    """What tells how good samples are.

    `columns` names the metrics of the table and their titles; `distance` that which has a noise floor, under its name
    with `_floor` added. `real` are the metrics of real images, empty where they have none; `remark` ends the title.
    """

    columns: dict[str, str]
    distance: str
    real: dict[str, float]
    remark: str

    def measure(self, images: Tensor, head: int, scale: float) -> dict[str, float]:
        """Metrics of samples (M, C, H, W) uint8 of one head and scale."""
        ...


def judge_samples(
    samples: Mapping[float, Tensor], judge: Judge, head_names: Sequence[str]
) -> tuple[list[ImageRow], list[ImageRow]]:
    """(a row a scale: means over the heads; a row a scale and head) of samples (H, M, C, H, W), of each scale."""
    by_head = [
        ImageRow(scale, name, judge.measure(images[head], head, scale))
        for scale, images in samples.items()
        for head, name in enumerate(head_names)
    ]
    means = []
    for scale in samples:
        found = [row.metrics for row in by_head if row.guidance_scale == scale]
        mean = {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}
        floor = mean[f"{judge.distance}_floor"]
        mean[f"{judge.distance}_multiple"] = mean[judge.distance] / floor if floor else math.inf
        means.append(ImageRow(scale, "", mean))
    return means, by_head


class EnergyJudge:
    """Judges by an energy that is a function of the image, against the data reweighted by exp(-scale beta E_h).

    The distance is that of the samples' hues on the circle for hue energies, and for other functions the Wasserstein-1
    distance of the energies; its values and floors are means over draws of as many reweighted images as there are
    samples. Both see the training images, mirror images among them.

    Args:
        data: the images and their energies.
        inverse_temperature: beta.
        repeats: draws, and pairs of them.
        seed: of the draws.
    """

    COLUMNS: ClassVar[dict[str, str]] = {"energy": "energy", "energy_exact": "exact"}

    def __init__(self, data: ImageDataModule, inverse_temperature: float, repeats: int, seed: int) -> None:
        self.data = data
        self.inverse_temperature = inverse_temperature
        self.repeats = repeats
        self.seed = seed
        self.by_hue = is_hue(data)
        self.distance = "hue_distance" if self.by_hue else "energy_distance"
        title = "hue distance" if self.by_hue else "energy W1"
        self.columns = {
            **self.COLUMNS,
            self.distance: title,
            f"{self.distance}_floor": "noise floor",
            f"{self.distance}_multiple": "multiple",
        }
        self.real: dict[str, float] = {}
        energies, hues = [], []
        for images in training_images(data):
            energies.append(self._energies(images))
            if self.by_hue:
                hues.append(image_hues(images))
        self.energies = torch.cat(energies)  # (N, H)
        self.hues = torch.cat(hues) if self.by_hue else None  # (N,)
        self.remark = f"energy of the data {float(self.energies.mean()):.3f}"

    def weights(self, head: int, scale: float) -> Tensor:
        """exp(-scale beta E_h) of the training images (N,), the largest being 1."""
        energies = self.energies[:, head]
        return (-scale * self.inverse_temperature * (energies - energies.min())).exp()

    def measure(self, images: Tensor, head: int, scale: float) -> dict[str, float]:
        images = from_bytes(images)
        energies = self._energies(images)[:, head]
        weights = self.weights(head, scale)
        found, real = (image_hues(images), self.hues) if self.hues is not None else (energies, self.energies[:, head])
        distance = circular_wasserstein if self.by_hue else wasserstein_1
        size = len(images)
        draws = [resample(real, weights, size, self.seed, index) for index in range(self.repeats)]
        floor = reweighted_floor(distance, real, weights, size, self.seed, self.repeats)
        return {
            "energy": float(energies.mean()),
            "energy_exact": float((weights * self.energies[:, head]).sum() / weights.sum()),
            self.distance: sum(float(distance(found, draw)) for draw in draws) / self.repeats,
            f"{self.distance}_floor": floor.mean,
            f"{self.distance}_floor_std": floor.std,
        }

    def _energies(self, images: Tensor) -> Tensor:
        """(N, H) in float64 of images (N, C, H, W) in [-1, 1]."""
        with torch.no_grad():
            return torch.cat([self.data.energies_of(some).double() for some in in_chunks(images)])


def is_hue(data: ImageDataModule) -> bool:
    """Whether the energies of `data` are those of hues."""
    return data.energy == "hues"


def wasserstein_1(x: Tensor, y: Tensor) -> Tensor:
    """Wasserstein-1 distance of two samples (N,) of numbers, of one size -> ()."""
    return (x.sort().values - y.sort().values).abs().mean()


def image_hues(images: Tensor) -> Tensor:
    """One hue in [0, 1) an image of `images` (N, 3, H, W) in [-1, 1] -> (N,).

    The angle of the sum over pixels of the colours' projections on the hue plane, whose lengths are their chromas:
    black and grey pixels do not count. 0 for a grey image.
    """
    red, green, blue = ((images.double() + 1.0) / 2.0).unbind(1)
    x = (red - (green + blue) / 2.0).sum((-2, -1))
    y = (3.0**0.5 / 2.0 * (green - blue)).sum((-2, -1))
    return torch.remainder(torch.atan2(y, x) / (2.0 * math.pi), 1.0)


def training_images(data: ImageDataModule) -> Iterator[Tensor]:
    """The images that training draws from, mirror images among them: (M, C, H, W) in [-1, 1], some at a time."""
    gather, rows = data.gatherer(("actions",)), data.rows(("actions",))
    for some in torch.split(rows, max(1, CHUNK // data.spec.action_size)):
        yield gather(some)["actions"].reshape(-1, *data.image_shape)  # (M, A) -> (M, C, H, W)


def in_chunks(images: Tensor) -> Iterator[Tensor]:
    """Images (N, ...), some at a time."""
    return iter(torch.split(images, max(1, CHUNK // images[0].numel())))


def format_rows(rows: Sequence[ImageRow], titles: Mapping[str, str], real: Mapping[str, float]) -> str:
    """An aligned text table: a line a guidance scale, a column a metric of `titles`, and a line of `real` images."""
    columns = [["guidance scale", *(f"{row.guidance_scale:g}" for row in rows)]]
    lines = [row.metrics for row in rows]
    if real:
        columns[0].append("real images")
        lines.append(real)
    for name, title in titles.items():
        columns.append([title, *(format_number(metrics.get(name)) for metrics in lines)])
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in zip(*columns, strict=True)
    )


def format_number(value: float | None) -> str:
    """Three decimals, a dash for none."""
    return "-" if value is None else f"{value:.3f}"


def write_rows(path: Path, means: Sequence[ImageRow], by_head: Sequence[ImageRow], about: Mapping[str, Any]) -> None:
    """`about`, the means a scale and the rows a head as JSON; null for an infinite value."""
    plain = partial(map, row_values)
    write_json(path, {**about, "scales": list(plain(means)), "heads": list(plain(by_head))})


def row_values(row: ImageRow) -> dict[str, Any]:
    """A row in plain values."""
    metrics = {name: value if math.isfinite(value) else None for name, value in row.metrics.items()}
    return {"guidance_scale": row.guidance_scale, **({"head": row.head} if row.head else {}), **metrics}


def read_rows(path: Path) -> tuple[list[ImageRow], dict[str, Any]]:
    """The means a scale, and everything else of a file that `write_rows` wrote; RunError where it is damaged."""
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = []
        for values in about.pop("scales"):
            scale = float(values.pop("guidance_scale"))
            rows.append(ImageRow(scale, "", {k: math.inf if v is None else float(v) for k, v in values.items()}))
        return rows, about
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged; delete it and run the same command again") from error
