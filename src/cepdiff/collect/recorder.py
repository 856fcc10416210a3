"""Record transitions of an environment in D4RL's layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from cepdiff.rollout.envs import Env, box_spaces, reset_seed

Arrays = dict[str, NDArray[Any]]
# Policy: one observation (S,) -> one action (A,) in the environment's units.
Act = Callable[[NDArray[Any]], NDArray[Any]]
# Called with the number of rows done.
Report = Callable[[int], None]


class RecordingEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Records the first `rows` steps; later steps pass through unrecorded.

    `next_observations` is what the step returned, never the first observation of the next episode. `terminals` are
    ends that stop bootstrapping, `timeouts` all others. `states` also records the state *before* each step as
    `infos/...`, in float64 so that it can be restored exactly: MuJoCo's `qpos` and `qvel` and, if the environment has
    them, its goal and the entries of its `get_env_state`.
    """

    def __init__(self, env: Env, rows: int, *, states: bool = False) -> None:
        super().__init__(env)
        observation_space, action_space = box_spaces(env)
        self.count = 0
        self._arrays: Arrays = {
            "observations": np.zeros((rows, *observation_space.shape), np.float32),
            "actions": np.zeros((rows, *action_space.shape), np.float32),
            "rewards": np.zeros(rows, np.float32),
            "next_observations": np.zeros((rows, *observation_space.shape), np.float32),
            "terminals": np.zeros(rows, np.bool_),
            "timeouts": np.zeros(rows, np.bool_),
        }
        self._rows, self._states = rows, states

    def reset(self, **kwargs: Any) -> tuple[NDArray[Any], dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._observation = np.array(observation)
        return observation, info

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], Any, bool, bool, dict[str, Any]]:
        row = self.count
        recording = row < self._rows
        if recording and self._states:
            self._note_state(row)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if recording:
            values = (self._observation, action, reward, observation, terminated, truncated and not terminated)
            for key, value in zip(self._arrays, values, strict=False):
                self._arrays[key][row] = value
            self.count += 1
        self._observation = np.array(observation)
        return observation, reward, terminated, truncated, info

    def _note_state(self, row: int) -> None:
        for name, value in state_of(self.env).items():
            if row == 0:
                self._arrays[f"infos/{name}"] = np.zeros((self._rows, *np.shape(value)))
            self._arrays[f"infos/{name}"][row] = value

    def arrays(self) -> Arrays:
        """Return the recorded rows."""
        return first_rows(self._arrays, self.count)


def state_of(env: Env) -> dict[str, Any]:
    """An environment's state by name; empty if it exposes none."""
    inner: Any = env.unwrapped
    data: Any = getattr(inner, "data", None)
    parts = {"qpos": data.qpos, "qvel": data.qvel} if hasattr(data, "qpos") else {}
    if hasattr(inner, "goal"):
        parts["goal"] = inner.goal
    if hasattr(inner, "get_env_state"):
        parts |= inner.get_env_state()
    return parts


def first_rows(arrays: Arrays, rows: int) -> Arrays:
    """Return the first `rows` rows; an episode that continues beyond them has no end."""
    return {key: values[:rows] for key, values in arrays.items()}


def concatenate(first: Arrays, second: Arrays) -> Arrays:
    """Concatenate both; an episode that is cut off at the end of `first` gets a timeout."""
    timeouts = first["timeouts"].copy()
    timeouts[-1] = not first["terminals"][-1]
    first = {**first, "timeouts": timeouts}
    return {key: np.concatenate([first[key], second[key]]) for key in first}


def run_episode(env: Env, act: Act, *, seed: int, max_steps: int | None = None) -> tuple[float, int]:
    """Run one episode from `reset(seed=seed)`, at most `max_steps` long; returns its (return, length)."""
    observation, _ = env.reset(seed=seed)
    episode_return, length, done = 0.0, 0, False
    while not done and length != max_steps:
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        episode_return += float(reward)
        length += 1
        done = terminated or truncated
    return episode_return, length


def mean_return(env: Env, act: Act, episodes: int, *, seed: int, label: str) -> float:
    """Mean undiscounted return of `episodes` episodes; episode i is seeded by (seed, label, i)."""
    returns = [run_episode(env, act, seed=reset_seed(seed, label, i))[0] for i in range(episodes)]
    return float(np.mean(returns))


def record(
    env: Env,
    act: Act,
    rows: int,
    *,
    seed: int,
    label: str,
    states: bool = False,
    on_progress: Report = lambda rows: None,
) -> Arrays:
    """Record exactly `rows` transitions of the policy `act`, cutting off the last episode.

    `on_progress` is called after each episode.
    """
    recorder = RecordingEnv(env, rows, states=states)
    episode = 0
    while recorder.count < rows:
        run_episode(recorder, act, seed=reset_seed(seed, label, episode), max_steps=rows - recorder.count)
        episode += 1
        on_progress(recorder.count)
    return recorder.arrays()
