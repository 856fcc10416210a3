"""Train the walking ant of `cepdiff collect antmaze-...` and measure it on trips through a maze.

    python benchmarks/ant_walk.py ant-walk.npz

The ant walks along waypoints through D4RL's medium maze with noise on its actions, as in a collection. The reward is
its speed towards the waypoint, at most 1 m/s, plus 0.5; an episode ends when the ant falls. SAC is stable-baselines3's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray

from cepdiff.collect.ant_navigation import ANT_NOISE, trips_of, walk_to_goals
from cepdiff.collect.gait import FEATURES, Walker, body_action, walking_features
from cepdiff.collect.waypoints import WaypointPolicy
from cepdiff.envs.antmaze import AntMaze
from cepdiff.rollout.envs import EnvSpec, make_env

EPISODE = 500
NEW_GOAL = 1 / 100  # chance per step: about as long on the way as around the goal
FASTEST, ALIVE = 1.0, 0.5  # m/s; reward of a step
FALLEN = 0.2  # cosine of the tilt
DISCOUNT = 0.98
HORIZON = 1000


class WalkingAnt(gym.Env[NDArray[np.float32], NDArray[np.floating]]):
    """The ant on its way to random goals in the medium maze, seen as `walking_features`."""

    def __init__(self) -> None:
        self._ant = AntMaze("medium", evaluation=True)
        self._cells = self._ant.layout.cells(".GS")
        self.observation_space = Box(-np.inf, np.inf, (FEATURES,), np.float32)
        self.action_space = self._ant.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._waypoints = WaypointPolicy(self._ant.layout, lambda inputs: inputs, self.np_random)
        self._observation = self._ant.reset(seed=int(self.np_random.integers(2**31)), options={"start": self._place()})[
            0
        ]
        self._goal, self._steps = self._place(), 0
        return self._see(), {}

    def step(self, action: NDArray[np.floating]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        noisy = np.clip(action + ANT_NOISE * self.np_random.standard_normal(8), -1.0, 1.0)
        before = self._observation[:2]
        self._observation = self._ant.step(body_action(noisy, self._turns).astype(np.float32))[0]
        speed = float((self._observation[:2] - before) @ self._way) / self._ant.dt
        fallen = bool(upright(self._observation[None])[0] < FALLEN)
        self._steps += 1
        if self.np_random.random() < NEW_GOAL:
            self._goal = self._place()
        return self._see(), min(speed, FASTEST) + ALIVE, fallen, self._steps == EPISODE, {}

    def _place(self) -> NDArray[np.float64]:
        cell = self._cells[self.np_random.integers(len(self._cells))]
        return self._ant.layout.xy(cell) + self.np_random.uniform(0.0, 1.5, 2)

    def _see(self) -> NDArray[np.float32]:
        inputs = self._waypoints.act(self._observation, self._goal)
        self._way = inputs[29:] / np.linalg.norm(inputs[29:])
        features, self._turns = walking_features(inputs)
        return features.astype(np.float32)


def upright(observations: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cosine of the tilt (N,) of observations (N, 29): 1 upright, -1 on its back."""
    return 1 - 2 * (observations[:, 4] ** 2 + observations[:, 5] ** 2)


def train(steps: int, seed: int) -> dict[str, NDArray[np.float16]]:
    """Train for so many steps of 0.1 s, one gradient step per two of them; the actor's weights as 16-bit floats."""
    from stable_baselines3 import SAC

    model = SAC(
        "MlpPolicy",
        WalkingAnt(),
        learning_rate=lambda left: 1e-3 * max(left, 0.1),
        buffer_size=steps,
        learning_starts=min(3000, steps // 2),
        tau=0.01,
        gamma=DISCOUNT,
        train_freq=2,
        seed=seed,
        device="cpu",
    )
    model.learn(steps, log_interval=20)
    actor: Any = model.actor
    layers = [*list(actor.latent_pi)[::2], actor.mu]
    return {
        f"{name}{i}": value.detach().numpy().astype(np.float16)
        for i, layer in enumerate(layers)
        for name, value in (("weight", layer.weight), ("bias", layer.bias))
    }


def measure(walker: Walker, trips: int, seed: int) -> str:
    """Walk through the medium maze from any cell to any other, with noise: arrivals, speed and falls."""
    env = make_env(EnvSpec("cepdiff/antmaze-medium-diverse-v2"))
    all_trips = trips_of("cepdiff/antmaze-medium-diverse-v2", env.unwrapped.layout)  # type: ignore[attr-defined]
    rows = trips * HORIZON
    arrays = walk_to_goals(env, walker, rows, trips=all_trips, horizon=HORIZON, seed=seed)
    positions = arrays["next_observations"][:, :2]
    speed = np.linalg.norm(positions - arrays["observations"][:, :2], axis=1).mean() / 0.1
    at_goal = (np.linalg.norm(positions - arrays["infos/goal"], axis=1) <= 0.5).reshape(trips, HORIZON)
    arrived = at_goal.any(1)
    steps = np.argmax(at_goal, 1)[arrived].mean() if arrived.any() else np.nan
    fallen = (upright(arrays["observations"]) < 0).reshape(trips, HORIZON).any(1)
    return (
        f"{trips} trips of {HORIZON} steps: {arrived.mean():.0%} arrive, after {steps:.0f} steps; {speed:.2f} m/s; "
        f"{fallen.mean():.0%} fall ({1000 * fallen.sum() / rows:.2f} falls per 1,000 steps)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the .npz file to write")
    parser.add_argument("--steps", type=int, default=60_000, help="of 0.1 s (%(default)s)")
    parser.add_argument("--trips", type=int, default=20, help="of the measurement (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.process_time()
    weights = train(args.steps, args.seed)
    print(f"trained in {(time.process_time() - started) / 60:.1f} minutes of one core")
    np.savez_compressed(args.output, **weights)  # type: ignore[arg-type]
    walker = Walker([(weights[f"weight{i}"], weights[f"bias{i}"]) for i in range(len(weights) // 2)])
    print(measure(walker, args.trips, args.seed))


if __name__ == "__main__":
    main()
