"""The task registry: all settings that differ between tasks.

Each family is a function that yields its tasks; to add a family, add a function to `TASKS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cepdiff.data.rl.d4rl_tasks import adroit_tasks, antmaze_tasks, kitchen_tasks, locomotion_tasks, maze2d_tasks
from cepdiff.data.rl.task import REWARD_RULES as REWARD_RULES
from cepdiff.data.rl.task import Task as Task
from cepdiff.errors import ConfigError, nearest


def _embedded_tasks() -> Iterator[Task]:
    yield Task(
        name="reacher-replay",
        family="embedded",
        embedded="reacher-replay.hdf5",
        env_id="Reacher-v5",
        observation_size=10,
        action_size=2,
        horizon=50,
        reference_min=-42.109,
        reference_max=-4.577,
        reward_rule="return_range",
        num_support_actions=16,
        evaluation_scales=(0.0, 0.5, 1.0, 2.0, 4.0),
        evaluation_episodes=20,
        note="shipped with the package",
    )


TASKS: dict[str, Task] = {
    task.name: task
    for family in (locomotion_tasks, antmaze_tasks, maze2d_tasks, adroit_tasks, kitchen_tasks, _embedded_tasks)
    for task in family()
}
FAMILIES = tuple(dict.fromkeys(task.family for task in TASKS.values()))


def env_references(tasks: Iterable[Task]) -> dict[str, tuple[float, float, int]]:
    """(reference_min, reference_max, horizon) by environment id, only for environments on which all tasks agree."""
    found: dict[str, set[tuple[float, float, int]]] = {}
    for task in tasks:
        entry = task.reference_min, task.reference_max, task.horizon
        found.setdefault(task.env_id, set()).add(entry)
        if task.family == "locomotion":  # Gymnasium's own have the same rewards up to -v4, but not in -v5
            stem = task.env_id.removeprefix("cepdiff/").removesuffix("-v2")
            for version in ("v2", "v3", "v4"):
                found.setdefault(f"{stem}-{version}", set()).add(entry)
    return {env_id: entries.pop() for env_id, entries in found.items() if len(entries) == 1}


ENV_REFERENCE = env_references(TASKS.values())


def find_task(name: str) -> Task:
    """Return the task called `name`. Raises `ConfigError` with suggestions."""
    if name not in TASKS:
        raise ConfigError(f"unknown task '{name}'.{nearest(name, TASKS)} All tasks: cepdiff data list")
    return TASKS[name]


def task_for_env(env_id: str) -> Task | None:
    """Return the task that an environment belongs to (D4RL's ids, `cepdiff/...` mazes and kitchens), else None."""
    task = TASKS.get(env_id.rpartition(":")[2].removeprefix("cepdiff/"))
    return task if task is not None and task.url is not None else None


def references_for_env(env_id: str) -> tuple[float, float] | None:
    """(reference_min, reference_max) of an environment, Gymnasium's or D4RL's; None if unknown."""
    entry = _reference_entry(env_id)
    return None if entry is None else entry[:2]


def horizon_for_env(env_id: str) -> int | None:
    """Episode limit of an environment in steps, Gymnasium's or D4RL's; None if unknown."""
    entry = _reference_entry(env_id)
    return None if entry is None else entry[2]


def _reference_entry(env_id: str) -> tuple[float, float, int] | None:
    task = task_for_env(env_id)
    return ENV_REFERENCE.get(env_id if task is None else task.env_id)


def normalized_score(episode_return: float, reference_min: float, reference_max: float) -> float:
    """100 (R - min) / (max - min): a random policy scores 0, an expert 100 (Fu et al. 2020)."""
    return 100 * (episode_return - reference_min) / (reference_max - reference_min)
