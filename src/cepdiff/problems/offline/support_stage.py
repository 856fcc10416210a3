"""The support stage: actions of the behavior policy at every state, and their energies by the critic."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from cepdiff.bars import progress
from cepdiff.data.rl.buffer import select_episodes
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.support_cache import SupportCache, allocate, fill, states_of_rows, support_noise, write_rows
from cepdiff.errors import DataError, RunError
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.ranges import Count, Range
from cepdiff.runs.folder import StageFolder
from cepdiff.runs.processes import Processes
from cepdiff.runs.run import Run
from cepdiff.runs.stage import Stage
from cepdiff.runs.threads import settle_threads
from cepdiff.seals import content_hash

# Actions sampled at a time on a CPU: activations of this many rows stay in a core's cache, which is twice as fast.
CACHED_ACTIONS = 2048
TRIAL_ACTIONS = 256  # to choose the number of threads by
CONTENT = ("actions.npy", "state_ids.npy")  # not the marks, which depend on the number of processes


@dataclass
class SupportSettings:
    """Drawing of support actions.

    Args:
        num_actions: K, at least 2; null is 16, or 32 for AntMaze.
        max_rows: about how many rows to draw for, in whole episodes; null draws for all.
        chunk_size: states drawn at a time.
    """

    num_actions: Annotated[int, Range(2, 2**16, "[]")] | None = None
    max_rows: Count | None = None
    chunk_size: Count = 4096


class SupportStage(Stage):
    """Draws K actions of the behavior policy at s and s' of the chosen episodes, once, and keeps them on disk.

    Args:
        run: the run.
        sampler: gives the sampler of the trained behavior policy.
        data: the buffer.
        settings: how much to draw.
        made_from: as in `Stage`; the numbers of actions and rows are added.
    """

    cache: SupportCache

    def __init__(
        self,
        run: Run,
        sampler: Callable[[], GuidedSampler],
        data: OfflineDataModule,
        settings: SupportSettings,
        made_from: Callable[[], Mapping[str, Any]],
    ) -> None:
        count = settings.num_actions or data.settings.num_support_actions
        drawn = {"num_actions": count, "max_rows": settings.max_rows}
        if not (data.buffer.next_index[select_episodes(data.buffer, settings.max_rows, run.seed)] >= 0).any():
            raise DataError(
                f"stages.support.max_rows {settings.max_rows}: no transition in these episodes; choose more"
            )
        super().__init__(run, "support", lambda: {**made_from(), **drawn})
        self.sampler = sampler
        self.data = data
        self.settings = settings
        self.num_actions = count

    @property
    def hash(self) -> str:
        """Hash of the record and the actions."""
        files = self.context.processes.on_main(lambda: self.folder.files)
        return content_hash({**self.made_from(), "files": {name: files.get(name) for name in CONTENT}})

    def run(self) -> None:
        run, settings = self.context, self.settings
        draw_support(self.sampler(), self.data, self.folder, settings, self.num_actions, run.seed, run.processes)

    def load(self) -> None:
        """Open the cache anew: it has what other processes wrote."""
        self.cache = SupportCache(self.folder.path, len(self.data.buffer.states))
        self.cache.require(*expected(self.data, self.settings, self.num_actions, self.context.seed))


def expected(data: OfflineDataModule, settings: SupportSettings, count: int, seed: int) -> tuple[Tensor, int, int]:
    """State ids (M,), K and A of the cache."""
    state_ids = states_of_rows(data.buffer, select_episodes(data.buffer, settings.max_rows, seed))
    return state_ids, count, data.buffer.actions.shape[1]


def draw_support(
    sampler: GuidedSampler,
    data: OfflineDataModule,
    folder: StageFolder,
    settings: SupportSettings,
    num_actions: int,
    seed: int,
    processes: Processes,
) -> None:
    """Fill the cache in `folder` with unguided samples, each rank its chunks, from where an earlier run stopped."""
    buffer, needed = data.buffer, expected(data, settings, num_actions, seed)
    action_size = buffer.actions.shape[1]

    def draw(state_ids: Tensor) -> Tensor:
        conditions = data.normalize(buffer.states[state_ids]).to(processes.device).unsqueeze(1)  # (M, 1, S)
        noises = support_noise(seed, state_ids, num_actions, action_size).to(processes.device)
        on_cpu = processes.device.type == "cpu"
        states = max(1, CACHED_ACTIONS // num_actions) if on_cpu else len(state_ids)
        with torch.no_grad(), processes.autocast():
            drawn = [
                sampler.sample(condition, noise)
                for condition, noise in zip(torch.split(conditions, states), torch.split(noises, states), strict=True)
            ]
        return torch.cat(drawn).float()

    started = time.monotonic()
    fill_cache(draw, folder, len(buffer.states), needed, settings.chunk_size, processes)
    processes.on_main(lambda: folder.finish(time.monotonic() - started))


def fill_cache(
    draw: Callable[[Tensor], Tensor],
    stage: StageFolder,
    num_states: int,
    needed: tuple[Tensor, int, int],
    chunk_size: int,
    processes: Processes,
) -> None:
    """Fill the cache of a stage with `draw(state_ids)` -> (M', K, A); each rank draws its chunks that are missing.

    `needed` are state ids (M,), K and A. Raises RunError if a chunk is missing at the end.
    """
    folder = stage.path

    def lay_out() -> None:
        if not SupportCache.exists(folder):
            SupportCache.create(folder, *needed, chunk_size)

    def check() -> None:
        if missing := SupportCache(folder, num_states).pending():
            raise RunError(f"{len(missing)} chunks of actions are missing in {folder}; run the command again")

    processes.on_main(lay_out)
    cache = SupportCache(folder, num_states)
    cache.require(*needed)
    mine = cache.pending(processes.rank, processes.world)
    total = sum(len(cache.chunk_ids(chunk)) for chunk in mine) * needed[1]
    some = needed[0][: max(1, TRIAL_ACTIONS // needed[1])]
    settle_threads(processes, stage.name, lambda: draw(some), total / TRIAL_ACTIONS, stage)
    with progress(total, stage.name, "action", enabled=processes.shows_progress) as bar:
        for states in fill(cache, draw, mine, processes.rank):
            bar.update(states * needed[1])
    processes.barrier()
    processes.on_main(check)


def support_energies(
    critic: SoftmaxQCritic, data: OfflineDataModule, cache: SupportCache, folder: StageFolder, processes: Processes
) -> Tensor:
    """Energies -Q(s, a_k) (M, K) of all support actions, computed once from the frozen critic and shared by a file."""
    path = folder.path / "energies.npy"
    shape = tuple(cache.actions.shape[:2])
    processes.on_main(lambda: allocate(path, shape))
    spans = range(0, shape[0], cache.chunk_size)[processes.rank :: processes.world]
    with progress(len(spans) * cache.chunk_size, "energies", "state", enabled=processes.shows_progress) as bar:
        for start in spans:
            span = slice(start, start + cache.chunk_size)
            states = data.normalize(data.buffer.states[cache.state_ids[span]]).to(processes.device)
            actions = torch.from_numpy(cache.actions[span]).to(processes.device)
            with torch.no_grad():
                energies = -critic.q_value(states.unsqueeze(1), actions)
            write_rows(path, start, energies.float().cpu().numpy())
            bar.update(cache.chunk_size)
    processes.barrier()
    return torch.from_numpy(np.load(path))
