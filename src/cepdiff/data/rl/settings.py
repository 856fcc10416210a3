"""Settings that depend on a dataset's environment: reward rule, K, guidance scales, episodes, reference returns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cepdiff.data.rl.d4rl_tasks import LOCOMOTION_SCALES
from cepdiff.data.rl.ogbench import ENVIRONMENTS
from cepdiff.data.rl.tasks import TASKS, Task, horizon_for_env, references_for_env, task_for_env

# Environment ids by family, without module and namespace: D4RL's and this package's, Gymnasium's, gymnasium-robotics'.
_FAMILY_IDS = {
    "locomotion": r"(HalfCheetah|Hopper|Walker2d|Ant)-v\d+|(halfcheetah|hopper|walker2d|ant)-[a-z-]+-v\d",
    "antmaze": r"antmaze-(eval-)?(umaze|medium|large)(-(diverse|play))?-v\d|AntMaze_(?!\w*Dense)\w+-v\d+",
    "maze2d": r"maze2d-(eval-)?(open|umaze|medium|large)(-dense)?-v\d|PointMaze_\w+-v\d+",
    "adroit": r"(pen|door|hammer|relocate)(-[a-z-]+)?-v\d|AdroitHand(Pen|Door|Hammer|Relocate)(Sparse)?-v\d+",
    "kitchen": r"kitchen-[a-z-]+-v\d|FrankaKitchen-v\d+",
    "embedded": r"Reacher-v5",
}
_TASK_OF_FAMILY = {task.family: task for task in TASKS.values()}


@dataclass(frozen=True)
class Settings:
    """The recipe's settings, see `Task`; `origin` says where the reward rule comes from."""

    reward_rule: str = "return_range"
    num_support_actions: int = 16
    evaluation_scales: tuple[float, ...] = LOCOMOTION_SCALES
    evaluation_episodes: int = 10
    origin: str = "the default rule"


def family_of_env(env_id: str) -> str | None:
    """Family of an environment id such as "Hopper-v4" or "module:namespace/AntMaze_UMaze-v5"; None if unknown."""
    name = env_id.rpartition(":")[2].rpartition("/")[2]
    return next((family for family, ids in _FAMILY_IDS.items() if re.fullmatch(ids, name)), None)


def settings_of(env_id: str | None, task: Task | None, metadata: Mapping[str, Any]) -> Settings:
    """Settings of the first known environment: the user's `env_id`, the task's, the file's own. A `reward_rule` in
    the metadata takes precedence."""
    found = _by_environment(env_id, task, metadata)
    rule = metadata.get("reward_rule")
    return found if rule is None else replace(found, reward_rule=rule, origin="the file's own rule")


def _by_environment(env_id: str | None, task: Task | None, metadata: Mapping[str, Any]) -> Settings:
    for name, note in _environments(env_id, task, metadata):
        if name.startswith(ENVIRONMENTS):
            return Settings("none", evaluation_episodes=50, origin=f"rewards of OGBench's environment {name}{note}")
        family = family_of_env(name)
        if task is not None and name == task.env_id:
            return _settings(task, f"rule of the task {task.name}")
        if family is not None:
            return _settings(_TASK_OF_FAMILY[family], f"rule of the family {family} by the environment {name}{note}")
    named = env_id_of(env_id, task, metadata)
    reason = "no environment is named" if named is None else f"{named} is of no known family"
    return Settings(origin=f"the default rule: {reason}")


def env_id_of(env_id: str | None, task: Task | None, metadata: Mapping[str, Any]) -> str | None:
    """The environment's id: the user's, else the task's, else the file's own."""
    return next((name for name, _ in _environments(env_id, task, metadata)), None)


def task_of(env_id: str | None, task: Task | None, metadata: Mapping[str, Any]) -> Task | None:
    """The task, else the task that its environment belongs to (as for mazes)."""
    named = env_id_of(env_id, None, metadata)
    return task if task is not None or named is None else task_for_env(named)


def references_of(env_id: str | None, task: Task | None, metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """Returns that score 0 and 100: those of the first environment that has some, else the file's own."""
    for name, _ in _environments(env_id, task, metadata):
        if task is not None and name == task.env_id:
            return task.reference_min, task.reference_max
        if (known := references_for_env(name)) is not None:
            return known
    low, high = metadata.get("reference_min"), metadata.get("reference_max")
    return None if low is None or high is None else (float(low), float(high))


def horizon_of(env_id: str | None, task: Task | None, metadata: Mapping[str, Any]) -> int | None:
    """Episode limit in steps: the file's own, else that of the first environment that has one."""
    if "horizon" in metadata:
        return int(metadata["horizon"])
    known = (
        task.horizon if task is not None and name == task.env_id else horizon_for_env(name)
        for name, _ in _environments(env_id, task, metadata)
    )
    return next((steps for steps in known if steps is not None), None)


def _environments(env_id: str | None, task: Task | None, metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (id, note) of each named environment."""
    if env_id is not None:
        yield env_id, " (--data.env_id)"
    if task is not None:
        yield task.env_id, ""
    if "env_id" in metadata:
        yield metadata["env_id"], ""


def _settings(task: Task, origin: str) -> Settings:
    return Settings(
        task.reward_rule, task.num_support_actions, task.evaluation_scales, task.evaluation_episodes, origin
    )
