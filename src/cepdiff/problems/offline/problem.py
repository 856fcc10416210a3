"""Offline RL: behavior, support, critic, guidance, and rollouts of the policy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from torch import nn

from cepdiff.callbacks.rollout import RolloutCallback
from cepdiff.components import Component, class_path_of
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.files import write_json
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.policy.diagnostics import Diagnostics, diagnose
from cepdiff.policy.engines import check_engine, own_method, require_engine
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.problems.guided import GuidedProblem
from cepdiff.problems.offline.diagnostics_report import log_diagnostics, write_diagnostics
from cepdiff.problems.offline.environment import EvaluationSettings, evaluation_of
from cepdiff.problems.offline.judge import COLUMNS, draw, marks, offline_rows, rollouts, score_rows
from cepdiff.problems.offline.report import report
from cepdiff.problems.offline.support import SupportSettings, SupportStage, support_energies
from cepdiff.rollout.scores import ScoreRow, summarize
from cepdiff.runs.report import Section
from cepdiff.runs.results import Results
from cepdiff.runs.run import Run
from cepdiff.runs.stage import Judgement, Stage, StageSettings, TrainedStage


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

    # The reward rule concerns the critic only.
    not_recorded = frozenset(
        {
            "dataset", "dataset_dir", "env_id", "env_kwargs", "action_low", "action_high", "block_size", "reward_rule",
        }
    )  # fmt: skip

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
        self.evaluation = evaluation_of(data, evaluation, run.seed)
        sampler = run.components["sampler"].cls
        require_engine(evaluation.engine, run.processes.device, own_method(sampler.sample))
        super().__init__(run, data, **sections)
        self.components["critic"] = critic
        self.critic: SoftmaxQCritic = run.module("critic", critic, data.sizes)
        self.has_critic = False  # until the critic stage is finished
        self.lengths = stages
        self.every_n_steps = evaluation.every_n_steps
        self.support = SupportStage(
            run, self.prior, data, stages.support,
            lambda: {**self.record("solver"), "behavior_checkpoint": run.weights_hash("behavior")},
        )  # fmt: skip

    @classmethod
    def check(cls, sections: Mapping[str, Any]) -> None:
        check_engine(sections["evaluation"].engine)

    def stages(self) -> list[Stage]:
        run, lengths = self.run, self.lengths
        figures = ["diagnostics.png", *(["scores.png"] if self.evaluation.environment is not None else [])]
        return [
            TrainedStage(
                run, self.behavior, self.behavior_data, lengths.behavior,
                lambda: self.record("behavior", "schedule"), self._rollouts("behavior"), self._after_behavior,
            ),
            self.support,
            TrainedStage(
                run, self.critic, lambda: self.data.with_support(self.support.cache), lengths.critic,
                lambda: {
                    **self.common, "reward_rule": getattr(self.data, "reward_rule", None), "support": self.support.hash,
                    "critic": self.components["critic"].record,
                },
                after=self._after_critic,
            ),
            TrainedStage(
                run, self.guidance, self.guidance_data, lengths.guidance,
                lambda: {
                    **self.common, "support": self.support.hash, "critic_checkpoint": run.weights_hash("critic"),
                    "guidance": self.components["guidance"].record, "schedule": self.components["schedule"].record,
                },
                self._rollouts("guidance"), self._after_guidance,
            ),
            Judgement(run, self.evaluation_record, self.judge, [run.folder.path / name for name in figures]),
        ]  # fmt: skip

    def behavior_data(self) -> OfflineDataModule:
        """All rows; the findings of `cepdiff data check` are kept with the run."""
        findings = [asdict(finding) for finding in self.data.findings]
        self.run.processes.on_main(lambda: write_json(self.run.folder.path / "data_check.json", findings))
        found: OfflineDataModule = self.data
        return found

    def prior(self) -> GuidedSampler:
        """The sampler of the behavior policy only, whatever the run's own sampler does."""
        # In mixed precision, casts are kept only of weights that could be trained.
        net = copy.deepcopy(self.behavior.sampling_net).requires_grad_(True)
        return GuidedSampler(self.parts({"behavior": net}))

    def guidance_data(self) -> OfflineDataModule:
        """Support actions and their energies -Q."""
        energies = support_energies(
            self.critic, self.data, self.support.cache, self.run.folder.stage("guidance"), self.run.processes
        )
        found: OfflineDataModule = self.data.with_support(self.support.cache, energies)
        return found

    def networks(self) -> dict[str, nn.Module]:
        return super().networks() | ({"critic": self.critic.sampling_net} if self.has_critic else {})

    def judge(self) -> Results:
        """Diagnostics on the main process, then rollouts on all; figures and logs."""
        run, evaluation = self.run, self.evaluation
        found: Diagnostics = run.processes.on_main(self._diagnose)
        rows: list[ScoreRow] = []
        if evaluation.environment is not None:
            rows = summarize(rollouts(self.policy(), evaluation, run.processes), evaluation.reference)
        results = Results(
            problem=class_path_of(type(self)),
            dataset=self.data.dataset_name,
            seed=run.seed,
            title=f"{self.data.dataset_name}, seed {run.seed}",
            rows=[*score_rows(rows), *offline_rows(found)],
            columns=COLUMNS,
            method=type(self.objective).__name__,
            inverse_temperature=self.objective.inverse_temperature,
            marks=marks(rows, evaluation.scales, found.offline_choice),
            about={"offline_choice": found.offline_choice},
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
        figure = write_diagnostics(folder.path, found, f"{data.dataset_name}, seed {self.run.seed}")
        log_diagnostics(folder.logs / "diagnostics", found, figure, self.lengths.guidance.max_steps)
        return found

    def evaluation_record(self) -> dict[str, Any]:
        found = {**super().evaluation_record(), "environment": self.evaluation.to_dict()}
        return {**found, "scales": self.evaluation.scales}

    @classmethod
    def report(cls, runs: Sequence[Results], output: Path) -> list[Section]:
        return report(runs, output)

    def network_sections(self) -> dict[str, str]:
        return {**super().network_sections(), "critic": "critic"}

    def _after_behavior(self) -> None:
        if not self.is_finished("guidance"):
            self.save()

    def _after_critic(self) -> None:
        self.has_critic = True

    def _after_guidance(self) -> None:
        self.has_energy = True
        self.save()

    def save(self) -> None:
        """Write `policy.pt`."""
        recipe = self.recipe(self.evaluation.scales)
        recipe.environment.update(self.evaluation.to_dict())
        self.save_sampler(recipe)

    def _rollouts(self, stage: str) -> list[Callback]:
        if self.every_n_steps is None or self.evaluation.environment is None:
            return []
        guided = stage == "guidance"

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
