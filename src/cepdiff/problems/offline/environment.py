"""The rollouts of a run: its environment, scales, episodes and reference returns, complete."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.settings import Settings, horizon_of, references_of
from cepdiff.errors import ConfigError
from cepdiff.policy.recipe import Rollouts
from cepdiff.ranges import Count, NonNegative, Whole
from cepdiff.rollout.checked import try_out
from cepdiff.rollout.environment import check_reference, choose_environment, classic_environment, limited
from cepdiff.rollout.envs import EnvSpec, check_spaces, make_checked_env
from cepdiff.rollout.scores import Reference

DEFAULT_EPISODES = Settings.evaluation_episodes


@dataclass
class EvaluationSettings:
    """Rollouts in the environment.

    Args:
        scales: guidance scales; null is the environment's own list.
        inverse_temperatures: s beta for each scale s, instead of `scales`; null uses `scales`.
        episodes: per scale; null is the environment's own number, 0 never opens an environment.
        every_n_steps: also evaluate every this many steps of the behavior and guidance stages; null only at the end.
        seed: of the episodes' starts and noise; null is the run's seed.
        max_episode_steps: cut episodes after this many steps; null is the environment's own time limit, else the
            horizon of the data.
        max_envs: environments stepped side by side on a process.
        num_workers: processes that step them; 0 steps them in the process of the run (docs/performance.md says when
            more are faster).
        backend: "gymnasium", or "gym" for D4RL's own environments in the classic stack (docker/Dockerfile.d4rl).
        engine: runs the policy: "torch", "cuda_graph", or "onnx" (the extra of that name; the fastest on CPUs); null is
            a CUDA graph on GPUs and torch elsewhere.
    """

    scales: list[NonNegative] | None = None
    inverse_temperatures: list[NonNegative] | None = None
    episodes: Whole | None = None
    every_n_steps: Count | None = None
    seed: int | None = None
    max_episode_steps: Count | None = None
    max_envs: Count = 128
    num_workers: Whole = 0
    backend: Literal["gymnasium", "gym"] = "gymnasium"
    engine: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Settings of the rollouts; `environment` is None if no episodes are wanted."""

    environment: EnvSpec | None
    reference: Reference | None
    scales: list[float]
    episodes: int
    seed: int
    max_envs: int
    num_workers: int = 0
    engine: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a policy file."""
        if self.environment is None:
            return {}
        made = self.environment
        reference = None if self.reference is None else [self.reference.minimum, self.reference.maximum]
        return asdict(Rollouts(made.env_id, dict(made.kwargs), made.module, reference, self.episodes, self.seed))


def evaluation_of(data: OfflineDataModule, settings: EvaluationSettings, seed: int) -> Evaluation:
    """Fill in the settings left open, and take a step in the environment to check that it fits the buffer.

    Raises:
        SimulationError: no environment is known, it cannot be made or stepped, its spaces are not the buffer's, or it
            has no time limit.
    """
    scales = settings.scales or list(data.settings.evaluation_scales)
    episodes = settings.episodes
    if episodes is None:
        episodes = data.settings.evaluation_episodes
    seed = seed if settings.seed is None else settings.seed
    environment = environment_of(data, settings.backend) if episodes else None
    reference = reference_of(data)
    if environment is not None:
        horizon = horizon_of(data.env_id, data.task, data.metadata)
        environment = limited(environment, settings.max_episode_steps, horizon, "--evaluation.max_episode_steps")
        with closing(make_checked_env(environment)) as env:
            check_spaces(env, data.spec)
            check_reference(env, reference)
            try_out(env)
    return Evaluation(
        environment,
        reference,
        sorted(set(scales)),
        episodes,
        seed,
        max_envs=settings.max_envs,
        num_workers=settings.num_workers,
        engine=settings.engine,
    )


def environment_of(data: OfflineDataModule, backend: str = "gymnasium") -> EnvSpec:
    """The environment in which policies of these data are scored.

    Raises:
        ConfigError: the classic backend without a D4RL task or with the user's own environment.
        SimulationError: as `choose_environment`.
    """
    if backend == "gymnasium":
        return choose_environment(data.dataset, data.task, data.metadata, data.env_id, data.env_kwargs, "--data.env_id")
    if data.env_id is not None or data.env_kwargs:
        raise ConfigError("evaluation.backend gym is D4RL's own environment: leave out data.env_id and data.env_kwargs")
    return classic_environment(data.dataset)


def reference_of(data: OfflineDataModule) -> Reference | None:
    """Reference returns of the environment, else the file's own."""
    known = references_of(data.env_id, data.task, data.metadata)
    return None if known is None else Reference(*known)
