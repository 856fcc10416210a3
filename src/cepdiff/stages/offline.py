"""The stages of offline RL: behavior, support, critic, guidance, and rollouts of the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule

from cepdiff import __version__
from cepdiff.callbacks.rollout import RolloutCallback, score_scalars
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.files import write_json
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.policy.engines import require_engine
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.rollout.mazes import draw_paths, episode_paths, maze_of
from cepdiff.rollout.scores import (
    ScoreRow,
    format_table,
    plot_scores,
    read_scores,
    summarize,
    with_offline,
    write_scores,
)
from cepdiff.stages.artifacts import RunFolder, compare, made_from_of, record_hash
from cepdiff.stages.config import Config
from cepdiff.stages.diagnostics import Diagnostics, diagnose
from cepdiff.stages.diagnostics_report import FIGURE, log_diagnostics, write_diagnostics
from cepdiff.stages.environment import evaluation_of
from cepdiff.stages.evaluate import rollouts
from cepdiff.stages.fit import Fit
from cepdiff.stages.logs import log_result
from cepdiff.stages.processes import Processes
from cepdiff.stages.settings import EvaluationSettings, StagesSettings
from cepdiff.stages.support import draw_support, support_energies

DEFAULT_SUPPORT_ACTIONS = 16
# A maze shows the ways of so many episodes a scale.
DRAWN_EPISODES = 8


class OfflineFit(Fit):
    """Guided policies from logged transitions."""

    stages = ("behavior", "support", "critic", "guidance", "evaluation")
    # The reward rule concerns the critic alone.
    not_recorded = frozenset(
        {
            "dataset", "dataset_dir", "env_id", "env_kwargs", "action_low", "action_high", "block_size", "reward_rule",
        }
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        data: OfflineDataModule,
        processes: Processes,
        sources: Sequence[str] = (),
        reuse: RunFolder | None = None,
    ) -> None:
        assert isinstance(config.stages, StagesSettings)
        assert isinstance(config.evaluation, EvaluationSettings)
        self.data = data
        self.lengths = config.stages
        self.every_n_steps = config.evaluation.every_n_steps
        self.evaluation = evaluation_of(data, config.evaluation, config.seed)
        require_engine(config.evaluation.engine, processes.device)
        super().__init__(config, run, data, processes, sources, reuse)
        self.critic: SoftmaxQCritic = self.module("critic")

    def fit_behavior(self) -> None:
        """Behavior diffusion on all rows; what `cepdiff data check` finds in them is kept beside it."""
        findings = [asdict(finding) for finding in self.data.findings]
        self.processes.on_main(lambda: write_json(self.run.path / "data_check.json", findings))
        record = {**self.common, "behavior": self.values("behavior"), "schedule": self.values("schedule")}
        self.train(self.behavior, self.data, self.lengths.behavior, record, self._rollouts("behavior"))
        if not self.processes.on_main(lambda: self.run.stage("guidance").done):
            self._save_policy(guided=False)

    def fit_support(self) -> None:
        """Support actions at s and s' of the chosen episodes."""
        settings = self.lengths.support
        task = self.data.task
        num_actions = settings.num_actions or (task.num_support_actions if task else DEFAULT_SUPPORT_ACTIONS)
        record = {
            **self.common,
            "behavior_checkpoint": self.final_hash("behavior"),
            "solver": self.values("solver"),
            "num_actions": num_actions,
            "max_rows": settings.max_rows,
        }
        self.announce("support", self.claim("support", record))
        folder = self.run.stage("support")
        self.support = draw_support(
            self.behavior, self.solver, self.data, folder, settings, num_actions, self.config.seed, self.processes
        )
        self.support_hash = record_hash(record)

    def fit_critic(self) -> None:
        """Softmax Q-critic on the rows with support."""
        rule = {"reward_rule": getattr(self.data, "reward_rule", None)}
        record = {**self.common, **rule, "support": self.support_hash, "critic": self.values("critic")}
        self.train(self.critic, self.data.with_support(self.support), self.lengths.critic, record)

    def fit_guidance(self) -> None:
        """Contrastive energy prediction on the energies of the frozen critic."""
        record = {
            **self.common,
            "support": self.support_hash,
            "critic_checkpoint": self.final_hash("critic"),
            "guidance": self.values("guidance"),
            "schedule": self.values("schedule"),
        }
        data = self.data
        if not self.claim("guidance", record | {"max_steps": self.lengths.guidance.max_steps}):
            folder = self.run.stage("guidance")
            energies = support_energies(self.critic, self.data, self.support, folder, self.processes)
            data = self.data.with_support(self.support, energies)
        self.train(self.guidance, data, self.lengths.guidance, record, self._rollouts("guidance"))
        self._save_policy(guided=True)

    def fit_evaluation(self) -> list[ScoreRow]:
        """The table of scores beside the offline evidence; made again only when policy or settings changed."""
        made_from = {
            "behavior_checkpoint": self.final_hash("behavior"),
            "guidance_checkpoint": self.final_hash("guidance"),
            "environment": self.evaluation.to_dict(),
            "scales": self.evaluation.scales,
            "solver": self.values("solver"),
        }
        if self.processes.on_main(lambda: not any(compare(made_from_of(self.run.scores), made_from))):
            self.announce("evaluation", True)
            rows = self.processes.on_main(lambda: read_scores(self.run.scores, self.evaluation.reference))
        else:
            found = self.processes.on_main(self._diagnose)
            rows = []
            if self.evaluation.environment is not None:
                results = rollouts(self.policy(guided=True), self.evaluation, self.processes)
                rows = summarize(results, self.evaluation.reference)
            rows = rows if found is None else with_offline(rows, found.offline_scores())
            self.processes.on_main(lambda: self._write_scores(rows, made_from))
        if self.processes.is_main:
            print(f"\n{self.dataset_name}, seed {self.config.seed}\n{format_table(rows)}\n")
            print(self.closing_lines(f"scores {self.run.scores}, figures {self.run.figure}, {self.run.path / FIGURE}"))
        return rows

    def _diagnose(self) -> Diagnostics | None:
        if self.support.actions.shape[1] < 2:
            return None
        found = diagnose(
            self.behavior,
            self.critic,
            self.guidance,
            self.solver,
            self.data,
            self.support,
            self.evaluation.scales,
            seed=self.config.seed,
            device=self.processes.device,
        )
        write_diagnostics(self.run.path, found, f"{self.dataset_name}, seed {self.config.seed}")
        steps = self.lengths.guidance.max_steps
        log_diagnostics(self.run.logs / "diagnostics", found, self.run.path / FIGURE, steps)
        return found

    def _rollouts(self, stage: str) -> list[Callback]:
        if self.every_n_steps is None or self.evaluation.environment is None:
            return []
        guided = stage == "guidance"

        def policy_of(module: LightningModule) -> GuidedPolicy:
            return self.policy(guided)  # of the modules in training themselves

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

    def _save_policy(self, guided: bool) -> None:
        self.save_policy(guided, self.evaluation.scales, self.evaluation.to_dict())

    def _write_scores(self, rows: Sequence[ScoreRow], made_from: dict[str, Any]) -> None:
        extra = {"seed": self.config.seed, "cepdiff": __version__, "seconds": self.seconds(), "made_from": made_from}
        write_scores(self.run.scores, self.dataset_name, rows, extra)
        rolled_out = [row for row in rows if row.episodes]
        if rolled_out:
            plot_scores(rolled_out, self.run.figure, f"{self.dataset_name}, seed {self.config.seed}")
            step = self.lengths.guidance.max_steps
            log_result(self.run.logs / "evaluation", score_scalars(rolled_out), self.run.figure, step)
            self._draw_paths(step)

    def _draw_paths(self, step: int) -> None:
        """The ways of a few episodes at each scale, where the environment is a maze."""
        environment = self.evaluation.environment
        assert environment is not None
        layout = maze_of(environment)
        if layout is None:
            return
        paths, goals = episode_paths(
            self.policy(guided=True),
            environment,
            scales=self.evaluation.scales,
            episodes=min(self.evaluation.episodes, DRAWN_EPISODES),
            seed=self.evaluation.seed,
            device=self.processes.device,
        )
        figure = self.run.path / "paths.png"
        draw_paths(layout, paths, goals, figure)
        log_result(self.run.logs / "evaluation", {}, figure, step)
