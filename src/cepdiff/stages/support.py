"""The support stage: drawing the behavior policy's actions at every state, and weighing them by the critic."""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from torch import Tensor

from cepdiff.callbacks.progress import progress
from cepdiff.data.rl.buffer import select_episodes
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.support import SupportCache, fill, states_of_rows, support_noise
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.errors import RunError
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.stages.artifacts import StageFolder
from cepdiff.stages.processes import Processes
from cepdiff.stages.settings import SupportSettings

# Actions sampled at a time on a CPU: activations of so many rows stay in a core's cache, which is worth a factor of 2.
CACHED_ACTIONS = 2048


def draw_support(
    behavior: BehaviorDiffusion,
    solver: DPMSolver,
    data: OfflineDataModule,
    folder: StageFolder,
    settings: SupportSettings,
    num_actions: int,
    seed: int,
    processes: Processes,
) -> SupportCache:
    """Fills the cache in `folder`, each rank its chunks, going on where an earlier run stopped."""
    buffer = data.buffer

    def lay_out() -> None:
        if not SupportCache.exists(folder.path):
            rows = select_episodes(buffer, settings.max_rows, seed)
            state_ids = states_of_rows(buffer, rows)
            SupportCache.create(folder.path, state_ids, num_actions, buffer.actions.shape[1], settings.chunk_size)

    processes.on_main(lay_out)
    cache = SupportCache(folder.path, len(buffer.states))
    if processes.on_main(lambda: folder.done):
        return cache

    # Mixed precision keeps its casts of those weights alone that could be trained.
    net = copy.deepcopy(behavior.sampling_net).requires_grad_(True)

    def draw(state_ids: Tensor) -> Tensor:
        conditions = data.normalize(buffer.states[state_ids]).to(processes.device).unsqueeze(1)  # (M, 1, S)
        noises = support_noise(seed, state_ids, num_actions, buffer.actions.shape[1]).to(processes.device)
        states = states_at_a_time(processes.device, num_actions, len(state_ids))
        with torch.no_grad(), processes.autocast():
            drawn = [
                sample_guided(net, behavior.schedule, solver, condition, noise, data_bound=1.0)
                for condition, noise in zip(torch.split(conditions, states), torch.split(noises, states), strict=True)
            ]
        return torch.cat(drawn).float()

    started = time.monotonic()
    mine = sum(len(cache.chunk_ids(chunk)) for chunk in cache.pending(processes.rank, processes.world))
    shown = processes.is_main and processes.settings.progress_bar
    with progress(mine * num_actions, "support", "action", enabled=shown) as bar:
        for states in fill(cache, draw, rank=processes.rank, world=processes.world):
            bar.update(states * num_actions)
    processes.barrier()
    processes.on_main(lambda: finish_support(folder, len(buffer.states), time.monotonic() - started))
    return SupportCache(folder.path, len(buffer.states))  # opened anew: what other processes wrote is in it


def states_at_a_time(device: torch.device, num_actions: int, num_states: int) -> int:
    """How many of a chunk's states to sample for at once: all on a GPU, as many as the cache holds on a CPU."""
    return max(1, CACHED_ACTIONS // num_actions) if device.type == "cpu" else num_states


def finish_support(folder: StageFolder, num_states: int, seconds: float) -> None:
    """Marks the stage as done once every chunk is there."""
    if missing := SupportCache(folder.path, num_states).pending():
        raise RunError(f"{len(missing)} chunks of support actions are missing in {folder.path}; run the command again")
    folder.finish(seconds)


def support_energies(
    critic: SoftmaxQCritic, data: OfflineDataModule, cache: SupportCache, folder: StageFolder, processes: Processes
) -> Tensor:
    """Energies -Q(s, a_k) (M, K) of all support actions, computed once from the frozen critic and shared by a file."""
    path = folder.path / "energies.npy"
    shape = tuple(cache.actions.shape[:2])

    def lay_out() -> None:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()

    processes.on_main(lay_out)
    energies = np.load(path, mmap_mode="r+")
    spans = range(0, shape[0], cache.chunk_size)[processes.rank :: processes.world]
    shown = processes.is_main and processes.settings.progress_bar
    with progress(len(spans) * cache.chunk_size, "energies", "state", enabled=shown) as bar:
        for start in spans:
            span = slice(start, start + cache.chunk_size)
            states = data.normalize(data.buffer.states[cache.state_ids[span]]).to(processes.device)
            actions = torch.from_numpy(cache.actions[span]).to(processes.device)
            with torch.no_grad():
                energies[span] = -critic.q_value(states.unsqueeze(1), actions).cpu().numpy()
            bar.update(cache.chunk_size)
    energies.flush()
    processes.barrier()
    return torch.from_numpy(np.load(path))
