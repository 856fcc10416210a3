"""The distillation stage: the sampler's actions to learn from, and how closely the learnt network follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cepdiff.data.rl.buffer import select_episodes
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.support_cache import SupportCache, states_of_rows, support_noise
from cepdiff.policy.diagnostics import draw_states
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.problems.offline.support_stage import CACHED_ACTIONS, fill_cache
from cepdiff.randomness import stream_seed
from cepdiff.ranges import Count, Whole
from cepdiff.rollout.scores import ScoreRow
from cepdiff.runs.processes import Processes
from cepdiff.runs.results import Row
from cepdiff.runs.stage import StageSettings

CHUNK_SIZE = 4096  # states per chunk of the cache


@dataclass
class DistillationSettings(StageSettings):
    """Length of the distillation, and how many of the sampler's actions it learns from.

    Args:
        max_steps: optimiser steps; 0 leaves the stage out.
        num_actions: about how many actions of the sampler are drawn, evenly over the states of as many rows, at
            guidance scales from 0 to the largest of `evaluation.scales`.
    """

    max_steps: Whole = 0
    num_actions: Count = 400_000


def draw_actions(
    sampler: GuidedSampler,
    data: OfflineDataModule,
    folder: Path,
    settings: DistillationSettings,
    max_scale: float,
    seed: int,
    processes: Processes,
) -> OfflineDataModule:
    """Draw the sampler's actions into a cache in `folder`, each rank its chunks; return the data with them.

    Noise and scale of a draw depend only on the seed and the state's id, so the cache holds the actions only. They are
    drawn in float32, as in rollouts.
    """
    buffer, device = data.buffer, processes.device
    state_ids = states_of_rows(buffer, select_episodes(buffer, settings.num_actions, seed))
    draws = max(1, settings.num_actions // len(state_ids))
    stream = stream_seed(seed, "distillation")

    def inputs(ids: Tensor) -> tuple[Tensor, Tensor]:
        """Noise (M, K, Z) and guidance scales (M, K); one more normal number becomes the scale."""
        numbers = support_noise(stream, ids, draws, sampler.noise_size + 1)
        return numbers[..., :-1], max_scale * torch.special.ndtr(numbers[..., -1])

    def draw(ids: Tensor) -> Tensor:
        noise, scales = inputs(ids)
        states = data.normalize(buffer.states[ids]).repeat_interleave(draws, 0)  # (M, S) -> (M*K, S)
        rows = [values.to(device) for values in (states, noise.flatten(0, 1), scales.flatten())]
        size = CACHED_ACTIONS if device.type == "cpu" else len(states)
        drawn = [sampler.sample(*part) for part in zip(*(values.split(size) for values in rows), strict=True)]
        return torch.cat(drawn).float().reshape(len(ids), draws, -1)  # (M*K, A) -> (M, K, A)

    needed = state_ids, draws, sampler.size
    fill_cache(draw, folder, len(buffer.states), needed, CHUNK_SIZE, processes, "distillation")
    cache = SupportCache(folder, len(buffer.states))
    noise, scales = inputs(cache.state_ids)
    return data.with_support(cache, noise=noise, guidance_scales=scales)


@torch.no_grad()
def one_step_errors(
    student: GuidedSampler,
    teacher: GuidedSampler,
    data: OfflineDataModule,
    support: SupportCache,
    scales: Sequence[float],
    seed: int,
    num_states: int = 1024,
) -> list[Row]:
    """Root mean square difference per action dimension in [-1, 1] from the teacher's actions of the same noise."""
    sample = draw_states(data, support, num_states, seed, teacher.device)
    noise = support_noise(stream_seed(seed, "one-step"), sample.ids, 1, teacher.noise_size)[:, 0].to(teacher.device)
    found = []
    for scale in scales:
        each = torch.full((len(noise),), scale, device=noise.device)
        actions, expected = (sampler.sample(sample.states, noise, each) for sampler in (student, teacher))
        found.append(Row(scale, "one_step_error", float((actions - expected).square().mean().sqrt())))
    return found


def one_step_scores(rows: Sequence[ScoreRow]) -> list[Row]:
    """Scores of the one-step policy: normalised, or mean returns if no reference is known."""
    return [
        Row(row.guidance_scale, "one_step_return", row.mean_return, error=row.standard_error)
        if row.normalized_score is None
        else Row(row.guidance_scale, "one_step_score", row.normalized_score, error=row.normalized_standard_error)
        for row in rows
    ]
