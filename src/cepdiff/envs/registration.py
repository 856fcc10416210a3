"""Gymnasium ids of D4RL's environments: one builder function per family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym


class Registration(NamedTuple):
    """An environment to register as `cepdiff/<name>`: entry point "module:Class", arguments and time limit."""

    name: str
    entry_point: str
    kwargs: dict[str, Any]
    max_episode_steps: int | None


def locomotion() -> Iterator[Registration]:
    """The four robots of D4RL's files v0 to v2."""
    for robot in ("HalfCheetah", "Hopper", "Walker2d", "Ant"):
        yield Registration(f"{robot}-v2", f"cepdiff.envs.locomotion:Recorded{robot}", {}, 1000)


def antmazes() -> Iterator[Registration]:
    """The data of `play` and `diverse` have other starts and goals; one environment evaluates both."""
    ant_maze = "cepdiff.envs.antmaze:AntMaze"
    for size, limit in (("umaze", 700), ("medium", 1000), ("large", 1000)):
        for task in ("umaze", "umaze-diverse") if size == "umaze" else (f"{size}-play", f"{size}-diverse"):
            for version in ("v0", "v1", "v2"):
                kwargs = {"layout": size, "goal_each_reset": version == "v2"}
                yield Registration(f"antmaze-{task}-{version}", ant_maze, kwargs, limit)
            kwargs = {"layout": f"eval-{size}", "goal_each_reset": False}
            yield Registration(f"antmaze-eval-{task}-v0", ant_maze, kwargs, limit)


def mazes_2d() -> Iterator[Registration]:
    """Sparse and dense rewards; versions differ only in the time limit."""
    limits = {
        "v0": {"open": 150, "umaze": 150, "medium": 250, "large": 600},
        "v1": {"umaze": 300, "medium": 600, "large": 800, "eval-umaze": 300, "eval-medium": 600, "eval-large": 800},
    }
    for version, layouts in limits.items():
        for layout, limit in layouts.items():
            for reward_type, suffix in (("sparse", ""), ("dense", "-dense")):
                kwargs = {"layout": layout, "reward_type": reward_type}
                yield Registration(f"maze2d-{layout}{suffix}-{version}", "cepdiff.envs.maze2d:Maze2D", kwargs, limit)


def adroit() -> Iterator[Registration]:
    """Four tasks of a hand; file versions v0 and v1 share one environment."""
    for task, limit in {"pen": 100, "door": 200, "hammer": 200, "relocate": 200}.items():
        yield Registration(f"{task}-v0", f"cepdiff.envs.adroit:{task.capitalize()}", {}, limit)


def kitchens() -> Iterator[Registration]:
    """Four subtasks each; `complete` and `partial` differ only in their data."""
    first = ("microwave", "kettle", "light switch", "slide cabinet")
    second = ("microwave", "kettle", "bottom burner", "light switch")
    for name, tasks in (("complete", first), ("partial", first), ("mixed", second)):
        yield Registration(f"kitchen-{name}-v0", "cepdiff.envs.kitchen:Kitchen", {"tasks": tasks}, 280)


def with_goals() -> Iterator[Registration]:
    """Mazes that show their goal, see `cepdiff.envs.goals`; their own time limit counts."""
    yield Registration("with_goal-v0", "cepdiff.envs.goals:make", {}, None)


FAMILIES: tuple[Callable[[], Iterator[Registration]], ...] = (
    locomotion,
    antmazes,
    mazes_2d,
    adroit,
    kitchens,
    with_goals,
)


def register_all() -> None:
    """Register what is not registered yet. Entry points are strings, so MuJoCo is not imported before `make`."""
    for family in FAMILIES:
        for name, entry_point, kwargs, limit in family():
            if f"cepdiff/{name}" not in gym.registry:
                gym.register(f"cepdiff/{name}", entry_point, kwargs=kwargs, max_episode_steps=limit)
