"""The environment of a run: from the configuration, the task registry or the file's own notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cepdiff.data.rl.task import Task
from cepdiff.data.rl.tasks import TASKS, references_for_env
from cepdiff.errors import ConfigError, SimulationError
from cepdiff.rollout.envs import Env, EnvSpec, check_spaces, make_env
from cepdiff.rollout.scores import Reference

if TYPE_CHECKING:  # `cepdiff data replay` chooses an environment too, and need not wait for Lightning
    from cepdiff.data.rl.datamodule import OfflineDataModule
    from cepdiff.problems.offline.settings import EvaluationSettings

# For datasets that the registry does not know: the recipe's scales and number of episodes.
DEFAULT_SCALES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0)
DEFAULT_EPISODES = 10
# Where episodes are run: Gymnasium on today's MuJoCo, or D4RL's own environments in the classic stack.
BACKENDS = ("gymnasium", "gym")
CLASSIC_MODULE = "cepdiff.rollout.classic"


@dataclass(frozen=True)
class Evaluation:
    """Settings of the rollouts, complete; `environment` is None if no episodes are wanted."""

    environment: EnvSpec | None
    reference: Reference | None
    scales: list[float]
    episodes: int
    seed: int
    max_envs: int
    engine: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a policy file."""
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
    """Fill in what the configuration leaves open, and open the environment once to check that it fits the buffer.

    Raises:
        SimulationError: no environment is known, it cannot be made, or its spaces are not the buffer's.
    """
    task = data.task
    scales = settings.scales or list(task.evaluation_scales if task else DEFAULT_SCALES)
    episodes = settings.episodes
    if episodes is None:
        episodes = task.evaluation_episodes if task else DEFAULT_EPISODES
    seed = seed if settings.seed is None else settings.seed
    environment = environment_of(data, settings.backend) if episodes else None
    reference = reference_of(data, environment)
    if environment is not None:
        env = make_env(environment)
        try:
            check_spaces(env, data.spec)
            check_reference(env, reference)
        finally:
            env.close()
    return Evaluation(environment, reference, sorted(set(scales)), episodes, seed, settings.max_envs, settings.engine)


def environment_of(data: OfflineDataModule, backend: str = "gymnasium") -> EnvSpec:
    """The environment in which policies of these data are scored.

    Raises:
        ConfigError: an unknown backend, or the classic one without a D4RL task or with the user's own environment.
        SimulationError: as `choose_environment`.
    """
    check_backend(backend)
    if backend == "gymnasium":
        return choose_environment(data.dataset, data.task, data.metadata, data.env_id, data.env_kwargs, "--data.env_id")
    if data.env_id is not None or data.env_kwargs:
        raise ConfigError("evaluation.backend gym is D4RL's own environment: leave out data.env_id and data.env_kwargs")
    return classic_environment(data.dataset)


def check_backend(backend: str) -> None:
    """Raise ConfigError for an unknown backend."""
    if backend not in BACKENDS:
        raise ConfigError(f"evaluation.backend is '{backend}'; expected {' or '.join(BACKENDS)}")


def choose_environment(
    dataset: str,
    task: Task | None,
    metadata: Mapping[str, Any],
    env_id: str | None,
    env_kwargs: Mapping[str, Any] | None,
    option: str,
) -> EnvSpec:
    """The id and arguments of a dataset's environment: `env_id`, else the task's, else the file's own note.

    `env_kwargs` come on top of the known arguments. Raises SimulationError if none is known; `option` is what the user
    can add then.
    """
    more = env_kwargs or {}
    if env_id is not None:
        return EnvSpec(env_id, more)
    if task is not None:
        return EnvSpec(task.env_id, {**task.env_kwargs, **more}, task.env_module)
    if "env_id" in metadata:
        env_id = str(metadata["env_id"])
        return EnvSpec(env_id, {**metadata.get("env_kwargs", {}), **more})
    hint = ", or --evaluation.episodes 0 to train without scores" if option == "--data.env_id" else ""
    raise SimulationError(f"'{dataset}' does not say which environment it is from: add {option} ID{hint}")


def classic_environment(task: str) -> EnvSpec:
    """D4RL's own environment of a task, see `cepdiff.rollout.classic`. Raises ConfigError for anything else."""
    if task not in TASKS or TASKS[task].url is None:
        raise ConfigError(f"'{task}' is not a task of D4RL: only those have an environment of the backend gym")
    return EnvSpec("cepdiff/classic-v0", {"task": task}, CLASSIC_MODULE)


def check_reference(env: Env, reference: Reference | None) -> None:
    """Check that D4RL's environment scores the reference returns 0 and 1, if it scores at all.

    Raises:
        SimulationError: the environment's reference returns are others.
    """
    score = getattr(env.unwrapped, "get_normalized_score", None)
    if score is None or reference is None:
        return
    found = [float(score(value)) for value in (reference.minimum, reference.maximum)]
    if max(abs(found[0]), abs(found[1] - 1)) > 1e-6:
        raise SimulationError(
            f"D4RL scores the returns {reference.minimum:g} and {reference.maximum:g} as {100 * found[0]:g} and "
            f"{100 * found[1]:g}; expected 0 and 100: this version of D4RL has other reference returns than cepdiff"
        )


def reference_of(data: OfflineDataModule, environment: EnvSpec | None) -> Reference | None:
    """Reference returns: the task's, else the environment's (D4RL), else the file's own."""
    if data.task is not None:
        return Reference(data.task.reference_min, data.task.reference_max)
    known = references_for_env(environment.env_id) if environment is not None else None
    if known is None and {"reference_min", "reference_max"} <= data.metadata.keys():
        known = float(data.metadata["reference_min"]), float(data.metadata["reference_max"])
    return None if known is None else Reference(*known)
