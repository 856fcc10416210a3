"""What the registry knows of one task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REWARD_RULES = ("return_range", "minus_one", "none")


@dataclass(frozen=True)
class Task:
    """A dataset, the environment it was recorded in, and the settings which go with both.

    `url` and `embedded` (a file in this package's `data/embedded`) say where the data are; `env_module` is
    imported before `gymnasium.make(env_id, **env_kwargs)` so that it registers its environments. `horizon` is
    the episode limit in steps; `reference_min` and `reference_max` are the returns which score 0 and 100;
    `reward_rule` is one of `REWARD_RULES`; `num_support_actions` is K; `file_size` is in bytes where known.
    In a maze the first two observations are a position: `max_move` is farther than one step can lead,
    `goal_radius` the distance from the goal within which a sparse reward is 1, `goal` its place where it is the
    same in all episodes (all in the maze's units of length).
    """

    name: str
    family: str
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
    max_move: float | None = None
    goal_radius: float | None = None
    goal: tuple[float, float] | None = None
    note: str = ""
