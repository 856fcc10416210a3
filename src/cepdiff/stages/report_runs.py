"""The finished runs among some folders, read into memory: of densities, of images and of offline RL."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cepdiff.errors import RunError
from cepdiff.rollout.scores import ScoreRow, read_score_file
from cepdiff.stages.artifacts import LOCK, RunFolder
from cepdiff.stages.distances import EXACT, GUIDED, DistanceRow, read_distances, read_samples
from cepdiff.stages.report_images_runs import ImageRun, read_image_run

SCALE = 1.0  # the guidance scale at which densities are compared: the one that is exact in the limit


@dataclass(frozen=True)
class DensityRun:
    """A finished run of a density.

    Args:
        folder: where it lies.
        dataset: the density's name.
        method: class of the guidance objective.
        beta: inverse temperature.
        seed: of the run.
        distances: the row of each distance at `SCALE`.
        seconds: wall clock of each training stage.
        checkpoints: hash of the weights of each stage, where known; adopted stages share it.
        samples: `data`, `energies`, exact and guided points.
    """

    folder: Path
    dataset: str
    method: str
    beta: float
    seed: int
    distances: Mapping[str, DistanceRow]
    seconds: Mapping[str, float]
    checkpoints: Mapping[str, str]
    samples: Mapping[str, NDArray[np.float32]]

    @property
    def exact(self) -> NDArray[np.float32]:
        """Exact samples of p (N, A)."""
        return self.samples[EXACT.format(SCALE)]

    @property
    def guided(self) -> NDArray[np.float32]:
        """The method's samples (N, A)."""
        return self.samples[GUIDED.format(SCALE)]


@dataclass(frozen=True)
class PolicyRun:
    """A finished run of offline RL; `rows` are sorted by guidance scale."""

    folder: Path
    task: str
    seed: int
    rows: Sequence[ScoreRow]


@dataclass
class Found:
    """What some folders hold: finished runs, runs that have not finished, runs of densities that were not compared at
    `SCALE`, and what is no run."""

    densities: list[DensityRun] = field(default_factory=list)
    images: list[ImageRun] = field(default_factory=list)
    policies: list[PolicyRun] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    without_scale: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)


def find_runs(folders: Iterable[Path]) -> Found:
    """Reads the runs among `folders`; a folder given twice counts once.

    Raises:
        RunError: a folder is not there, its files are damaged, or two folders hold one and the same run.
    """
    found = Found()
    for folder in {folder.resolve(): folder for folder in folders}.values():
        run = RunFolder(folder)
        if not folder.exists():
            raise RunError(f"there is no run folder {folder}")
        if run.distances.is_file():
            density = read_density_run(run)
            if density is None:
                found.without_scale.append(folder)
            else:
                found.densities.append(density)
        elif run.images.is_file():
            found.images.append(read_image_run(run))
        elif run.scores.is_file():
            found.policies.append(read_policy_run(run))
        elif run.config.is_file() or (folder / LOCK).is_file():
            found.unfinished.append(folder)
        else:
            found.foreign.append(folder)
    _refuse_twins((f"{r.dataset}, {r.method}, beta {r.beta:g}, seed {r.seed}", r.folder) for r in found.densities)
    _refuse_twins((f"{r.target}, {r.method}, seed {r.seed}", r.folder) for r in found.images)
    _refuse_twins((f"{r.task}, seed {r.seed}", r.folder) for r in found.policies)
    return found


def read_density_run(run: RunFolder) -> DensityRun | None:
    """A run with `distances.json`; None where it was not compared at `SCALE`."""
    rows, about = read_distances(run.distances)
    try:
        here = {row.distance: row for row in rows if row.guidance_scale == SCALE}
        if not all(math.isfinite(row.value) and row.floor >= 0 and math.isfinite(row.floor) for row in here.values()):
            raise ValueError("distances are no numbers")
        if not here:
            return None
        made_from: Mapping[str, Any] = about.get("made_from") or {}
        seconds = {str(stage): float(value) for stage, value in about["seconds"].items()}
        found = DensityRun(
            folder=run.path,
            dataset=str(about["dataset"]),
            method=str(about["objective"]),
            beta=float(about["inverse_temperature"]),
            seed=int(about["seed"]),
            distances=here,
            seconds=seconds,
            checkpoints={s: made_from[f"{s}_checkpoint"] for s in seconds if f"{s}_checkpoint" in made_from},
            samples=read_samples(run.samples),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{run.distances} is damaged; delete it and run the same `cepdiff fit` again") from error
    points = [found.samples.get(name, np.empty(0)) for name in ("data", EXACT.format(SCALE), GUIDED.format(SCALE))]
    energies = found.samples.get("energies", np.empty(0))
    if any(sample.ndim != 2 or sample.size == 0 for sample in points) or energies.shape != (len(points[0]),):
        raise RunError(f"{run.samples} lacks samples; delete it and run the same `cepdiff fit` again")
    return found


def read_policy_run(run: RunFolder) -> PolicyRun:
    """A run with `scores.json`."""
    rows, about = read_score_file(run.scores)
    try:
        return PolicyRun(run.path, str(about["task"]), int(about["seed"]), sorted(rows, key=lambda r: r.guidance_scale))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.scores} is damaged; delete it and run the same `cepdiff fit` again") from error


def _refuse_twins(named: Iterable[tuple[str, Path]]) -> None:
    """Two runs that differ in nothing a table shows would be averaged as seeds, and are none."""
    known: dict[str, Path] = {}
    for name, folder in named:
        if name in known:
            raise RunError(f"{known[name]} and {folder} are both {name}; leave one of them out")
        known[name] = folder
