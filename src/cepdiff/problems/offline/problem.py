"""Offline RL: behavior, support, critic, guidance, and rollouts of the policy."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule

from cepdiff.callbacks.rollout import RolloutCallback
from cepdiff.components import Component
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.errors import ConfigError
from cepdiff.files import write_json
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.policy.diagnostics import Diagnostics, diagnose
from cepdiff.policy.engines import check_engine, own_method, require_engine
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import Recipe
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.problems.guided import GuidedProblem
from cepdiff.problems.offline.diagnostics_report import log_diagnostics, plot_diagnostics
from cepdiff.problems.offline.environment import EvaluationSettings, evaluation_of
from cepdiff.problems.offline.judge import COLUMNS, draw, marks, offline_rows, rollouts, score_rows
from cepdiff.problems.offline.report import report
from cepdiff.problems.offline.support_stage import SupportSettings, SupportStage, support_energies
from cepdiff.rollout.scores import ScoreRow, summarize
from cepdiff.runs.report import Section
from cepdiff.runs.results import Results
from cepdiff.runs.run import Run
from cepdiff.runs.stage import Judgement, Stage, StageSettings


@dataclass
class OfflineStages:
    """The stages in order, with the recipe's lengths."""

    behavior: StageSettings = field(default_factory=lambda: StageSettings(600_000))
    support: SupportSettings = field(default_factory=SupportSettings)
    critic: StageSettings = field(default_factory=lambda: StageSettings(500_000))
    guidance: StageSettings = field(default_factory=lambda: StageSettings(1_000_000))


class OfflineRL(GuidedProblem):
    """Guided policies from logged transitions.

    Args:
        run: the run.
        data: the buffer.
        critic: the critic, whose Q is minus the energy.
        stages: lengths.
        evaluation: rollouts.
        sections: those of `GuidedProblem`.
    """

    # The record of the critic has the reward rule.
    not_recorded = frozenset({
        "dataset", "dataset_dir", "env_id", "env_kwargs", "action_low", "action_high", "block_size", "reward_rule",
    })  # fmt: skip
    data: OfflineDataModule

    def __init__(
        self,
        run: Run,
        data: OfflineDataModule,
        critic: Component[SoftmaxQCritic] = Component(SoftmaxQCritic),
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
        self.scales = self.evaluation.scales
        self.components["critic"] = critic
        self.critic: SoftmaxQCritic = run.module("critic", critic, data.sizes)
        self.modules["critic"] = self.critic
        self.network_sections["critic"] = "critic"
        self.lengths = stages
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
        return [
            self.train("behavior", lengths.behavior, self.behavior_data),
            self.support,
            self.train("critic", lengths.critic, self.critic_data, self.critic_record),
            self.train("guidance", lengths.guidance, self.guidance_data, self.guidance_record),
            Judgement(self.run, self.evaluation_record, self.judge, [folder / name for name in figures]),
        ]

    def critic_record(self) -> dict[str, Any]:
        """The reward rule concerns the critic only."""
        scaling = self.data.scaling
        rule = {"reward_rule": self.data.reward_rule} if scaling is None else scaling.record
        return {**self.record("critic"), **rule, "support": self.support.hash}

    def guidance_record(self) -> dict[str, Any]:
        """With the critic whose energies it learns."""
        upstream = {"support": self.support.hash, "critic_checkpoint": self.run.weights_hash("critic")}
        return {**self.record("guidance", "schedule"), **upstream}

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
        """Support actions, and transitions of as many steps as the critic's backup."""
        data, critic = self.data.with_support(self.support.cache), self.critic
        return data if critic.num_steps == 1 else data.with_lookahead(critic.discount, critic.num_steps)

    def guidance_data(self) -> OfflineDataModule:
        """Support actions and their energies -Q."""
        energies = support_energies(
            self.critic, self.data, self.support.cache, self.run.folder.stage("guidance"), self.run.processes
        )
        return self.data.with_support(self.support.cache, energies)

    def judge(self) -> Results:
        """Diagnostics on the main process, then rollouts on all; figures and logs."""
        run, evaluation = self.run, self.evaluation
        found: Diagnostics = run.processes.on_main(self._diagnose)
        rows: list[ScoreRow] = []
        if evaluation.environment is not None:
            rows = summarize(rollouts(self.policy(), evaluation, run.processes), evaluation.reference)
        results = self.results_of(
            [*score_rows(rows), *offline_rows(found)],
            COLUMNS,
            marks=marks(rows, evaluation.scales, found.offline_choice),
            about={"offline_choice": found.offline_choice, "ranking": found.ranking.to_dict()},
            notes=[str(found.ranking), found.choice_reason],
        )
        if rows:
            step = self.lengths.guidance.max_steps
            run.processes.on_main(lambda: draw(results, self.policy(), evaluation, run.folder, step))
        return results

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
        log_diagnostics(folder.logs / "diagnostics", found, figure, self.lengths.guidance.max_steps)
        return found

    def evaluation_record(self) -> dict[str, Any]:
        found = {**super().evaluation_record(), "support_checkpoint": self.support.hash}
        return {**found, "environment": self.evaluation.to_dict(), "scales": self.evaluation.scales}

    @classmethod
    def report(cls, runs: Sequence[Results], output: Path) -> list[Section]:
        return report(runs, output)

    def recipe(self) -> Recipe:
        return replace(super().recipe(), environment=self.evaluation.to_dict())

    def callbacks(self, section: str) -> list[Callback]:
        """Rollouts of the modules in training."""
        if self.every_n_steps is None or self.evaluation.environment is None or section == "critic":
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
            )
        ]
