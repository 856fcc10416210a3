"""Offline RL: behavior, support, critic, guidance, and rollouts of the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from torch import nn

from cepdiff.callbacks.rollout import RolloutCallback
from cepdiff.components import Component
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.files import write_json
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.policy.engines import check_engine, own_method, require_engine
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.problems.guided import GuidedProblem
from cepdiff.problems.offline.environment import evaluation_of
from cepdiff.problems.offline.judge import judge
from cepdiff.problems.offline.report import report
from cepdiff.problems.offline.settings import EvaluationSettings, OfflineStages
from cepdiff.problems.offline.support import SupportStage, support_energies
from cepdiff.runs.problem import Run
from cepdiff.runs.report import Section
from cepdiff.runs.results import Results
from cepdiff.runs.stage import Judgement, Stage, TrainedStage


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
        sampler = run.component("sampler").cls
        require_engine(evaluation.engine, run.processes.device, own_method(sampler.sample))
        super().__init__(run, data, **sections)
        self.components["critic"] = critic
        self.critic: SoftmaxQCritic = run.module("critic", critic, data.sizes)
        self.has_critic = False  # until the critic stage is finished
        self.lengths = stages
        self.every_n_steps = evaluation.every_n_steps
        self.support = SupportStage(self, stages.support)

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
        """Diagnostics, rollouts at each scale and figures."""
        return judge(self)

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
