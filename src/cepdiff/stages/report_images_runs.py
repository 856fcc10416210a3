"""Finished runs on images, as the report compares them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cepdiff.errors import RunError
from cepdiff.stages.artifacts import RunFolder
from cepdiff.stages.distances import GUIDED, read_samples
from cepdiff.stages.image_evaluation import read_rows
from cepdiff.stages.image_figures import shown_heads

ANALYTIC = "{} (analytic)"  # a method without a network of the energy: the energy itself guides


@dataclass(frozen=True)
class Target:
    """What runs have in common that compare: images of one kind and the density that guidance aims at.

    `shape` is (C, H, W), `energy` "labels", "hues" or the name of a function, `beta` the inverse temperature.
    """

    dataset: str
    shape: tuple[int, ...]
    energy: str
    beta: float

    def __str__(self) -> str:
        channels, height, width = self.shape
        colours = "grey" if channels == 1 else "RGB"
        return f"{self.dataset} ({width}x{height}, {colours}), energy {self.energy}, beta {self.beta:g}"


@dataclass(frozen=True)
class ImageRun:
    """A finished run on images.

    Args:
        folder: where it lies.
        target: what it shares with the runs that it is compared with.
        method: class of the guidance objective; with a mark where the energy itself guides.
        seed: of the run.
        metrics: guidance scale -> metric -> mean over the heads.
        columns: metric -> title, in the order of the run's own table.
        distance: the metric that has a noise floor and multiples of it.
        real: metrics of real images, where they have some.
        heads: names of the heads in `samples`, of `num_heads`.
        num_samples: a head and scale.
        seconds: wall clock of each training stage.
        checkpoints: hash of the weights of each stage, where known; adopted stages share it.
        samples: guidance scale -> some images (heads, M, C, H, W) uint8.
    """

    folder: Path
    target: Target
    method: str
    seed: int
    metrics: Mapping[float, Mapping[str, float]]
    columns: Mapping[str, str]
    distance: str
    real: Mapping[str, float]
    heads: list[str]
    num_heads: int
    num_samples: int
    seconds: Mapping[str, float]
    checkpoints: Mapping[str, str]
    samples: Mapping[float, Tensor]

    @property
    def prior(self) -> str:
        """Names the weights that scale 0 samples from."""
        return self.checkpoints.get("behavior", str(self.folder))


def read_image_run(run: RunFolder) -> ImageRun:
    """A run with `images.json`; raises RunError where it or `samples.npz` is damaged."""
    path = run.images
    rows, about = read_rows(path)
    try:
        metrics = {row.guidance_scale: dict(row.metrics) for row in rows}
        names = list(dict.fromkeys(str(row["head"]) for row in about["heads"]))
        made_from: Mapping[str, Any] = about.get("made_from") or {}
        seconds = {str(stage): float(value) for stage, value in about["seconds"].items()}
        columns = {str(name): str(title) for name, title in about["columns"].items()}
        distance = str(about["distance"])
        needed = {distance, f"{distance}_floor", f"{distance}_multiple"}
        if not metrics or not names or not all(needed <= found.keys() for found in metrics.values()):
            raise ValueError("no rows, or rows without a distance")
        shown = shown_heads(len(names))
        samples = _samples_of(run, metrics, len(shown))
        objective = str(about["objective"])
        analytic = (run.stage("guidance").made_from or {}).get("max_steps") == 0
        return ImageRun(
            folder=run.path,
            target=Target(
                str(about["dataset"]),
                tuple(next(iter(samples.values())).shape[2:]),
                str(about["energy"]),
                float(about["inverse_temperature"]),
            ),
            method=ANALYTIC.format(objective) if analytic else objective,
            seed=int(about["seed"]),
            metrics=metrics,
            columns=columns,
            distance=distance,
            real={str(name): float(value) for name, value in about["real"].items()},
            heads=[names[head] for head in shown],
            num_heads=len(names),
            num_samples=int(about["num_samples"]),
            seconds=seconds,
            checkpoints={s: made_from[f"{s}_checkpoint"] for s in seconds if f"{s}_checkpoint" in made_from},
            samples=samples,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged; delete it and run the same `cepdiff fit` again") from error


def _samples_of(run: RunFolder, scales: Iterable[float], heads: int) -> dict[float, Tensor]:
    """The images of each scale; RunError where they are not there, or are not those of as many heads."""
    found = read_samples(run.samples)
    kept: dict[float, Tensor] = {}
    for scale in scales:
        images = found.get(GUIDED.format(scale))
        if images is None or images.ndim != 5 or not images.size or len(images) != heads:
            raise RunError(f"{run.samples} lacks samples; delete it and run the same `cepdiff fit` again")
        kept[scale] = torch.from_numpy(images).to(torch.uint8)
    return kept
