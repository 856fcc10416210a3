"""D4RL's own environments in the classic stack (old gym, mujoco_py), through shimmy, as `cepdiff/classic-v0`.

Importing this module needs that stack, see docker/Dockerfile.d4rl; `import d4rl` registers the tasks in the old gym.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from cepdiff.rollout.envs import Env

importlib.import_module("gym")
importlib.import_module("d4rl")
_shimmy = importlib.import_module("shimmy")

# What wrappers of old gym and of D4RL call the environment inside.
_INNER = ("env", "_wrapped_env")


class SeededEnv(gym.Wrapper[Any, Any, Any, Any]):
    """A reset with a seed always starts alike, as Gymnasium demands.

    D4RL's wrapper around AntMaze does not hand `seed` on, and its mazes draw starts and goals from NumPy's global
    generator: here every layer is seeded, and the global generator for the time of the reset.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """First observation and info; `options` are not known to old gym."""
        if seed is None:
            return self.env.reset()
        state = np.random.get_state()  # noqa: NPY002  what D4RL draws from
        try:
            np.random.seed(seed)  # noqa: NPY002
            for layer in _layers(getattr(self.env.unwrapped, "gym_env")):  # noqa: B009  shimmy's, unknown to Env
                layer.seed(seed)
            return self.env.reset()
        finally:
            np.random.set_state(state)  # noqa: NPY002


def make_classic(task: str, render_mode: str | None = None) -> Env:
    """D4RL's environment `task`, e.g. `hopper-medium-v2`, with Gymnasium's interface and D4RL's time limit."""
    return SeededEnv(_shimmy.GymV21CompatibilityV0(env_id=task, render_mode=render_mode))


def _layers(env: Any) -> Iterator[Any]:
    """An old environment and all that it wraps."""
    while env is not None:
        yield env
        # Not getattr: these wrappers answer for the layers inside, which would skip none and never end.
        env = next((vars(env)[name] for name in _INNER if name in vars(env)), None)


# Gymnasium's checker asks for more than old environments do.
gym.register("cepdiff/classic-v0", "cepdiff.rollout.classic:make_classic", disable_env_checker=True)
