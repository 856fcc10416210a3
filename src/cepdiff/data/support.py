"""The cache of support actions: K samples of the behavior policy at every state that later stages ask for.

States are named by their row in `TransitionBuffer.states`; s' of a row is s of the next wherever that is the same
state, so it is drawn once. The cache is two memory-mapped arrays in a folder, filled chunk by chunk in any order by
any number of processes; a chunk counts once its data are on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cepdiff.data.buffer import TransitionBuffer
from cepdiff.errors import RunError
from cepdiff.randomness import generator

NOISE_CHUNK = 1024  # states that share a noise stream; part of the definition of the numbers, not a setting


def states_of_rows(buffer: TransitionBuffer, rows: Tensor) -> Tensor:
    """The ids of all states that transitions of `rows` (R,) touch: s and, where it is known, s'. Sorted, unique."""
    successors = buffer.next_index[rows]
    return torch.unique(torch.cat([rows, successors[successors >= 0]]))  # type: ignore[no-any-return]


def support_noise(seed: int, state_ids: Tensor, num_actions: int, action_size: int) -> Tensor:
    """Standard normal noise (M, K, A) for the states (M,), sorted: a function of seed and state id alone.

    Ids are served by streams of `NOISE_CHUNK` neighbours, so which other states are drawn makes no difference.
    """
    noise = torch.empty(len(state_ids), num_actions, action_size)
    streams = state_ids // NOISE_CHUNK
    for stream in sorted(set(streams.tolist())):
        here = streams == stream
        block = torch.randn(NOISE_CHUNK, num_actions, action_size, generator=generator(seed, "support", stream))
        noise[here] = block[state_ids[here] % NOISE_CHUNK]
    return noise


class SupportCache:
    """Support actions (M, K, A) in [-1, 1] of M states, on disk.

    `state_ids` (M,) are sorted; `slots` (U,) leads from a state id to its place in `actions`, -1 where not drawn.
    """

    def __init__(self, folder: Path, num_states: int) -> None:
        try:
            self.actions = np.load(folder / "actions.npy", mmap_mode="r+")
            self._chunks = np.load(folder / "chunks.npy", mmap_mode="r+")
            state_ids = np.load(folder / "state_ids.npy")
        except (OSError, ValueError) as error:
            raise RunError(
                f"the support cache in {folder} cannot be read ({error}); delete that folder and run again"
            ) from error
        if len(self.actions) != len(state_ids) or (len(state_ids) and state_ids[-1] >= num_states):
            raise RunError(f"the support cache in {folder} does not fit this buffer; delete that folder and run again")
        self.folder = folder
        self.state_ids = torch.from_numpy(state_ids)
        self.slots = torch.full((num_states,), -1, dtype=torch.int64)
        self.slots[self.state_ids] = torch.arange(len(state_ids))
        self.chunk_size = -(-len(state_ids) // max(len(self._chunks), 1))

    @classmethod
    def create(cls, folder: Path, state_ids: Tensor, num_actions: int, action_size: int, chunk_size: int) -> None:
        """Lays out an empty cache for sorted `state_ids`; call on one process."""
        folder.mkdir(parents=True, exist_ok=True)
        num_chunks = -(-len(state_ids) // chunk_size)  # their size follows from their number, see __init__
        shape = (len(state_ids), num_actions, action_size)
        np.lib.format.open_memmap(folder / "actions.npy", mode="w+", dtype=np.float32, shape=shape).flush()
        np.save(folder / "chunks.npy", np.zeros(num_chunks, dtype=np.uint8))
        np.save(folder / "state_ids.npy", state_ids.numpy())

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether `create` has finished in this folder (it writes the state ids last)."""
        return (folder / "state_ids.npy").is_file()

    @property
    def num_actions(self) -> int:
        """K."""
        return int(self.actions.shape[1])

    @property
    def complete(self) -> bool:
        """Whether every chunk has been drawn."""
        return bool(self._chunks.all())

    def pending(self, rank: int = 0, world: int = 1) -> list[int]:
        """Chunks that are still to be drawn, those of this rank."""
        missing: NDArray[np.int64] = np.flatnonzero(self._chunks == 0)
        return [int(chunk) for chunk in missing if chunk % world == rank]

    def chunk_ids(self, chunk: int) -> Tensor:
        """State ids of a chunk."""
        return self.state_ids[self._span(chunk)]

    def write(self, chunk: int, actions: Tensor) -> None:
        """Stores a chunk's actions (M', K, A), then marks it: a kill in between draws it again."""
        self.actions[self._span(chunk)] = actions.cpu().numpy()
        self.actions.flush()
        self._chunks[chunk] = 1
        self._chunks.flush()

    def _span(self, chunk: int) -> slice:
        return slice(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, len(self.state_ids)))


def fill(
    cache: SupportCache,
    draw: Callable[[Tensor], Tensor],
    *,
    rank: int = 0,
    world: int = 1,
) -> Iterator[int]:
    """Draws what is missing of this rank's chunks; `draw(state_ids)` gives (M', K, A). Yields states done at a time."""
    for chunk in cache.pending(rank, world):
        state_ids = cache.chunk_ids(chunk)
        cache.write(chunk, draw(state_ids))
        yield len(state_ids)
