"""Densities of points that come with their energies; guided samples are compared with exact ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cepdiff.components import Component
from cepdiff.data.densities.datamodule import EnergyDataModule
from cepdiff.modules.guidance import BatchEnergyGuidance
from cepdiff.problems.density.problem import DensityProblem
from cepdiff.problems.density.report import point_sections
from cepdiff.problems.density.samples import (
    COLUMNS,
    EXACT,
    GUIDED,
    compare_samples,
    plot_samples,
    read_samples,
    write_samples,
)
from cepdiff.randomness import generator
from cepdiff.ranges import AtLeastTwo, NonNegative
from cepdiff.runs.report import OFFLINE, Section
from cepdiff.runs.results import Results, Row
from cepdiff.runs.run import Run
from cepdiff.runs.stage import StageSettings
from cepdiff.runs.threads import settle_threads


@dataclass
class PointStages:
    """The stages of a run on points."""

    behavior: StageSettings = field(default_factory=lambda: StageSettings(10_000))
    guidance: StageSettings = field(default_factory=lambda: StageSettings(10_000))


@dataclass
class PointEvaluation:
    """Comparison of guided samples with exact ones.

    Args:
        num_samples: per scale, and per exact draw; at least 2.
        scales: guidance scales; 1 is exact, 0 samples the prior.
        inverse_temperatures: s beta for each scale s, instead of `scales`; null uses `scales`.
        floor_repeats: pairs of independent exact draws, whose mean distance is the noise floor; at least 2.
        seed: of the samples' noise and of the exact draws; null is the run's seed.
    """

    num_samples: AtLeastTwo = 10_000
    scales: list[NonNegative] = field(default_factory=lambda: [0.0, 1.0])
    inverse_temperatures: list[NonNegative] | None = None
    floor_repeats: AtLeastTwo = 4
    seed: int | None = None


TRIAL_POINTS = 256  # to choose the number of threads by


class PointDensity(DensityProblem):
    """A density of points with one energy.

    Args:
        run: the run.
        data: points and energies.
        guidance: the energy network, contrasted over the batch.
        stages: lengths.
        evaluation: comparison with exact samples.
        sections: those of `GuidedProblem`.
    """

    not_recorded = frozenset({"dataset", "energy", "num_points", "block_size"})

    def __init__(
        self,
        run: Run,
        data: EnergyDataModule,
        guidance: Component[BatchEnergyGuidance] = Component(BatchEnergyGuidance),
        *,
        stages: PointStages,
        evaluation: PointEvaluation,
        **sections: Any,
    ) -> None:
        super().__init__(run, data, guidance=guidance, stages=stages, evaluation=evaluation, **sections)

    def files(self) -> list[Path]:
        return [self.run.folder.samples, self.run.folder.path / "samples.png"]

    def judge(self) -> Results:
        policy, some = self.policy(), torch.zeros(TRIAL_POINTS, self.policy().noise_size)
        settle_threads(
            self.run.processes, "evaluation",
            lambda: policy.act(torch.empty(TRIAL_POINTS, 0), guidance_scale=max(self.scales), noise=some),
            len(self.scales) * self.settings.num_samples / TRIAL_POINTS,
        )  # fmt: skip
        samples = {scale: self._sample(scale) for scale in sorted(set(self.scales))}
        return self.run.processes.on_main(lambda: self._compare(samples))

    @classmethod
    def report(cls, runs: Sequence[Results], output: Path, scale: float | str = OFFLINE) -> list[Section]:
        return point_sections(runs, output)

    def _sample(self, scale: float) -> Tensor:
        """Guided samples (N, A) of all processes; sample i starts from the same noise at every scale."""
        processes, count = self.run.processes, self.settings.num_samples
        policy = self.policy()
        noise = torch.randn(count, policy.noise_size, generator=generator(self.seed, "samples"))
        mine = noise[processes.rank :: processes.world]
        samples = policy.act(torch.empty(len(mine), 0), guidance_scale=scale, noise=mine)
        return processes.gather_rows(samples, count).cpu()

    def _compare(self, samples: dict[float, Tensor]) -> Results:
        beta, count = self.objective.inverse_temperature, self.settings.num_samples
        rows: list[Row] = []
        shown = {"data": self.data.points[:count], "energies": self.data.energies[:count]}
        for scale, guided in samples.items():

            @cache
            def exact(index: int, scale: float = scale) -> Tensor:
                found: Tensor = self.data.exact_samples(count, scale * beta, generator(self.seed, "exact", index))
                return found

            rows += compare_samples(guided, exact, scale, self.settings.floor_repeats)
            shown |= {EXACT.format(scale): exact(0), GUIDED.format(scale): guided}
        results = self.results_of(rows, COLUMNS)
        samples_file, panel = self.files()
        write_samples(samples_file, shown)
        plot_samples(read_samples(samples_file), panel, self.title)
        self.log(results, panel)
        return results
