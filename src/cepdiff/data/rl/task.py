"""An entry of the task registry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REWARD_RULES = ("return_range", "minus_one", "none")


@dataclass(frozen=True)
class Task:
    """A dataset, the environment it was recorded in, and the settings for both.

    The data are at `url`, or in `embedded`, a file in this package's `data/embedded`. `env_module` is imported before
    `gymnasium.make(env_id, **env_kwargs)` to register the environment. `horizon` is the episode limit in steps;
    `reference_min` and `reference_max` are the returns that score 0 and 100; `reward_rule` is one of `REWARD_RULES`;
    `num_support_actions` is K. Only for mazes, whose first two observations are a position,
    and in the maze's units: `max_move` is more than one step can move, `goal_radius` the distance from the goal within
    which a sparse reward is 1, `goal` its position if it is the same in all episodes.
    """

    name: str
    family: str
    env_id: str
    observation_size: int
    action_size: int
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
    max_move: float | None = None
    goal_radius: float | None = None
    goal: tuple[float, float] | None = None
    note: str = ""
