"""Cache of support actions: K samples of the behavior policy at every state that later stages need.

A state's id is its row in `TransitionBuffer.states`, so states shared by s' and the next row's s are drawn once. The
cache is a memory-mapped array in a folder. Any number of processes fill its chunks in any order; a chunk is marked as
drawn once its data are on disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.errors import RunError
from cepdiff.files import write_text, written_aside
from cepdiff.randomness import generator

MARKS = "drawn-{}.txt"  # chunks drawn by one process, one per line
NOISE_CHUNK = 1024  # states per noise stream; changing it changes the samples


def states_of_rows(buffer: TransitionBuffer, rows: Tensor) -> Tensor:
    """Sorted, unique ids of the states s and, if known, s' of `rows` (R,)."""
    successors = buffer.next_index[rows]
    return torch.unique(torch.cat([rows, successors[successors >= 0]]))  # type: ignore[no-any-return]


def support_noise(seed: int, state_ids: Tensor, num_actions: int, action_size: int) -> Tensor:
    """Standard normal noise (M, K, A) for sorted states (M,), which depends only on the seed and each state's id."""
    noise = torch.empty(len(state_ids), num_actions, action_size)
    streams = state_ids // NOISE_CHUNK
    for stream in sorted(set(streams.tolist())):
        here = streams == stream
        block = torch.randn(NOISE_CHUNK, num_actions, action_size, generator=generator(seed, "support", stream))
        noise[here] = block[state_ids[here] % NOISE_CHUNK]
    return noise


class SupportCache:
    """Support actions (M, K, A) in [-1, 1] of M states, on disk.

    `state_ids` (M,) are sorted; `slots` (U,) maps a state id to its index in `actions`, -1 if it has none.
    """

    def __init__(self, folder: Path, num_states: int) -> None:
        advice = "delete that folder and run again"
        try:
            self.actions: NDArray[np.float32] = np.load(folder / "actions.npy", mmap_mode="c")
            state_ids = np.load(folder / "state_ids.npy")
            self.chunk_size = int((folder / "chunk_size").read_text())
            if self.chunk_size < 1:
                raise ValueError(f"chunk_size is {self.chunk_size}")
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"the support cache in {folder} cannot be read ({error}); {advice}") from error
        if len(self.actions) != len(state_ids) or (len(state_ids) and state_ids[-1] >= num_states):
            raise RunError(f"the support cache in {folder} does not fit this buffer; {advice}")
        self.folder = folder
        self.state_ids = torch.from_numpy(state_ids)
        self.slots = torch.full((num_states,), -1, dtype=torch.int64)
        self.slots[self.state_ids] = torch.arange(len(state_ids))

    @classmethod
    def create(cls, folder: Path, state_ids: Tensor, num_actions: int, action_size: int, chunk_size: int) -> None:
        """Create an empty cache for sorted `state_ids`; call on one process only."""
        folder.mkdir(parents=True, exist_ok=True)
        for marks in folder.glob(MARKS.format("*")):
            marks.unlink()
        shape = (len(state_ids), num_actions, action_size)
        np.lib.format.open_memmap(folder / "actions.npy", mode="w+", dtype=np.float32, shape=shape).flush()
        write_text(folder / "chunk_size", str(chunk_size))
        with written_aside(folder / "state_ids.npy") as file:
            np.save(file, state_ids.numpy())

    @staticmethod
    def exists(folder: Path) -> bool:
        """True if `create` has finished in this folder; it writes the state ids last."""
        return (folder / "state_ids.npy").is_file()

    @property
    def num_actions(self) -> int:
        """K."""
        return int(self.actions.shape[1])

    def pending(self, rank: int = 0, world: int = 1) -> list[int]:
        """Chunks that this rank still has to draw; by default, all that are missing."""
        drawn = set[int]()
        for marks in self.folder.glob(MARKS.format("*")):
            drawn.update(int(mark) for mark in re.findall(r"<(\d+)>", marks.read_text()))
        chunks = range(-(-len(self.state_ids) // self.chunk_size))
        return [chunk for chunk in chunks[rank::world] if chunk not in drawn]

    def chunk_ids(self, chunk: int) -> Tensor:
        """State ids of a chunk."""
        return self.state_ids[self._span(chunk)]

    def write(self, chunk: int, actions: Tensor, rank: int = 0) -> None:
        """Store a chunk's actions (M', K, A), then mark it; if killed in between, it is drawn again.

        Each process writes its own byte range and its own file of marks, which is safe on shared file systems.
        """
        row_bytes = self.actions[:1].nbytes
        with (self.folder / "actions.npy").open("r+b") as file:
            file.seek(self.actions.offset + self._span(chunk).start * row_bytes)  # type: ignore[attr-defined]
            file.write(actions.cpu().numpy().astype(np.float32).tobytes())
            file.flush()
            os.fsync(file.fileno())
        with (self.folder / MARKS.format(rank)).open("a") as file:
            file.write(f"<{chunk}>\n")

    def _span(self, chunk: int) -> slice:
        return slice(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, len(self.state_ids)))


def fill(cache: SupportCache, draw: Callable[[Tensor], Tensor], *, rank: int = 0, world: int = 1) -> Iterator[int]:
    """Draw this rank's missing chunks with `draw(state_ids)` -> (M', K, A); yields the number of states per chunk."""
    for chunk in cache.pending(rank, world):
        state_ids = cache.chunk_ids(chunk)
        cache.write(chunk, draw(state_ids), rank)
        yield len(state_ids)
