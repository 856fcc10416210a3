"""What every `cepdiff fit` does, whatever its stages are: in order, each once, each knowing what it was made from."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback

from cepdiff.data.blocks import StageDataModule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.errors import ConfigError, RunError
from cepdiff.modules.base import StageModule
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.networks.mlp import parameter_count
from cepdiff.policy.guided import GuidedPolicy, PolicyRecipe
from cepdiff.randomness import stream_seed
from cepdiff.stages.artifacts import RunFolder, file_hash
from cepdiff.stages.config import Config
from cepdiff.stages.processes import Processes
from cepdiff.stages.settings import StageSettings
from cepdiff.stages.training import load_finished, train_stage


class Fit(ABC):
    """One `cepdiff fit`: the stages as methods `fit_<stage>`, in the order of `stages`.

    Args:
        config: what to do.
        run: where to.
        data: loaded data.
        processes: who does it.
        sources: folders with the user's own classes, kept with the policy.
        reuse: another run, whose finished stages are taken over where they were made from the same.
    """

    stages: ClassVar[tuple[str, ...]]
    not_recorded: ClassVar[frozenset[str]] = frozenset()
    """Arguments of the data module that change nothing, or that its hash covers."""

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        data: StageDataModule,
        processes: Processes,
        sources: Sequence[str] = (),
        reuse: RunFolder | None = None,
    ) -> None:
        self.config = config
        self.run = run
        self.dataset_name = data.dataset_name
        self.sizes = data.sizes
        self.spec = data.spec
        self.processes = processes
        self.sources = list(sources)
        self.reuse = reuse
        values: dict[str, Any] = config.values["data"]
        arguments = {key: value for key, value in values["init_args"].items() if key not in self.not_recorded}
        self.common = {
            "dataset": data.content_hash,
            "data": {"class_path": values["class_path"], "init_args": arguments},
            "seed": config.seed,
        }
        self.behavior: BehaviorDiffusion = self.module("behavior", schedule=config.build("schedule"))
        self.guidance: EnergyGuidance = self.module("guidance", schedule=config.build("schedule"))
        self.solver: DPMSolver = config.build("solver")

    @classmethod
    def complete(cls, config: Config, data: StageDataModule) -> Config:
        """The configuration with what the loaded data supply; by default nothing."""
        return config

    def run_stages(self, only: str | None) -> Any:
        """All stages, or one whose predecessors are finished; returns what the last one gives."""
        if only is not None and only not in self.stages:
            raise ConfigError(f"there is no stage '{only}'; stages are {', '.join(self.stages)}")
        self.processes.on_main(lambda: self.run.open(self.config.to_yaml()))
        result = None
        for name in self.stages:
            if only is not None and name != only:
                self._require(name, only)
            result = getattr(self, f"fit_{name}")()
            if name == only:
                break
        self.processes.on_main(lambda: self.run.keep(self.config.to_yaml()))
        return result if only in (None, self.stages[-1]) else None

    def module(self, key: str, **supplied: Any) -> Any:
        """The module of section `key`; weights are initialised by (seed, stage), whatever was built before."""
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed(self.config.seed, key, "init"))
            return self.config.module(key, self.sizes, **supplied)

    def train(
        self,
        module: StageModule,
        data: StageDataModule,
        settings: StageSettings,
        record: dict[str, Any],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Trains a stage unless it is finished, and puts its weights into `module`."""
        done = self.claim(module.stage, record | {"max_steps": settings.max_steps})
        self.announce(module.stage, done, f", {parameter_count(module.net):,} parameters")
        if not done:
            train_stage(module, data, self.run, settings, self.processes, [*self.config.callbacks, *callbacks])
        load_finished(module, self.run, self.processes)

    def claim(self, stage: str, record: dict[str, Any]) -> bool:
        """Notes what a stage is made from; whether it is finished, here or in the run to reuse."""
        folder = self.run.stage(stage)

        def claim() -> bool:
            if self.reuse is not None:
                folder.adopt(self.reuse.stage(stage), record)
            folder.claim(record)
            return folder.done

        return self.processes.on_main(claim)

    def policy(self, guided: bool) -> GuidedPolicy:
        """The sampler as it stands."""
        return GuidedPolicy(
            self.spec,
            self.behavior.sampling_net,
            self.behavior.schedule,
            self.solver,
            self.guidance.sampling_net if guided else None,
            self.processes.device,
            energy_on_clean=self.guidance.objective.on_clean,
        )

    def save_policy(self, guided: bool, scales: Sequence[float], environment: dict[str, Any] | None = None) -> None:
        """Leaves `policy.pt` in the run folder."""
        recipe = PolicyRecipe(
            task=self.dataset_name,
            spec=self.spec.to_dict(),
            behavior_net=self.values("behavior")["init_args"]["net"],
            energy_net=self.values("guidance")["init_args"]["net"] if guided else None,
            schedule=self.values("schedule"),
            solver=self.values("solver"),
            environment=environment or {},
            scales=list(scales),
            sources=self.sources,
            energy_on_clean=self.guidance.objective.on_clean,
        )
        self.processes.on_main(lambda: self.policy(guided).save(self.run.path, recipe))

    def values(self, key: str) -> dict[str, Any]:
        """A section of the configuration, in plain values."""
        section: dict[str, Any] = self.config.values[key]
        return section

    def final_hash(self, stage: str) -> str:
        """Names the weights of a finished stage."""
        return self.processes.on_main(lambda: file_hash(self.run.stage(stage).final))

    def announce(self, stage: str, done: bool, size: str = "") -> None:
        """Says that a stage begins, or need not."""
        if self.processes.is_main:
            print(f"{stage}: {'finished earlier, skipped' if done else f'running{size}'}", file=sys.stderr)

    def seconds(self) -> dict[str, float]:
        """Wall clock of the stages but the last."""
        return {name: self.run.stage(name).seconds for name in self.stages[:-1]}

    def closing_lines(self, result: str) -> str:
        """Wall clock, where the result lies, how to look at the logs."""
        times = ", ".join(f"{name} {value:.0f} s" for name, value in self.seconds().items())
        return f"wall clock: {times}\n{result}\ntensorboard --logdir {self.run.logs}"

    @abstractmethod
    def fit_evaluation(self) -> Any:
        """The last stage: what the run is judged by."""

    def _require(self, name: str, wanted: str) -> None:
        if not self.processes.on_main(lambda: self.run.stage(name).done):
            raise RunError(f"--stage {wanted} needs the {name} stage, which has not finished in {self.run.path}")
