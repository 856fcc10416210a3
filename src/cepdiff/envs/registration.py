"""Gymnasium ids of D4RL's environments: one builder function a family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym


class Registration(NamedTuple):
    """An environment to register as `cepdiff/<name>`: entry point "module:Class", arguments and time limit."""

    name: str
    entry_point: str
    kwargs: dict[str, Any]
    max_episode_steps: int


FAMILIES: tuple[Callable[[], Iterator[Registration]], ...] = ()


def register_all() -> None:
    """Registers what is not registered yet. Entry points are strings: nothing of MuJoCo is imported before `make`."""
    for family in FAMILIES:
        for name, entry_point, kwargs, limit in family():
            if f"cepdiff/{name}" not in gym.registry:
                gym.register(f"cepdiff/{name}", entry_point, kwargs=kwargs, max_episode_steps=limit)
