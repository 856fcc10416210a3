"""The base of problems that guide a diffusion model by an energy: shared modules, records and the policy file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningDataModule
from torch import nn

from cepdiff.components import Component, class_path_of
from cepdiff.data.blocks import StageDataModule
from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import CEP, EnergyObjective
from cepdiff.errors import CepdiffError
from cepdiff.modules.base import StageModule
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.networks.tempered import Tempered
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import POLICY_FILE, Recipe, read_recipe, write_recipe
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.runs.folder import FINAL
from cepdiff.runs.problem import Problem
from cepdiff.runs.results import Results, Row, with_inverse_temperatures
from cepdiff.runs.run import Run
from cepdiff.runs.stage import StageSettings, TrainedStage

OBJECTIVE = {"objective": {"class_path": class_path_of(CEP)}}


class GuidedProblem(Problem):
    """A behavior diffusion q and an energy network that guides it.

    A subclass with another trained network adds its module to `modules` and its name to `network_sections`.

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
        self.modules: dict[str, StageModule] = {"behavior": self.behavior, "guidance": self.guidance}  # by section
        self.network_sections = {"behavior": "behavior", "energy": "guidance"}  # by name, as samplers know them
        self.trained: set[str] = set()  # sections whose stages are finished
        self.scales: Sequence[float] = (0.0, 1.0)  # guidance scales to judge
        self.shows_inverse_temperatures = isinstance(self.guidance.net, Tempered)

    def verify(self) -> None:
        """Make the sampler once, with untrained networks: it refuses options that it cannot have."""
        networks = {name: self.modules[section].sampling_net for name, section in self.network_sections.items()}
        modes = [(module, module.training) for net in networks.values() for module in net.modules()]
        self.sampler(networks)
        for module, training in modes:  # samplers set networks to eval mode
            module.training = training

    @property
    def objective(self) -> EnergyObjective:
        """The objective that the energy network is trained on."""
        return self.guidance.objective

    def judge_at(self, scales: Sequence[float], inverse_temperatures: Sequence[float] | None) -> None:
        """Set the guidance scales to judge: `scales`, or s = b / beta for each of the inverse temperatures b, if given.

        Raises ConfigError for a scale above the highest that the energy network is trained at.
        """
        self.scales = scales
        if inverse_temperatures is not None:
            self.scales = [value / self.objective.inverse_temperature for value in inverse_temperatures]
            self.shows_inverse_temperatures = True
        if isinstance(self.guidance.net, Tempered):
            self.guidance.net.check_scales(self.scales)

    @property
    def method(self) -> str:
        """What the energy network is trained by, for tables: the objective, and if it is told the scale."""
        name = type(self.objective).__name__
        return f"{name} (tempered)" if isinstance(self.guidance.sampling_net, Tempered) else name

    @property
    def title(self) -> str:
        """Above tables and figures."""
        return f"{self.data.dataset_name}, seed {self.run.seed}"

    def train(
        self,
        section: str,
        length: StageSettings,
        data: Callable[[], LightningDataModule] | None = None,
        made_from: Callable[[], Mapping[str, Any]] | None = None,
    ) -> TrainedStage:
        """The stage that trains the module of `section`, by default on the problem's data.

        The default record has the data, the module's section and the schedule. Once finished, the module's network is
        in `policy.pt`.
        """
        module = self.modules[section]
        return TrainedStage(
            self.run, module, data or (lambda: self.data), length,
            made_from or (lambda: self.record(section, "schedule")), self.callbacks(section),
            lambda: self.finish(section),
        )  # fmt: skip

    def callbacks(self, section: str) -> list[Callback]:
        """Callbacks of a trained stage, besides the configuration's."""
        return []

    def record(self, *keys: str) -> dict[str, Any]:
        """Those sections as a stage's record has them, after the data and the seed."""
        return {**self.common, **{key: self.components[key].record for key in keys}}

    def networks(self) -> dict[str, nn.Module]:
        """The networks that samplers can use, by name: the behavior's, and those of finished stages."""
        return {
            name: self.modules[section].sampling_net
            for name, section in self.network_sections.items()
            if name == "behavior" or section in self.trained
        }

    def network_specs(self) -> dict[str, dict[str, Any]]:
        """Class and arguments of each network."""
        return {
            name: self.modules[key].network_spec(self.components[key].spec["init_args"])
            for name, key in self.network_sections.items()
        }

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

    def recipe(self) -> Recipe:
        """The policy file's content, but for weights."""
        specs, needed = self.network_specs(), self.components["sampler"].cls.needs
        return Recipe(
            dataset=self.data.dataset_name,
            spec=self.data.spec.to_dict(),
            sampler=self.components["sampler"].spec,
            networks={name: specs[name] for name in self.networks() if name in needed},
            schedule=self.components["schedule"].spec,
            solver=self.components["solver"].spec,
            objective=self.components["guidance"].spec["init_args"]["objective"],
            scales=list(self.scales),
            sources=list(self.run.sources),
            made_from={f"{section}/{FINAL}": self.run.weights_hash(section) for section in sorted(self.trained)},
        )

    def evaluation_record(self) -> dict[str, Any]:
        """The part of the evaluation's record that all problems share."""
        return {
            **{key: value for key, value in self.common.items() if key == "problem"},
            **{f"{section}_checkpoint": self.run.weights_hash(section) for section in self.network_sections.values()},
            **{key: self.components[key].record for key in ("schedule", "guidance", "solver", "sampler")},
        }

    def results_of(self, rows: Sequence[Row], columns: Mapping[str, Sequence[str]], **more: Any) -> Results:
        """`rows` as results of this run."""
        facts: dict[str, Any] = {"title": self.title, "method": self.method, **more}
        if self.shows_inverse_temperatures:
            rows, columns = with_inverse_temperatures(rows, columns, self.objective.inverse_temperature)
        return Results(
            problem=class_path_of(type(self)),
            dataset=self.data.dataset_name,
            seed=self.run.seed,
            rows=rows,
            columns=columns,
            inverse_temperature=self.objective.inverse_temperature,
            **facts,
        )

    def finish(self, section: str) -> None:
        """Use the trained network; write `policy.pt`, unless an earlier command wrote one of more finished stages."""
        self.trained.add(section)
        processes, folder = self.run.processes, self.run.folder
        path = folder.path / POLICY_FILE

        def has_more() -> bool:
            try:
                known = {name.split("/")[0] for name in read_recipe(path)[0].made_from}
            except CepdiffError:  # there is none yet, or it was made from other weights
                return False
            return known > self.trained and all(folder.stage(other).done for other in known)

        def write() -> None:
            results = folder.results
            if path.is_file() and results.is_file() and not samples_as_before(path, recipe):
                print(f"{path} now samples differently", file=sys.stderr)
                folder.keep_results()
            write_recipe(path, recipe, networks)

        if not processes.on_main(has_more):
            recipe, networks = self.recipe(), self.networks()
            processes.on_main(write)


def samples_as_before(path: Path, recipe: Recipe) -> bool:
    """True if the policy file at `path` draws the same samples as `recipe` from the same weights."""
    try:
        before = read_recipe(path)[0]
    except CepdiffError:  # it is written again; the results are of unknown origin
        return True
    return before.sampler_hash == recipe.sampler_hash
