"""The environment of a dataset: the user's, the task's or the file's own; today's MuJoCo or the classic stack."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cepdiff.data.rl.task import Task
from cepdiff.data.rl.tasks import TASKS
from cepdiff.errors import ConfigError, SimulationError
from cepdiff.rollout.envs import Env, EnvSpec, time_limit
from cepdiff.rollout.registry import refuse_untrusted
from cepdiff.rollout.scores import Reference

CLASSIC_MODULE = "cepdiff.rollout.classic"
_logger = logging.getLogger(__name__)


def choose_environment(
    dataset: str,
    task: Task | None,
    metadata: Mapping[str, Any],
    env_id: str | None,
    env_kwargs: Mapping[str, Any] | None,
    option: str,
) -> EnvSpec:
    """The id and arguments of a dataset's environment: `env_id`, else the task's, else the file's own note.

    `env_kwargs` come on top of the known arguments. Raises SimulationError if none is known, or a file names a module
    that is not installed; `option` is the remedy to name in the message.
    """
    more = env_kwargs or {}
    if env_id is not None:
        return EnvSpec(env_id, more)
    if task is not None:
        return EnvSpec(task.env_id, {**task.env_kwargs, **more}, task.env_module)
    if "env_id" in metadata:
        found = EnvSpec(str(metadata["env_id"]), {**metadata.get("env_kwargs", {}), **more})
        refuse_untrusted(found.modules, f"'{dataset}'", f"add {option} {found.env_id}")
        return found
    hint = ", or --evaluation.episodes 0 to train without scores" if option == "--data.env_id" else ""
    raise SimulationError(f"'{dataset}' does not say which environment it is from: add {option} ID{hint}")


def classic_environment(task: str) -> EnvSpec:
    """D4RL's own environment of a task, see `cepdiff.rollout.classic`. Raises ConfigError for anything else."""
    if task not in TASKS or TASKS[task].url is None:
        raise ConfigError(f"'{task}' is not a task of D4RL: only those have an environment of the backend gym")
    return EnvSpec("cepdiff/classic-v0", {"task": task}, CLASSIC_MODULE)


def limited(spec: EnvSpec, max_episode_steps: int | None, horizon: Any, option: str) -> EnvSpec:
    """Return `spec` with a time limit: `max_episode_steps`, else its own, else the data's `horizon` (with a warning).

    Raises SimulationError if there is none, as an episode might never end; `option` is the remedy to name.
    """
    if max_episode_steps is None:
        if spec.module == CLASSIC_MODULE or time_limit(spec) is not None:  # D4RL's own all have a time limit
            return spec
        if not isinstance(horizon, int) or horizon < 1:
            raise SimulationError(f"'{spec.env_id}' has no time limit, so an episode might never end: add {option} N")
        text = f"'{spec.env_id}' has no time limit: episodes end after {horizon} steps, the horizon of the data"
        _logger.warning(text)
        max_episode_steps = horizon
    return replace(spec, kwargs={**spec.kwargs, "max_episode_steps": max_episode_steps})


def check_reference(env: Env, reference: Reference | None) -> None:
    """Raise SimulationError unless D4RL's environment scores the reference returns 0 and 1, if it scores at all."""
    score = getattr(env.unwrapped, "get_normalized_score", None)
    if score is None or reference is None:
        return
    found = [float(score(value)) for value in (reference.minimum, reference.maximum)]
    if max(abs(found[0]), abs(found[1] - 1)) > 1e-6:
        raise SimulationError(
            f"D4RL scores the returns {reference.minimum:g} and {reference.maximum:g} as {100 * found[0]:g} and "
            f"{100 * found[1]:g}; expected 0 and 100: this version of D4RL has other reference returns than cepdiff"
        )
