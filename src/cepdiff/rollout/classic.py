"""D4RL's own environments in the classic stack (old gym, mujoco_py), wrapped by shimmy, as `cepdiff/classic-v0`.

Importing this module needs that stack (docker/Dockerfile.d4rl); `import d4rl` registers the tasks in old gym.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from cepdiff.data.rl.tasks import find_task
from cepdiff.rollout.envs import Env

importlib.import_module("gym")
importlib.import_module("d4rl")
_shimmy = importlib.import_module("shimmy")

# Attributes in which wrappers of old gym and D4RL keep the inner environment.
_INNER = ("env", "_wrapped_env")


class SeededEnv(gym.Wrapper[Any, Any, Any, Any]):
    """A reset with a seed always starts in the same state, as Gymnasium requires.

    D4RL's AntMaze wrapper does not pass `seed` on, and its mazes draw starts and goals from NumPy's global generator:
    this class seeds every layer, and the global generator for the duration of the reset.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return the first observation and info; `options` are ignored, because old gym has none."""
        if seed is None:
            return self.env.reset()
        state = np.random.get_state()  # noqa: NPY002  the generator of D4RL
        try:
            np.random.seed(seed)  # noqa: NPY002
            for layer in _layers(getattr(self.env.unwrapped, "gym_env")):  # noqa: B009  shimmy's, unknown to Env
                layer.seed(seed)
            return self.env.reset()
        finally:
            np.random.set_state(state)  # noqa: NPY002


def make_classic(task: str, render_mode: str | None = None) -> Env:
    """D4RL's environment `task`, e.g. `hopper-medium-v2`, with Gymnasium's interface and D4RL's time limit."""
    # A name from a file must be a task: old gym imports the module in "module:name".
    return SeededEnv(_shimmy.GymV21CompatibilityV0(env_id=find_task(task).name, render_mode=render_mode))


def _layers(env: Any) -> Iterator[Any]:
    """Yield an old environment and everything it wraps."""
    while env is not None:
        yield env
        # Not getattr: these wrappers forward attributes to their inner layers, so the loop would never end.
        env = next((vars(env)[name] for name in _INNER if name in vars(env)), None)


# Old environments do not pass Gymnasium's checker.
gym.register("cepdiff/classic-v0", "cepdiff.rollout.classic:make_classic", disable_env_checker=True)
