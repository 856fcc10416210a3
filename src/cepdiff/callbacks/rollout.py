"""Evaluation by rollouts while a stage trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cepdiff.rollout.environment import limited
from cepdiff.rollout.envs import EnvSpec
from cepdiff.rollout.evaluation import evaluate
from cepdiff.rollout.scores import Reference, ScoreRow, score_table, summarize
from cepdiff.types import Policy


class RolloutCallback(Callback):
    """Rolls out the policy of the module in training, at an interval and at the end of the fit.

    Ranks share the episodes; the logs are `eval/normalized_score/s=3.0`, `eval/success_rate/s=3.0` and
    `eval/mean_return/s=3.0` for each scale, where they are known.
    `scores` is the last table. Raises SimulationError for an environment without a time limit.

    Args:
        policy_of: makes the policy of the module in training.
        environment: where episodes run.
        scales: guidance scales; a policy without an energy network is evaluated at 0.
        episodes: per scale.
        seed: of starts and noise; the same at every evaluation, so that curves compare.
        every_n_steps: optimiser steps between evaluations; None evaluates only at the end.
        at_end: evaluate when the fit ends.
        reference: D4RL's reference returns, if there are any.
        max_envs: environments side by side on a process.
        num_workers: processes that step the environments of a rank; 0 steps them in the rank itself.
    """

    def __init__(
        self,
        policy_of: Callable[[LightningModule], Policy],
        environment: EnvSpec,
        scales: Sequence[float],
        episodes: int,
        seed: int = 0,
        every_n_steps: int | None = None,
        at_end: bool = True,
        reference: Reference | None = None,
        max_envs: int = 128,
        num_workers: int = 0,
    ) -> None:
        self.policy_of = policy_of
        self.environment = limited(environment, None, None, "max_episode_steps to its kwargs:")
        self.scales = list(scales)
        self.episodes = episodes
        self.seed = seed
        self.every_n_steps = every_n_steps
        self.at_end = at_end
        self.reference = reference
        self.max_envs = max_envs
        self.num_workers = num_workers
        self.scores: list[ScoreRow] = []
        self._evaluated_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluated_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps
        if every is not None and trainer.global_step // every > self._evaluated_at // every:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_end and self._evaluated_at != trainer.global_step:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluated_at = trainer.global_step
        modes = [(module, module.training) for module in pl_module.modules()]  # a policy puts its networks in eval mode
        results = evaluate(
            self.policy_of(pl_module),
            self.environment,
            scales=self.scales,
            episodes=self.episodes,
            seed=self.seed,
            rank=trainer.global_rank,
            world=trainer.world_size,
            max_envs=self.max_envs,
            num_workers=self.num_workers,
            device=pl_module.device,
        )
        for module, training in modes:
            module.training = training
        self.scores = summarize(results, self.reference)
        values: dict[str, float] = {}
        for row in self.scores:
            values[f"eval/mean_return/s={row.guidance_scale}"] = row.mean_return
            if row.normalized_score is not None:
                values[f"eval/normalized_score/s={row.guidance_scale}"] = row.normalized_score
            if row.success_rate is not None:
                values[f"eval/success_rate/s={row.guidance_scale}"] = row.success_rate
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        if trainer.is_global_zero and trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.print(f"step {trainer.global_step}\n{score_table(self.scores).text()}")
