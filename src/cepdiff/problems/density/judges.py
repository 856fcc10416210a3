"""Judges of guided images: metrics per guidance scale and head, by comparison with the real images.

A judge measures how far samples of a head are from the real images. Its distance has a noise floor: the distance
between two independent sets of real (or exactly reweighted) images of the same size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.data.images.energies import from_bytes
from cepdiff.energy.sample_metrics import (
    circular_wasserstein,
    image_hues,
    resample,
    reweighted_floor,
    wasserstein_1,
)
from cepdiff.runs.results import Row

CHUNK = 1 << 22  # values of images at a time


class Judge(Protocol):
    """Measures samples.

    `columns` are the metrics of the table, with title and format; `distance` is the one with a noise floor, measured as
    "<distance>_floor". `real` are the metrics of real images, if there are any; `remark` ends the title.
    """

    columns: dict[str, tuple[str, str]]
    distance: str
    real: dict[str, float]
    remark: str

    def measure(self, images: Tensor, head: int, scale: float) -> dict[str, float]:
        """Metrics of samples (M, C, H, W) uint8 of one head and scale."""
        ...


def judge_samples(samples: Mapping[float, Tensor], judge: Judge, head_names: Sequence[str]) -> list[Row]:
    """Rows of samples (H, M, C, H, W) per scale: means over the heads first, then those of each head."""
    found = {
        scale: [judge.measure(images[head], head, scale) for head in range(len(head_names))]
        for scale, images in samples.items()
    }
    floor, spread = f"{judge.distance}_floor", f"{judge.distance}_floor_std"
    rows = []
    for scale, by_head in found.items():
        mean = {name: sum(metrics[name] for metrics in by_head) / len(by_head) for name in by_head[0]}
        for head, metrics in [("", mean), *zip(head_names, by_head, strict=True)]:
            floors: dict[str, Any] = {"floor": metrics[floor], "floor_error": metrics.get(spread)}
            rows += [
                Row(scale, name, value, head, **(floors if name == judge.distance else {}))
                for name, value in metrics.items()
                if name not in (floor, spread)
            ]
    return sorted(rows, key=lambda row: bool(row.head))


class EnergyJudge:
    """Judges by an energy that is a function of the image, against the data reweighted by exp(-scale beta E_h).

    The distance is that of the samples' hues on the circle for hue energies, and the Wasserstein-1 distance of the
    energies for other functions. Values and floors are means over draws of as many reweighted training images (mirror
    images included) as there are samples.

    Args:
        data: the images and their energies.
        inverse_temperature: beta.
        repeats: draws, and pairs of them.
        seed: of the draws.
    """

    def __init__(self, data: ImageDataModule, inverse_temperature: float, repeats: int, seed: int) -> None:
        self.data = data
        self.inverse_temperature = inverse_temperature
        self.repeats = repeats
        self.seed = seed
        self.by_hue = is_hue(data)
        self.distance = "hue_distance" if self.by_hue else "energy_distance"
        title = "hue distance" if self.by_hue else "energy W1"
        self.columns = {
            "energy": ("energy", ".3f"), "energy_exact": ("exact", ".3f"), self.distance: (title, ".3f")
        }  # fmt: skip
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
    """True if the energies of `data` are those of hues."""
    return data.energy == "hues"


def training_images(data: ImageDataModule) -> Iterator[Tensor]:
    """The images that training draws from, mirror images included: (M, C, H, W) in [-1, 1], some at a time."""
    gather, rows = data.gatherer(("samples",)), data.rows(("samples",))
    for some in torch.split(rows, max(1, CHUNK // data.spec.action_size)):
        yield gather(some)["samples"].reshape(-1, *data.image_shape)  # (M, A) -> (M, C, H, W)


def in_chunks(images: Tensor) -> Iterator[Tensor]:
    """Images (N, ...), some at a time."""
    return iter(torch.split(images, max(1, CHUNK // images[0].numel())))
