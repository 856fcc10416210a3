"""The environment that a run is scored in: from the configuration, the task registry or the file's own notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cepdiff.data.datamodule import OfflineDataModule
from cepdiff.data.tasks import references_for_env
from cepdiff.errors import SimulationError
from cepdiff.rollout.envs import EnvSpec, check_spaces, make_env
from cepdiff.rollout.scores import Reference
from cepdiff.stages.settings import EvaluationSettings

# For datasets that the registry does not know: the recipe's scales and number of episodes.
DEFAULT_SCALES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0)
DEFAULT_EPISODES = 10


@dataclass(frozen=True)
class Evaluation:
    """What the final table is made of; `environment` is None where no episode is asked for."""

    environment: EnvSpec | None
    reference: Reference | None
    scales: list[float]
    episodes: int
    seed: int
    max_envs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain types: what a policy file keeps."""
        if self.environment is None:
            return {}
        return {
            "env_id": self.environment.env_id,
            "kwargs": dict(self.environment.kwargs),
            "module": self.environment.module,
            "reference": None if self.reference is None else [self.reference.minimum, self.reference.maximum],
            "episodes": self.episodes,
            "seed": self.seed,
        }


def evaluation_of(data: OfflineDataModule, settings: EvaluationSettings, seed: int) -> Evaluation:
    """Fills in what the configuration leaves open, and opens the environment once to see that it fits the buffer.

    Raises:
        SimulationError: no environment is known, it cannot be made, or its spaces are not the buffer's.
    """
    task = data.task
    scales = settings.scales or list(task.evaluation_scales if task else DEFAULT_SCALES)
    episodes = settings.episodes
    if episodes is None:
        episodes = task.evaluation_episodes if task else DEFAULT_EPISODES
    seed = seed if settings.seed is None else settings.seed
    environment = environment_of(data) if episodes else None
    reference = reference_of(data, environment)
    if environment is not None:
        env = make_env(environment)
        try:
            check_spaces(env, data.spec)
        finally:
            env.close()
    return Evaluation(environment, reference, sorted(set(scales)), episodes, seed, settings.max_envs)


def environment_of(data: OfflineDataModule) -> EnvSpec:
    """The environment's id and arguments: `data.env_id`, else the task's, else what the file notes."""
    task = data.task
    if data.env_id is not None:
        return EnvSpec(data.env_id, data.env_kwargs or {})
    if task is not None:
        return EnvSpec(task.env_id, {**task.env_kwargs, **(data.env_kwargs or {})}, task.env_module)
    if "env_id" in data.metadata:
        return EnvSpec(str(data.metadata["env_id"]), {**data.metadata.get("env_kwargs", {}), **(data.env_kwargs or {})})
    raise SimulationError(
        f"'{data.dataset}' does not say which environment it is from: "
        "add --data.env_id ID, or --evaluation.episodes 0 to train without scores"
    )


def reference_of(data: OfflineDataModule, environment: EnvSpec | None) -> Reference | None:
    """Reference returns: the task's, else the environment's (D4RL), else the file's own."""
    if data.task is not None:
        return Reference(data.task.reference_min, data.task.reference_max)
    known = references_for_env(environment.env_id) if environment is not None else None
    if known is None and {"reference_min", "reference_max"} <= data.metadata.keys():
        known = float(data.metadata["reference_min"]), float(data.metadata["reference_max"])
    return None if known is None else Reference(*known)
