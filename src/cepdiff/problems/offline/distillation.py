"""The distillation stage: its training data, drawn from the sampler, and the error of the trained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cepdiff.data.blocks import StageDataModule
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.support_cache import SupportCache, support_noise
from cepdiff.policy.diagnostics import draw_states
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.problems.offline.support_stage import CACHED_ACTIONS, fill_cache
from cepdiff.randomness import generator, stream_seed
from cepdiff.ranges import Count, Whole
from cepdiff.rollout.scores import ScoreRow
from cepdiff.runs.folder import StageFolder
from cepdiff.runs.processes import Processes
from cepdiff.runs.results import Row
from cepdiff.runs.stage import StageSettings
from cepdiff.types import Batch, DataSpec

AT_ZERO = 1 / 16  # share of the draws at scale 0
GPU_CHUNK = 65_536  # actions drawn at a time on a GPU


@dataclass
class DistillationSettings(StageSettings):
    """Length of the distillation and size of its training set.

    Args:
        max_steps: optimiser steps; 0 leaves the stage out.
        num_actions: actions of the sampler to draw, spread evenly over the buffer's states, at guidance scales up to
            the largest of `evaluation.scales`.
    """

    max_steps: Whole = 0
    num_actions: Count = 200_000


class DrawnActions(StageDataModule):
    """A sampler's actions at the states of `data` as training data, one draw per row.

    Args:
        data: the buffer.
        states: (N,) the state of each draw, as a row of the buffer's states.
        fields: (N, ...) noise, guidance scale and action of each draw.
    """

    def __init__(self, data: OfflineDataModule, states: Tensor, fields: Mapping[str, Tensor]) -> None:
        super().__init__(data.block_size, data.seed)
        self.data = data
        self.states = states
        self.fields = fields

    @property
    def dataset_name(self) -> str:
        return self.data.dataset_name

    @property
    def content_hash(self) -> str:
        return self.data.content_hash

    @property
    def spec(self) -> DataSpec:
        return self.data.spec

    def rows(self, fields: Sequence[str]) -> Tensor:
        return torch.arange(len(self.states))

    def gatherer(self, fields: Sequence[str], device: torch.device | str = "cpu") -> Callable[[Tensor], Batch]:
        observations = self.data.normalize(self.data.buffer.states).to(device)
        states, drawn = self.states.to(device), {name: values.to(device) for name, values in self.fields.items()}
        return lambda rows: {
            "observations": observations[states[rows]], **{name: values[rows] for name, values in drawn.items()}
        }  # fmt: skip


def draw_actions(
    sampler: GuidedSampler,
    data: OfflineDataModule,
    folder: StageFolder,
    num_actions: int,
    max_scale: float,
    seed: int,
    processes: Processes,
) -> DrawnActions:
    """Draw the sampler's actions into a cache in the stage's folder, each rank its chunks; a stopped run is resumed.

    State, noise and scale of draw i depend only on the seed and i, so the cache holds only the actions. They are drawn
    in float32, as in rollouts.
    """
    buffer, device = data.buffer, processes.device
    order = torch.randperm(len(buffer.states), generator=generator(seed, "distillation", "states"))
    draws = torch.arange(num_actions)
    # The last normal number becomes a uniform one. A part of it is scale 0, where some samplers jump; the square of the
    # rest favours small scales, where actions change fastest.
    numbers = support_noise(stream_seed(seed, "distillation", "noise"), draws, 1, sampler.noise_size + 1)[:, 0]
    states, noise = order[draws % len(order)], numbers[:, :-1]
    uniform = torch.special.ndtr(numbers[:, -1])
    scales = max_scale * ((uniform - AT_ZERO).clamp(min=0.0) / (1.0 - AT_ZERO)).square()

    def draw(ids: Tensor) -> Tensor:
        rows = [values[ids].to(device) for values in (noise, scales)]
        return sampler.sample(data.normalize(buffer.states[states[ids]]).to(device), *rows).float().unsqueeze(1)

    chunk_size = CACHED_ACTIONS if device.type == "cpu" else GPU_CHUNK
    fill_cache(draw, folder, num_actions, (draws, 1, sampler.size), chunk_size, processes)
    actions = torch.from_numpy(SupportCache(folder.path, num_actions).actions[:, 0])
    return DrawnActions(data, states, {"noise": noise, "guidance_scales": scales, "actions": actions})


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
    """Root mean square difference, per action dimension in [-1, 1], from the teacher's actions for the same noise."""
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
        Row(row.guidance_scale, "one_step_return", row.mean_return, error=row.standard_error, count=row.episodes)
        if row.normalized_score is None
        else Row(
            row.guidance_scale,
            "one_step_score",
            row.normalized_score,
            error=row.normalized_standard_error,
            count=row.episodes,
        )
        for row in rows
    ]
