"""The stages of a density whose data come with their energies: prior, guidance, and samples held against exact ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cepdiff import __version__
from cepdiff.data.densities.datamodule import EnergyDataModule
from cepdiff.errors import RunError
from cepdiff.randomness import generator
from cepdiff.stages.artifacts import RunFolder, compare, made_from_of
from cepdiff.stages.config import Config
from cepdiff.stages.distances import (
    EXACT,
    GUIDED,
    DistanceRow,
    compare_samples,
    format_distances,
    plot_samples,
    read_distances,
    read_samples,
    write_distances,
    write_samples,
)
from cepdiff.stages.fit import Fit
from cepdiff.stages.logs import log_result
from cepdiff.stages.processes import Processes
from cepdiff.stages.settings import DensityStages, SampleSettings


class DensityFit(Fit):
    """Guided samples of p(x) ∝ q(x) exp(-beta E(x)), unconditional."""

    stages = ("behavior", "guidance", "evaluation")
    not_recorded = frozenset({"dataset", "energy", "num_points", "block_size"})

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        data: EnergyDataModule,
        processes: Processes,
        sources: Sequence[str] = (),
        reuse: RunFolder | None = None,
    ) -> None:
        assert isinstance(config.stages, DensityStages)
        assert isinstance(config.evaluation, SampleSettings)
        self.data = data
        self.lengths = config.stages
        self.settings = config.evaluation
        self.seed = config.seed if config.evaluation.seed is None else config.evaluation.seed
        super().__init__(config, run, data, processes, sources, reuse)
        self.objective = self.guidance.objective

    def fit_behavior(self) -> None:
        """The prior q, on points alone: its record does not know the energies, and other runs may reuse it."""
        record = {
            **self.common,
            "dataset": self.data.points_hash,
            "behavior": self.values("behavior"),
            "schedule": self.values("schedule"),
        }
        self.train(self.behavior, self.data, self.lengths.behavior, record)
        if not self.processes.on_main(lambda: self.run.stage("guidance").done):
            self.save_policy(False, self.settings.scales)

    def fit_guidance(self) -> None:
        """The energy network, on points and energies."""
        record = {**self.common, "guidance": self.values("guidance"), "schedule": self.values("schedule")}
        self.train(self.guidance, self.data, self.lengths.guidance, record)
        self.save_policy(True, self.settings.scales)

    def fit_evaluation(self) -> list[DistanceRow]:
        """Distances of guided samples from exact ones; made again only when networks or settings changed."""
        made_from = {
            "behavior_checkpoint": self.final_hash("behavior"),
            "guidance_checkpoint": self.final_hash("guidance"),
            "solver": self.values("solver"),
            "evaluation": self.values("evaluation") | {"seed": self.seed},
        }
        if self.processes.on_main(lambda: self._evaluated(made_from)):
            self.announce("evaluation", True)
            rows = self.processes.on_main(lambda: read_distances(self.run.distances)[0])
        else:
            self.announce("evaluation", False)
            scales = sorted(set(self.settings.scales))
            samples = {scale: self._sample(scale) for scale in scales}
            rows = self.processes.on_main(lambda: self._compare(samples, made_from))
        if self.processes.is_main:
            print(f"\n{self._title()}\n{format_distances(rows)}\n")
            print(self.closing_lines(f"distances {self.run.distances}, figure {self.run.panel}"))
        return rows

    def _evaluated(self, made_from: dict[str, Any]) -> bool:
        """Whether distances, samples and figure of just these networks and settings lie in the run folder."""
        if any(compare(made_from_of(self.run.distances), made_from)) or not self.run.panel.exists():
            return False
        try:
            read_samples(self.run.samples)
        except RunError:
            return False
        return True

    def _sample(self, scale: float) -> Tensor:
        """Guided samples (N, A) of all processes; sample i starts from the same noise at every scale."""
        count, size = self.settings.num_samples, self.spec.action_size
        noise = torch.randn(count, size, generator=generator(self.seed, "samples"))
        mine = noise[self.processes.rank :: self.processes.world]
        policy = self.policy(guided=True)
        samples = policy.act(torch.empty(len(mine), 0), guidance_scale=scale, noise=mine)
        return self.processes.gather_rows(samples, count).cpu()

    def _compare(self, samples: dict[float, Tensor], made_from: dict[str, Any]) -> list[DistanceRow]:
        beta, count = self.objective.inverse_temperature, self.settings.num_samples
        rows: list[DistanceRow] = []
        shown = {"data": self.data.points[:count], "energies": self.data.energies[:count]}
        for scale, guided in samples.items():

            @cache
            def exact(index: int, scale: float = scale) -> Tensor:
                return self.data.exact_samples(count, scale * beta, generator(self.seed, "exact", index))

            rows += compare_samples(guided, exact, scale, self.settings.floor_repeats)
            shown |= {EXACT.format(scale): exact(0), GUIDED.format(scale): guided}
        about = {
            "dataset": self.dataset_name,
            "objective": type(self.objective).__name__,
            "inverse_temperature": beta,
            "seed": self.config.seed,
            "cepdiff": __version__,
            "seconds": self.seconds(),
            "made_from": made_from,
        }
        write_samples(self.run.samples, shown)
        plot_samples(read_samples(self.run.samples), self.run.panel, self._title())
        self._log(rows)
        write_distances(self.run.distances, rows, about)
        return rows

    def _title(self) -> str:
        beta = self.objective.inverse_temperature
        return f"{self.dataset_name}, {type(self.objective).__name__}, beta {beta:g}, seed {self.config.seed}"

    def _log(self, rows: Sequence[DistanceRow]) -> None:
        values = {f"eval/{row.distance}/s={row.guidance_scale}": row.value for row in rows}
        values |= {f"eval/{row.distance}_multiple/s={row.guidance_scale}": row.multiple for row in rows}
        log_result(self.run.logs / "evaluation", values, self.run.panel, self.lengths.guidance.max_steps)
