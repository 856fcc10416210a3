"""Evaluation of a policy at several guidance scales, shared by the processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torchmetrics import CatMetric

from cepdiff.rollout.envs import EnvSpec
from cepdiff.rollout.rollout import Episode, EpisodeResult, rollout, shard
from cepdiff.types import Policy


def evaluate(
    policy: Policy,
    environment: EnvSpec,
    *,
    scales: Sequence[float],
    episodes: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    max_envs: int = 128,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[float, int], None] | None = None,
) -> list[EpisodeResult]:
    """Rolls out `episodes` episodes at each scale, this rank's share of them, and returns those of all ranks.

    Every scale sees the same starts and noise, episode by episode. Results are ordered by scale and index.
    """
    todo = [Episode(index, scale) for index in range(episodes) for scale in scales]
    mine = shard(todo, rank, world)
    results = rollout(
        policy,
        environment,
        mine,
        seed=seed,
        max_envs=max_envs,
        num_workers=num_workers,
        device=device,
        on_progress=on_progress,
    )
    return gather_results(results, device)


def gather_results(results: Sequence[EpisodeResult], device: torch.device | str = "cpu") -> list[EpisodeResult]:
    """The results of all ranks, whatever the number on each; a collective call where processes are connected."""
    metric = CatMetric(nan_strategy="ignore").to(device)
    # A flat list of six numbers an episode; one pad of -1 lets a rank without episodes take part.
    rows = [[-1.0] * 6, *map(_numbers, results)]
    metric.set_dtype(torch.float64)
    metric.update(torch.tensor(rows, dtype=torch.float64, device=device).flatten())
    table = metric.compute().reshape(-1, 6).tolist()
    gathered = [_result(row) for row in table if row[0] >= 0]
    return sorted(gathered, key=lambda result: (result.guidance_scale, result.index))


def _numbers(r: EpisodeResult) -> list[float]:
    success = -1 if r.success is None else r.success
    return [r.index, r.guidance_scale, r.episode_return, r.length, r.terminated, success]


def _result(row: list[float]) -> EpisodeResult:
    index, scale, episode_return, length, ended, success = row
    known = None if success < 0 else bool(success)
    return EpisodeResult(int(index), scale, episode_return, int(length), bool(ended), known)
