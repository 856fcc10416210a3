"""The task registry: every number that differs from task to task, and nothing else.

A family of tasks is one builder function which yields its tasks; a new family is one more builder in `TASKS`.
URLs and reference returns are D4RL's (Fu et al. 2020, arXiv 2004.07219; `d4rl/infos.py`); K and the guidance
scales are those of Lu et al. 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cepdiff.errors import ConfigError, nearest

REWARD_RULES = ("return_range", "minus_one", "none")
D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl"


@dataclass(frozen=True)
class Task:
    """A dataset, the environment it was recorded in, and the settings which go with both.

    `url` and `embedded` (a file in this package's `data/embedded`) say where the data are; `env_module` is
    imported before `gymnasium.make(env_id, **env_kwargs)` so that it registers its environments. `horizon` is
    the episode limit in steps; `reference_min` and `reference_max` are the returns which score 0 and 100;
    `reward_rule` is one of `REWARD_RULES`; `num_support_actions` is K; `file_size` is in bytes where known.
    """

    name: str
    env_id: str
    horizon: int
    reference_min: float
    reference_max: float
    reward_rule: str
    num_support_actions: int
    evaluation_scales: tuple[float, ...]
    evaluation_episodes: int
    url: str | None = None
    embedded: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    env_module: str | None = None
    file_size: int | None = None
    note: str = ""


class EnvReference(NamedTuple):
    """Returns which score 0 and 100, and the episode limit, of an environment."""

    reference_min: float
    reference_max: float
    horizon: int


def _locomotion() -> Iterator[Task]:
    references = {
        "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
        "hopper": ("Hopper-v4", -20.272305, 3234.3),
        "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
        "ant": ("Ant-v4", -325.6, 3879.7),
    }
    kinds = ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
    for robot, (env_id, low, high) in references.items():
        is_ant = robot == "ant"
        for kind in kinds:
            yield Task(
                name=f"{robot}-{kind}-v2",
                url=f"{D4RL_URL}/gym_mujoco_v2/{robot}_{kind.replace('-', '_')}-v2.hdf5",
                env_id=env_id,
                env_kwargs={"use_contact_forces": True} if is_ant else {},
                horizon=1000,
                reference_min=low,
                reference_max=high,
                reward_rule="return_range",
                num_support_actions=16,
                evaluation_scales=(0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0),
                evaluation_episodes=10,
                note="111 observations: the last 84 are contact forces" if is_ant else "",
            )


def _antmaze() -> Iterator[Task]:
    mazes = {  # name: (D4RL's name of the maze, many starts, many goals, horizon)
        "umaze": ("u-maze", False, False, 700),
        "umaze-diverse": ("u-maze", True, True, 700),
        "medium-play": ("big-maze", True, False, 1000),
        "medium-diverse": ("big-maze", True, True, 1000),
        "large-play": ("hardest-maze", True, False, 1000),
        "large-diverse": ("hardest-maze", True, True, 1000),
    }
    for name, (maze, starts, goals, horizon) in mazes.items():
        file = f"Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed.hdf5"
        yield Task(
            name=f"antmaze-{name}-v2",
            url=f"{D4RL_URL}/ant_maze_v2/{file}",
            env_id="GymV21Environment-v0",
            # "d4rl:" makes the classic gym import D4RL, which registers its mazes there.
            env_kwargs={"env_id": f"d4rl:antmaze-{name}-v2"},
            env_module="shimmy",
            horizon=horizon,
            reference_min=0.0,
            reference_max=1.0,
            reward_rule="minus_one",
            num_support_actions=32,
            evaluation_scales=(0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
            evaluation_episodes=100,
            note="evaluation needs D4RL's own environment: pip install 'cepdiff[d4rl]'",
        )


def _embedded() -> Iterator[Task]:
    yield Task(
        name="reacher-replay",
        embedded="reacher-replay.hdf5",
        env_id="Reacher-v5",
        horizon=50,
        reference_min=-42.109,
        reference_max=-4.577,
        reward_rule="return_range",
        num_support_actions=16,
        evaluation_scales=(0.0, 0.5, 1.0, 2.0, 4.0),
        evaluation_episodes=20,
        note="shipped with the package",
    )


TASKS: dict[str, Task] = {task.name: task for family in (_locomotion, _antmaze, _embedded) for task in family()}


def _env_references() -> dict[str, EnvReference]:
    references: dict[str, EnvReference] = {}
    for task in TASKS.values():
        if task.env_module is None:
            entry = EnvReference(task.reference_min, task.reference_max, task.horizon)
            stem, version = task.env_id.rsplit("-", 1)
            # D4RL's returns hold for -v2 and -v3 too: the same rewards as -v4. In -v5 the rewards changed.
            for other in ("v2", "v3", "v4") if version == "v4" else (version,):
                references[f"{stem}-{other}"] = entry
    return references


ENV_REFERENCE: dict[str, EnvReference] = _env_references()


def find_task(name: str) -> Task:
    """The task called `name`. Raises `ConfigError` with the nearest names."""
    if name not in TASKS:
        raise ConfigError(f"unknown task '{name}'.{nearest(name, TASKS)} All tasks: cepdiff data info")
    return TASKS[name]


def references_for_env(env_id: str) -> tuple[float, float] | None:
    """(reference_min, reference_max) of a Gymnasium environment, None where unknown."""
    entry = ENV_REFERENCE.get(env_id)
    return None if entry is None else (entry.reference_min, entry.reference_max)


def horizon_for_env(env_id: str) -> int | None:
    """Episode limit of a Gymnasium environment in steps, None where unknown."""
    entry = ENV_REFERENCE.get(env_id)
    return None if entry is None else entry.horizon


def normalized_score(episode_return: float, reference_min: float, reference_max: float) -> float:
    """100 (R - min) / (max - min): 0 is the reference's random policy, 100 its expert (Fu et al. 2020)."""
    return 100 * (episode_return - reference_min) / (reference_max - reference_min)
