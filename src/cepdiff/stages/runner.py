"""The composition root: from one configuration to trained stages, a policy and its scores."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch.utils.tensorboard import SummaryWriter

from cepdiff import __version__
from cepdiff.callbacks.progress import progress
from cepdiff.callbacks.rollout import RolloutCallback, score_scalars
from cepdiff.data.datamodule import OfflineDataModule
from cepdiff.errors import ConfigError, RunError
from cepdiff.modules.base import StageModule
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.networks.mlp import parameter_count
from cepdiff.policy.guided import GuidedPolicy, PolicyRecipe
from cepdiff.randomness import stream_seed
from cepdiff.rollout.evaluation import evaluate
from cepdiff.rollout.rollout import EpisodeResult
from cepdiff.rollout.scores import ScoreRow, format_table, plot_scores, read_scores, summarize, write_scores
from cepdiff.stages.artifacts import STAGES, RunFolder, compare, file_hash, record_hash
from cepdiff.stages.config import Config, StageSettings
from cepdiff.stages.environment import Evaluation, evaluation_of
from cepdiff.stages.processes import Processes
from cepdiff.stages.support import draw_support, support_energies
from cepdiff.stages.training import load_finished, train_stage

DEFAULT_SUPPORT_ACTIONS = 16
# Arguments of a data module that change nothing, that the buffer's hash covers, or (rewards) that concern the critic.
NOT_RECORDED = {
    "dataset", "dataset_dir", "env_id", "env_kwargs", "action_low", "action_high", "block_size", "reward_rule",
}  # fmt: skip


def fit(config: Config, stage: str | None = None, sources: Sequence[str] = ()) -> list[ScoreRow]:
    """Runs all stages in order (or one), skipping what is finished; returns the table of scores, if it was made.

    `sources` are folders with the user's own classes, kept with the policy.

    Raises:
        CepdiffError: anything a user can mend.
    """
    if stage is not None and stage not in STAGES:
        raise ConfigError(f"there is no stage '{stage}'; stages are {', '.join(STAGES)}")
    data: OfflineDataModule = config.build("data", seed=config.seed)
    run = RunFolder(Path(config.run_dir or Path("runs") / data.dataset_name / str(config.seed)))
    processes = Processes(config.trainer)
    processes.on_main(data.prepare_data)
    data.setup()
    fitting = Fit(config, run, data, processes, sources)
    with ExitStack() as held:
        processes.on_main(lambda: held.enter_context(run.locked()))
        rows = fitting.run_stages(stage)
    processes.close()
    return rows


class Fit:
    """One `cepdiff fit`: the stages as methods, in the order in which they run."""

    def __init__(
        self, config: Config, run: RunFolder, data: OfflineDataModule, processes: Processes, sources: Sequence[str]
    ) -> None:
        self.config = config
        self.run = run
        self.data = data
        self.processes = processes
        self.sources = list(sources)
        self.evaluation = evaluation_of(data, config.evaluation, config.seed)
        self.behavior: BehaviorDiffusion = self._module("behavior", schedule=config.build("schedule"))
        self.critic: SoftmaxQCritic = self._module("critic")
        self.guidance: EnergyGuidance = self._module("guidance", schedule=config.build("schedule"))
        self.solver = config.build("solver")

    def run_stages(self, only: str | None) -> list[ScoreRow]:
        """All stages, or one whose predecessors are finished."""
        self.processes.on_main(lambda: self.run.open(self.config.to_yaml()))
        rows = self._run_stages(only)
        self.processes.on_main(lambda: self.run.keep(self.config.to_yaml()))
        return rows

    def _run_stages(self, only: str | None) -> list[ScoreRow]:
        for name in STAGES:
            if only not in (None, name):
                if STAGES.index(name) < STAGES.index(str(only)):
                    self._require(name, str(only))
                    getattr(self, f"fit_{name}")()
                continue
            rows: list[ScoreRow] | None = getattr(self, f"fit_{name}")()
            if name == "evaluation":
                return rows or []
        return []

    def fit_behavior(self) -> None:
        """Behavior diffusion on all rows."""
        record = {**self._common(), "behavior": self._values("behavior"), "schedule": self._values("schedule")}
        self._train(self.behavior, self.data, self.config.stages.behavior, record)
        if not self.processes.on_main(lambda: self.run.stage("guidance").done):
            self._save_policy(guided=False)

    def fit_support(self) -> None:
        """Support actions at s and s' of the chosen episodes."""
        settings = self.config.stages.support
        task = self.data.task
        num_actions = settings.num_actions or (task.num_support_actions if task else DEFAULT_SUPPORT_ACTIONS)
        record = {
            **self._common(),
            "behavior_checkpoint": self._final_hash("behavior"),
            "solver": self._values("solver"),
            "num_actions": num_actions,
            "max_rows": settings.max_rows,
        }
        folder = self.run.stage("support")
        self.processes.on_main(lambda: folder.claim(record))
        self._announce("support", self.processes.on_main(lambda: folder.done))
        self.support = draw_support(
            self.behavior, self.solver, self.data, folder, settings, num_actions, self.config.seed, self.processes
        )
        self.support_hash = record_hash(record)

    def fit_critic(self) -> None:
        """Softmax Q-critic on the rows with support."""
        rule = {"reward_rule": getattr(self.data, "reward_rule", None)}
        record = {**self._common(), **rule, "support": self.support_hash, "critic": self._values("critic")}
        self._train(self.critic, self.data.with_support(self.support), self.config.stages.critic, record)

    def fit_guidance(self) -> None:
        """Contrastive energy prediction on the energies of the frozen critic."""
        record = {
            **self._common(),
            "support": self.support_hash,
            "critic_checkpoint": self._final_hash("critic"),
            "guidance": self._values("guidance"),
            "schedule": self._values("schedule"),
        }
        folder = self.run.stage("guidance")
        data = self.data
        if not self.processes.on_main(lambda: folder.done):
            self.processes.on_main(lambda: folder.claim(record | {"max_steps": self.config.stages.guidance.max_steps}))
            energies = support_energies(self.critic, self.data, self.support, folder, self.processes)
            data = self.data.with_support(self.support, energies)
        self._train(self.guidance, data, self.config.stages.guidance, record)
        self._save_policy(guided=True)

    def fit_evaluation(self) -> list[ScoreRow] | None:
        """The table of scores; made again only when the policy or the settings changed."""
        if self.evaluation.environment is None:
            return None
        made_from = {
            "behavior_checkpoint": self._final_hash("behavior"),
            "guidance_checkpoint": self._final_hash("guidance"),
            "environment": self.evaluation.to_dict(),
            "scales": self.evaluation.scales,
            "solver": self._values("solver"),
        }
        if self.processes.on_main(lambda: not any(compare(scores_made_from(self.run.scores), made_from))):
            self._announce("evaluation", True)
            rows = self.processes.on_main(lambda: read_scores(self.run.scores, self.evaluation.reference))
        else:
            results = rollouts(self._policy(guided=True), self.evaluation, self.processes)
            rows = summarize(results, self.evaluation.reference)
            self.processes.on_main(lambda: self._write_scores(rows, made_from))
        if self.processes.is_main:
            print(f"\n{self.data.dataset_name}, seed {self.config.seed}\n{format_table(rows)}")
            print(f"\n{self._timings()}\nscores {self.run.scores}, figure {self.run.figure}")
            print(f"tensorboard --logdir {self.run.logs}")
        return rows

    def _module(self, key: str, **supplied: Any) -> Any:
        # Weights are initialised by (seed, stage), whatever was built before.
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed(self.config.seed, key, "init"))
            return self.config.module(key, self.data.sizes, **supplied)

    def _train(
        self, module: StageModule, data: OfflineDataModule, settings: StageSettings, record: dict[str, Any]
    ) -> None:
        folder = self.run.stage(module.stage)
        self.processes.on_main(lambda: folder.claim(record | {"max_steps": settings.max_steps}))
        done = self.processes.on_main(lambda: folder.done)
        self._announce(module.stage, done, f", {parameter_count(module.net):,} parameters")
        if not done:
            callbacks = [*self.config.callbacks, *self._rollouts(module.stage)]
            train_stage(module, data, self.run, settings, self.processes, callbacks)
        load_finished(module, self.run, self.processes)

    def _rollouts(self, stage: str) -> list[Callback]:
        every = self.config.evaluation.every_n_steps
        if every is None or stage == "critic" or self.evaluation.environment is None:
            return []
        guided = stage == "guidance"

        def policy_of(module: LightningModule) -> GuidedPolicy:
            return self._policy(guided)  # of the modules in training themselves

        return [
            RolloutCallback(
                policy_of,
                self.evaluation.environment,
                self.evaluation.scales if guided else [0.0],
                self.evaluation.episodes,
                seed=self.evaluation.seed,
                every_n_steps=every,
                at_end=False,  # the evaluation stage follows
                reference=self.evaluation.reference,
                max_envs=self.evaluation.max_envs,
            )
        ]

    def _policy(self, guided: bool) -> GuidedPolicy:
        return GuidedPolicy(
            self.data.spec,
            self.behavior.sampling_net,
            self.behavior.schedule,
            self.solver,
            self.guidance.sampling_net if guided else None,
            self.processes.device,
        )

    def _save_policy(self, guided: bool) -> None:
        values = self.config.values
        recipe = PolicyRecipe(
            task=self.data.dataset_name,
            spec=self.data.spec.to_dict(),
            behavior_net=values["behavior"]["init_args"]["net"],
            energy_net=values["guidance"]["init_args"]["net"] if guided else None,
            schedule=values["schedule"],
            solver=values["solver"],
            environment=self.evaluation.to_dict(),
            scales=self.evaluation.scales,
            sources=self.sources,
        )
        self.processes.on_main(lambda: self._policy(guided).save(self.run.path, recipe))

    def _common(self) -> dict[str, Any]:
        data = self._values("data")
        arguments = {key: value for key, value in data["init_args"].items() if key not in NOT_RECORDED}
        return {
            "dataset": self.data.buffer.content_hash,
            "data": {"class_path": data["class_path"], "init_args": arguments},
            "seed": self.config.seed,
        }

    def _values(self, key: str) -> dict[str, Any]:
        values: dict[str, Any] = self.config.values[key]
        return values

    def _final_hash(self, stage: str) -> str:
        return self.processes.on_main(lambda: file_hash(self.run.stage(stage).final))

    def _require(self, name: str, wanted: str) -> None:
        if not self.processes.on_main(lambda: self.run.stage(name).done):
            raise RunError(f"--stage {wanted} needs the {name} stage, which has not finished in {self.run.path}")

    def _announce(self, stage: str, done: bool, size: str = "") -> None:
        if self.processes.is_main:
            print(f"{stage}: {'finished earlier, skipped' if done else f'running{size}'}", file=sys.stderr)

    def _seconds(self) -> dict[str, float]:
        return {name: self.run.stage(name).seconds for name in STAGES[:-1]}

    def _timings(self) -> str:
        return "wall clock: " + ", ".join(f"{name} {value:.0f} s" for name, value in self._seconds().items())

    def _write_scores(self, rows: Sequence[ScoreRow], made_from: dict[str, Any]) -> None:
        extra = {"seed": self.config.seed, "cepdiff": __version__, "seconds": self._seconds(), "made_from": made_from}
        write_scores(self.run.scores, self.data.dataset_name, rows, extra)
        plot_scores(rows, self.run.figure, f"{self.data.dataset_name}, seed {self.config.seed}")
        log_scores(self.run, rows, self.config.stages.guidance.max_steps)


def rollouts(policy: GuidedPolicy, evaluation: Evaluation, processes: Processes) -> list[EpisodeResult]:
    """Episodes of a policy on all processes, with a progress bar."""
    if evaluation.environment is None:
        raise RunError("there is no environment to evaluate in")
    total = len(evaluation.scales) * evaluation.episodes
    shown = processes.is_main and processes.settings.progress_bar
    with progress(-(-total // processes.world), "evaluation", "episode", enabled=shown) as bar:
        return evaluate(
            policy,
            evaluation.environment,
            scales=evaluation.scales,
            episodes=evaluation.episodes,
            seed=evaluation.seed,
            rank=processes.rank,
            world=processes.world,
            max_envs=evaluation.max_envs,
            device=processes.device,
            on_progress=lambda done, _: bar.update(done - bar.n),
        )


def scores_made_from(path: Path) -> dict[str, Any] | None:
    """What an earlier table of scores was made from, or None."""
    if not path.is_file():
        return None
    try:
        made_from: dict[str, Any] | None = json.loads(path.read_text()).get("made_from")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged; delete it to evaluate again") from error
    return made_from


def log_scores(run: RunFolder, rows: Sequence[ScoreRow], step: int) -> None:
    """Scores and their figure in TensorBoard, under `logs/evaluation`."""
    from matplotlib.image import imread

    with SummaryWriter(str(run.logs / "evaluation")) as writer:
        for name, value in score_scalars(rows).items():
            writer.add_scalar(name, value, step)
        writer.add_image("scores", imread(run.figure)[..., :3], step, dataformats="HWC")
