"""The base of problems that guide a diffusion model by an energy: shared modules, records and the policy file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from cepdiff.components import Component, class_path_of
from cepdiff.data.blocks import StageDataModule
from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import CEP, EnergyObjective
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import POLICY_FILE, Recipe, write_recipe
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.runs.problem import Problem
from cepdiff.runs.run import Run

OBJECTIVE = {"objective": {"class_path": class_path_of(CEP)}}


class GuidedProblem(Problem):
    """A behavior diffusion q and an energy network that guides it.

    Args:
        run: the run.
        data: loaded data.
        schedule: the forward process.
        behavior: the noise predictor of q.
        guidance: the energy network.
        solver: of the sampler.
        sampler: how samples are drawn.
    """

    nested: ClassVar[Mapping[str, Mapping[str, Any]]] = {"guidance": OBJECTIVE}

    def __init__(
        self,
        run: Run,
        data: StageDataModule,
        schedule: Component[NoiseSchedule] = Component(LinearVP),
        behavior: Component[BehaviorDiffusion] = Component(BehaviorDiffusion),
        guidance: Component[EnergyGuidance] = Component(EnergyGuidance),
        solver: Component[DPMSolver] = Component(DPMSolver),
        sampler: Component[GuidedSampler] = Component(GuidedSampler),
    ) -> None:
        super().__init__(run, data)
        self.components: dict[str, Component[Any]] = {
            "schedule": schedule, "behavior": behavior, "guidance": guidance, "solver": solver, "sampler": sampler
        }  # fmt: skip
        self.schedule = schedule()
        self.solver = solver()
        self.behavior: BehaviorDiffusion = run.module("behavior", behavior, data.sizes, schedule=self.schedule)
        self.guidance: EnergyGuidance = run.module("guidance", guidance, data.sizes, schedule=self.schedule)
        self.has_energy = False  # until the guidance stage is finished

    @property
    def objective(self) -> EnergyObjective:
        """The objective that the energy network is trained on."""
        return self.guidance.objective

    def record(self, *keys: str) -> dict[str, Any]:
        """Those sections as a stage's record has them, after the data and the seed."""
        return {**self.common, **{key: self.components[key].record for key in keys}}

    def networks(self) -> dict[str, nn.Module]:
        """The networks that samplers can use, by name; those of unfinished stages are missing."""
        return {"behavior": self.behavior.sampling_net} | (
            {"energy": self.guidance.sampling_net} if self.has_energy else {}
        )

    def network_specs(self) -> dict[str, dict[str, Any]]:
        """Class and arguments of each network in `networks`."""
        return {name: self.components[key].spec["init_args"]["net"] for name, key in self.network_sections().items()}

    def sampler(self, networks: Mapping[str, nn.Module] | None = None) -> GuidedSampler:
        """The run's sampler, with what has been trained so far or with those `networks`."""
        found: GuidedSampler = self.components["sampler"](self.parts(self.networks() if networks is None else networks))
        return found

    def policy(self) -> Any:
        """The policy of what has been trained so far: the sampler in the data's units."""
        return GuidedPolicy(self.data.spec, self.sampler())

    def parts(self, networks: Mapping[str, nn.Module]) -> SamplerParts:
        """The sampler's parts."""
        return SamplerParts(self.data.sizes[1], networks, self.schedule, self.solver, self.objective)

    def recipe(self, scales: list[float]) -> Recipe:
        """The policy file's content, but for networks and weights."""
        return Recipe(
            dataset=self.data.dataset_name,
            spec=self.data.spec.to_dict(),
            sampler=self.components["sampler"].spec,
            networks={},
            schedule=self.components["schedule"].spec,
            solver=self.components["solver"].spec,
            objective=self.components["guidance"].spec["init_args"]["objective"],
            scales=scales,
            sources=list(self.run.sources),
        )

    def save_sampler(self, recipe: Recipe) -> None:
        """Write `policy.pt`: the recipe and the networks that the sampler needs."""
        networks, specs = self.networks(), self.network_specs()
        needed = self.components["sampler"].cls.needs
        recipe.networks.update({name: specs[name] for name in networks if name in needed})
        self.run.processes.on_main(lambda: write_recipe(self.run.folder.path / POLICY_FILE, recipe, networks))

    def evaluation_record(self) -> dict[str, Any]:
        """The part of the evaluation's record that all problems share."""
        return {
            **{key: value for key, value in self.common.items() if key == "problem"},
            **{f"{stage}_checkpoint": self.run.weights_hash(stage) for stage in self.network_sections().values()},
            "solver": self.components["solver"].record,
            "sampler": self.components["sampler"].record,
        }

    def is_finished(self, stage: str) -> bool:
        """True if the stage has finished, in this or an earlier command."""
        return self.run.processes.on_main(lambda: self.run.folder.stage(stage).done)

    def network_sections(self) -> dict[str, str]:
        """Name of each network -> its section, which is also its stage."""
        return {"behavior": "behavior", "energy": "guidance"}
