"""Offline RL: behavior, support, critic, guidance, and rollouts of the policy."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule
from torch import nn

from cepdiff.callbacks.rollout import RolloutCallback
from cepdiff.components import Component, class_path_of
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.lookahead import require_order
from cepdiff.errors import ConfigError
from cepdiff.files import write_json
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.distillation import Distillation
from cepdiff.policy.diagnostics import Diagnostics, diagnose, draw_states, spread
from cepdiff.policy.engines import check_engine, own_method, require_engine
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.one_step import OneStep
from cepdiff.policy.recipe import Recipe
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.problems.guided import GuidedProblem
from cepdiff.problems.offline.diagnostics_report import log_diagnostics, plot_diagnostics
from cepdiff.problems.offline.distillation import (
    DistillationSettings,
    DrawnActions,
    draw_actions,
    one_step_errors,
    one_step_scores,
)
from cepdiff.problems.offline.environment import EvaluationSettings, evaluation_of
from cepdiff.problems.offline.judge import (
    COLUMNS,
    choose_rollout_threads,
    draw,
    log_scores,
    marks,
    no_best,
    offline_rows,
    rollouts,
    score_rows,
)
from cepdiff.problems.offline.report import report
from cepdiff.problems.offline.support_stage import SupportSettings, SupportStage, support_energies
from cepdiff.rollout.scores import ScoreRow, summarize
from cepdiff.runs.report import OFFLINE, Section
from cepdiff.runs.results import Results, Row
from cepdiff.runs.run import Run
from cepdiff.runs.stage import Judgement, Stage, StageSettings
from cepdiff.seals import read_sealed, write_sealed

UNIT_FORMAT = 1
UNIT_STATES = 4096  # states on which the unit of the energies is measured


@dataclass
class OfflineStages:
    """The stages in order, with the recipe's lengths; by default there is no distillation."""

    behavior: StageSettings = field(default_factory=lambda: StageSettings(600_000))
    support: SupportSettings = field(default_factory=SupportSettings)
    critic: StageSettings = field(default_factory=lambda: StageSettings(500_000))
    guidance: StageSettings = field(default_factory=lambda: StageSettings(1_000_000))
    distillation: DistillationSettings = field(default_factory=DistillationSettings)


class OfflineRL(GuidedProblem):
    """Guided policies from logged transitions.

    Args:
        run: the run.
        data: the buffer.
        critic: the critic, whose Q is minus the energy.
        distillation: the network that acts in one step, if `stages.distillation` has steps.
        stages: lengths.
        evaluation: rollouts.
        sections: those of `GuidedProblem`.
    """

    # The record of the critic has the reward rule.
    not_recorded = frozenset({
        "dataset", "dataset_dir", "env_id", "env_kwargs", "action_low", "action_high", "block_size", "reward_rule",
        "action_steps", "critic_rows", "margin",
    })  # fmt: skip
    used_from: ClassVar[Mapping[str, str]] = {
        "behavior": "behavior",
        **dict.fromkeys(("solver", "stages.support"), "support"),
        **dict.fromkeys(("critic", "data.reward_rule", "data.critic_rows", "stages.critic"), "critic"),
        **dict.fromkeys(("guidance", "critic.energy_unit", "stages.guidance"), "guidance"),
        **dict.fromkeys(("distillation", "sampler", "stages.distillation"), "distillation"),
        "evaluation": "evaluation",
    }
    data: OfflineDataModule

    def __init__(
        self,
        run: Run,
        data: OfflineDataModule,
        critic: Component[SoftmaxQCritic] = Component(SoftmaxQCritic),
        distillation: Component[Distillation] = Component(Distillation),
        *,
        stages: OfflineStages,
        evaluation: EvaluationSettings,
        **sections: Any,
    ) -> None:
        if type(self).policy is not GuidedProblem.policy:
            raise ConfigError(f"{type(self).__name__}.policy is not kept in policy.pt: override the sampler instead")
        self.evaluation = evaluation_of(data, evaluation, run.seed)
        sampler = run.components["sampler"].cls
        require_engine(evaluation.engine, run.processes.device, own_method(sampler.sample))
        super().__init__(run, data, **sections)
        self.judge_at(self.evaluation.scales, evaluation.inverse_temperatures)
        self.scales = sorted(set(self.scales))
        self.evaluation = replace(self.evaluation, scales=self.scales)
        self.components["critic"] = critic
        self.critic: SoftmaxQCritic = run.module("critic", critic, data.sizes)
        self.modules["critic"] = self.critic
        if self.critic.num_steps != 1:
            require_order(data.buffer)
        if data.for_critic() is not data and "next_support_actions" in self.critic.batch_fields:
            raise ConfigError(
                f"data.critic_rows: {type(self.critic).__name__} needs support actions at all rows, and they are drawn "
                "at the chosen rows only; use cepdiff.modules.critic.ExpectileQCritic"
            )
        self.network_sections["critic"] = "critic"
        self.energy_unit = 1.0  # in scaled rewards; measured when the critic is trained
        self.lengths = stages
        if stages.distillation.max_steps:
            self.components["distillation"] = distillation
            self.noise_size = self.sampler({}).noise_size
            module = run.module("distillation", distillation, data.sizes, noise_size=self.noise_size)
            self.modules["distillation"] = module
            self.network_sections["one_step"] = "distillation"
        self.every_n_steps = evaluation.every_n_steps
        self.support = SupportStage(
            run, self.prior, data, stages.support,
            lambda: {**self.record("solver"), "behavior_checkpoint": run.weights_hash("behavior")},
        )  # fmt: skip
        if run.processes.is_main:
            print("\n".join(data.notes()), file=sys.stderr)

    @classmethod
    def check(cls, sections: Mapping[str, Any]) -> None:
        check_engine(sections["evaluation"].engine)

    def stages(self) -> list[Stage]:
        lengths, folder = self.lengths, self.run.folder.path
        figures = ["diagnostics.png", *(["scores.png"] if self.evaluation.environment is not None else [])]
        distillation: list[Stage] = []
        if "distillation" in self.modules:
            data, record = self.distillation_data, self.distillation_record
            distillation = [self.train("distillation", lengths.distillation, data, record)]
        return [
            self.train("behavior", lengths.behavior, self.behavior_data),
            self.support,
            self.train("critic", lengths.critic, self.critic_data, self.critic_record),
            self.train("guidance", lengths.guidance, self.guidance_data, self.guidance_record),
            *distillation,
            Judgement(self.run, self.evaluation_record, self.judge, [folder / name for name in figures]),
        ]

    def critic_record(self) -> dict[str, Any]:
        """With the reward rule, which affects only the critic; the unit of its energies affects only later stages."""
        scaling = self.data.scaling
        rule = {"reward_rule": self.data.reward_rule} if scaling is None else scaling.record
        data = self.data.for_critic()
        rows = {} if data is self.data else {"rows": data.content_hash}
        found = {**self.record("critic"), **rule, **rows, "support": self.support.hash}
        arguments = {key: value for key, value in found["critic"]["init_args"].items() if key != "energy_unit"}
        return {**found, "critic": {**found["critic"], "init_args": arguments}}

    def guidance_record(self) -> dict[str, Any]:
        """With the critic whose energies it learns, and their unit."""
        upstream = {"support": self.support.hash, "critic_checkpoint": self.run.weights_hash("critic")}
        return {**self.record("guidance", "schedule"), **upstream, **self.unit_record()}

    def unit_record(self) -> dict[str, Any]:
        """The unit of the energies, unless it is the reward."""
        return {} if self.critic.energy_unit == "reward" else {"energy_unit": self.critic.energy_unit}

    def distillation_record(self) -> dict[str, Any]:
        """With all networks that the sampler can use."""
        upstream = {f"{name}_checkpoint": self.run.weights_hash(name) for name in ("behavior", "critic", "guidance")}
        drawn = {"num_actions": self.lengths.distillation.num_actions, "max_scale": max(self.scales)}
        sections = self.record("distillation", "schedule", "guidance", "solver", "sampler")
        return {**sections, **upstream, **drawn, **self.unit_record()}

    def behavior_data(self) -> OfflineDataModule:
        """All rows; the findings of `cepdiff data check` are kept with the run."""
        findings = [asdict(finding) for finding in self.data.findings]
        self.run.processes.on_main(lambda: write_json(self.run.folder.path / "data_check.json", findings))
        return self.data

    def prior(self) -> GuidedSampler:
        """The plain sampler of the behavior policy, not the class under `sampler:`."""
        # In mixed precision, casts are kept only of weights that could be trained.
        net = copy.deepcopy(self.behavior.sampling_net).requires_grad_(True)
        return GuidedSampler(self.parts({"behavior": net}))

    def critic_data(self) -> OfflineDataModule:
        """Support actions unless all rows are used, and transitions over as many steps as the critic's backup."""
        data, critic = self.data.for_critic(), self.critic
        if data is self.data:
            data = data.with_support(self.support.cache)
        return data if critic.num_steps == 1 else data.with_lookahead(critic.discount, critic.num_steps)

    def guidance_data(self) -> OfflineDataModule:
        """Support actions and their energies -Q."""
        energies = support_energies(
            self.critic, self.data, self.support.cache, self.run.folder.stage("guidance"), self.run.processes
        )
        return self.data.with_support(self.support.cache, energies / self.energy_unit)

    def parts(self, networks: Mapping[str, nn.Module]) -> SamplerParts:
        return replace(super().parts(networks), energy_unit=self.energy_unit, deviations=self.critic.deviations)

    def finish(self, section: str) -> None:
        if section == "critic" and self.critic.energy_unit == "spread":
            made_from = {"critic": self.run.weights_hash("critic"), "support": self.support.hash}
            self.energy_unit = self.run.processes.on_main(partial(self._unit, made_from))
        super().finish(section)

    def _unit(self, made_from: Mapping[str, str]) -> float:
        """The spread of the critic's values. It is measured once and kept: another device gives other last digits."""
        run = self.run
        path = run.folder.stage("critic").path / "unit.json"
        with suppress(ValueError):  # there is none yet, or it is damaged
            known = read_sealed(path, UNIT_FORMAT)
            if known is not None and known["made_from"] == made_from:
                return float(known["unit"])
        states = draw_states(self.data, self.support.cache, UNIT_STATES, run.seed, run.processes.device)
        unit = spread(self.critic, states)
        write_sealed(path, {"format": UNIT_FORMAT, "made_from": dict(made_from), "unit": unit})
        return unit

    def distillation_data(self) -> DrawnActions:
        """Actions drawn from the sampler."""
        run, count = self.run, self.lengths.distillation.num_actions
        folder = run.folder.stage("distillation")
        return draw_actions(self.sampler(), self.data, folder, count, max(self.scales), run.seed, run.processes)

    def judge(self) -> Results:
        """Diagnostics on the main process, then rollouts on all; figures and logs."""
        run, evaluation = self.run, self.evaluation
        if evaluation.environment is not None:
            choose_rollout_threads(self.policy(), evaluation, run.processes)
        found: Diagnostics = run.processes.on_main(self._diagnose)
        rows: list[ScoreRow] = []
        if evaluation.environment is not None:
            rows = summarize(rollouts(self.policy(), evaluation, run.processes), evaluation.reference)
        results = self.results_of(
            [*score_rows(rows), *offline_rows(found), *self._judge_one_step()],
            COLUMNS,
            marks=marks(rows, evaluation.scales, found.offline_choice),
            about={"offline_choice": found.offline_choice, "ranking": found.ranking.to_dict()},
            notes=[str(found.ranking), found.choice_reason, *no_best(rows)],
        )
        step = self.lengths.guidance.max_steps

        def show() -> None:
            figures = draw(results, self.policy(), evaluation, run.folder.path) if rows else []
            log_scores(run.logs, results, figures, step)

        run.processes.on_main(show)
        return results

    def _judge_one_step(self) -> list[Row]:
        """Scores of the distilled policy and its difference from the sampler; empty without distillation."""
        if (student := self.one_step()) is None:
            return []
        run, data, evaluation = self.run, self.data, self.evaluation
        errors = run.processes.on_main(
            lambda: one_step_errors(student, self.sampler(), data, self.support.cache, evaluation.scales, run.seed)
        )
        if evaluation.environment is None:
            return errors
        episodes = rollouts(GuidedPolicy(data.spec, student), evaluation, run.processes)
        return [*errors, *one_step_scores(summarize(episodes, evaluation.reference))]

    def _diagnose(self) -> Diagnostics:
        folder, data = self.run.folder, self.data
        guided = GuidedSampler(self.parts(self.networks()))
        found = diagnose(
            self.sampler(), guided, self.critic, data, self.support.cache, self.evaluation.scales,
            seed=self.run.seed, device=self.run.processes.device,
        )  # fmt: skip
        write_json(folder.path / "diagnostics.json", found.to_dict())
        figure = folder.path / "diagnostics.png"
        plot_diagnostics(found, figure, self.title)
        log_diagnostics(self.run.logs, found, figure, self.lengths.guidance.max_steps)
        return found

    def evaluation_record(self) -> dict[str, Any]:
        found = {**super().evaluation_record(), "support_checkpoint": self.support.hash}
        settings = {"environment": self.evaluation.to_dict(), "scales": self.evaluation.scales}
        return {**found, **self.unit_record(), **settings}

    @classmethod
    def report(cls, runs: Sequence[Results], output: Path, scale: float | str = OFFLINE) -> list[Section]:
        return report(runs, output, scale)

    def recipe(self) -> Recipe:
        found = replace(
            super().recipe(), environment=self.evaluation.to_dict(),
            energy_unit=self.energy_unit, deviations=self.critic.deviations,
        )  # fmt: skip
        if "distillation" not in self.trained:
            return found
        net, size = self.network_specs()["one_step"], {"noise_size": self.noise_size}
        return replace(
            found,
            networks={**found.networks, "one_step": {**net, "init_args": {**net["init_args"], **size}}},
            one_step={"class_path": class_path_of(OneStep), "init_args": {**size, "max_scale": max(self.scales)}},
        )

    def one_step(self) -> OneStep | None:
        """The sampler of the distilled network; None without distillation."""
        module = self.modules.get("distillation")
        if module is None:
            return None
        return OneStep(self.parts({"one_step": module.sampling_net}), self.noise_size, max(self.scales))

    def callbacks(self, section: str) -> list[Callback]:
        """Rollouts of the modules in training."""
        if self.every_n_steps is None or self.evaluation.environment is None or section in ("critic", "distillation"):
            return []
        guided = section == "guidance"

        def policy_of(module: LightningModule) -> GuidedPolicy:  # of the modules in training themselves
            energy = {"energy": self.guidance.sampling_net} if guided else {}
            return GuidedPolicy(self.data.spec, self.sampler({**self.networks(), **energy}))

        return [
            RolloutCallback(
                policy_of,
                self.evaluation.environment,
                self.evaluation.scales if guided else [0.0],
                self.evaluation.episodes,
                seed=self.evaluation.seed,
                every_n_steps=self.every_n_steps,
                at_end=False,  # the evaluation stage follows
                reference=self.evaluation.reference,
                max_envs=self.evaluation.max_envs,
                num_workers=self.evaluation.num_workers,
            )
        ]
