"""Episodes of a policy at any guidance scales, all in one vectorised environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from torch import Generator

from cepdiff.errors import DivergenceError, SimulationError
from cepdiff.randomness import generator
from cepdiff.rollout.envs import EnvSpec, reset_seed, time_limit
from cepdiff.rollout.vector import LocalEnvs, VectorEnv, make_vector
from cepdiff.types import Policy

T = TypeVar("T")


@dataclass(frozen=True)
class Episode:
    """One episode to run; its start state and policy noise depend only on the index."""

    index: int
    guidance_scale: float


@dataclass(frozen=True)
class EpisodeResult:
    """Result of an episode; `terminated` is False if the time limit ended it.

    `success` is the last step's `SUCCESS`, None in environments without it.
    """

    index: int
    guidance_scale: float
    episode_return: float
    length: int
    terminated: bool
    success: bool | None = None


def shard(episodes: Sequence[T], rank: int, world: int) -> Sequence[T]:
    """The episodes of process `rank` of `world`."""
    return episodes[rank::world]


@dataclass
class _Running:
    position: int  # in the caller's list
    episode: Episode
    noise: Generator
    episode_return: float = 0.0
    length: int = 0


def rollout(
    policy: Policy,
    env_spec: EnvSpec,
    episodes: Sequence[Episode],
    *,
    seed: int,
    max_envs: int = 128,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[float, int], None] | None = None,
    on_step: Callable[[SyncVectorEnv], None] | None = None,
) -> list[EpisodeResult]:
    """Run exactly `episodes`, at most `max_envs` at a time, and return their results in the same order.

    At every scale, episode i starts from `reset(seed=reset_seed(seed, "rollout", i))` and draws its noise from the
    stream (seed, "rollout-noise", i). A result depends only on `seed`, index and scale, not on `max_envs`, the other
    episodes or the sharding. This is exact if the policy computes rows independently; otherwise matrix products round
    differently for other batch sizes, which chaotic simulations amplify. Actions are clipped to the environment's
    bounds. `num_workers` processes step the environments; with 0 this one does, with equal results. `on_progress` gets
    the episodes done, where a running one counts by its share of the time limit, and the total; `on_step` gets the
    vectorised environment before each step, e.g. to render it.

    Raises:
        DivergenceError: an action is NaN or infinite.
        SimulationError: the spaces are not flat Boxes, the policy has another action size, or the environment fails in
            a step, see `CheckedEnv`; or a worker process was killed.
        ValueError: `on_step` with worker processes.
    """
    if not episodes:
        return []
    if on_step is not None and num_workers:
        raise ValueError("on_step needs num_workers 0: worker processes keep their environments to themselves")
    with closing(make_vector(env_spec, min(len(episodes), max_envs), num_workers)) as envs:
        if (size := envs.action_space.shape[0]) != policy.action_size:
            raise SimulationError(
                f"The policy has {policy.action_size} actions, '{env_spec.env_id}' takes {size}. "
                "Choose the environment that the policy was trained for."
            )
        return _run(policy, envs, episodes, seed, time_limit(env_spec) or math.inf, device, on_progress, on_step)


def _run(
    policy: Policy,
    envs: VectorEnv,
    episodes: Sequence[Episode],
    seed: int,
    limit: float,
    device: torch.device | str,
    on_progress: Callable[[float, int], None] | None,
    on_step: Callable[[SyncVectorEnv], None] | None,
) -> list[EpisodeResult]:
    pending = enumerate(episodes)
    running: list[_Running | None] = [None] * envs.num_envs
    results: dict[int, EpisodeResult] = {}
    finished = np.ones(envs.num_envs, np.bool_)
    observations: NDArray[Any] = np.empty(0)
    space = envs.action_space

    while True:
        if finished.any():
            seeds: dict[int, int | None] = {}
            for slot in np.flatnonzero(finished).tolist():
                position, episode = next(pending, (-1, None))
                if episode is None:
                    running[slot] = seeds[slot] = None
                else:
                    running[slot] = _Running(position, episode, generator(seed, "rollout-noise", episode.index))
                    seeds[slot] = reset_seed(seed, "rollout", episode.index)
            observations = envs.restart(seeds)
        active = {slot: run for slot, run in enumerate(running) if run is not None}
        if not active:
            return [results[position] for position in range(len(episodes))]

        if on_step is not None:
            assert isinstance(envs, LocalEnvs)
            on_step(envs.vector)
        slots = list(active)
        actions = np.zeros((envs.num_envs, *space.shape), space.dtype)
        actions[slots] = _act(policy, observations[slots], list(active.values()), device)
        actions = np.clip(actions, space.low, space.high)
        observations, rewards, terminated, truncated, reached = envs.step(actions)

        finished = terminated | truncated
        for slot, run in active.items():
            run.episode_return += float(rewards[slot])
            run.length += 1
            if finished[slot]:
                index, scale = run.episode.index, run.episode.guidance_scale
                ended = bool(terminated[slot])
                if not math.isfinite(run.episode_return):
                    raise SimulationError(f"the rewards of episode {index} add up to {run.episode_return}")
                success = None if reached is None else bool(reached[slot])
                results[run.position] = EpisodeResult(index, scale, run.episode_return, run.length, ended, success)
        if on_progress is not None:
            under_way = sum(run.length / limit for slot, run in active.items() if not finished[slot])
            on_progress(len(results) + under_way, len(episodes))


def _act(
    policy: Policy, observations: NDArray[Any], running: Sequence[_Running], device: torch.device | str
) -> NDArray[Any]:
    """Actions (B, A) of the running episodes, each at its own scale and with its own noise."""
    noise = torch.stack([torch.randn(policy.noise_size, generator=run.noise) for run in running])
    scales = torch.tensor([run.episode.guidance_scale for run in running], device=device)
    inputs = torch.as_tensor(observations, dtype=torch.float32, device=device)
    actions: NDArray[Any] = policy.act(inputs, guidance_scale=scales, noise=noise.to(device)).detach().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(actions).all(axis=-1))
    if bad.size:
        run = running[bad[0]]
        raise DivergenceError(
            f"The policy returned a NaN or infinite action at guidance scale {run.episode.guidance_scale:g}, "
            f"step {run.length} of episode {run.episode.index}"
        )
    return actions
