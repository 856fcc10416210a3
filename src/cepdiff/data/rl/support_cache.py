"""Cache of support actions: K samples of the behavior policy at every state that later stages need.

A state's id is its row in `TransitionBuffer.states`, so states shared by s' and the next row's s are drawn once. The
cache is a memory-mapped array in a folder. Any number of processes fill its chunks in any order; a chunk is marked as
drawn, with a hash of its data, once they are on disk.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.errors import DivergenceError, OutputError, RunError
from cepdiff.files import write_text, written_aside
from cepdiff.randomness import generator

ADVICE = "delete that folder and run again"
MARKS = "drawn-{}.txt"  # chunks drawn by one process and the hashes of their data, one per line
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


def allocate(path: Path, shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> None:
    """Make an .npy file of zeros and reserve its space, so that the disk cannot fill up while it is filled."""
    try:
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
        if sys.platform == "linux":
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        size = np.dtype(dtype).itemsize * math.prod(shape) / 1e6
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); it takes {size:.0f} MB") from error


def write_rows(path: Path, first: int, rows: NDArray[np.float32]) -> None:
    """Replace rows of an .npy file from row `first`, and flush them to disk. Safe for concurrent processes."""
    start: int = np.load(path, mmap_mode="r").offset
    with path.open("r+b") as file:
        file.seek(start + first * rows[:1].nbytes)
        file.write(rows.tobytes())
        file.flush()
        os.fsync(file.fileno())


class SupportCache:
    """Support actions (M, K, A) in [-1, 1] of M states, on disk.

    `state_ids` (M,) are sorted; `slots` (U,) maps a state id to its index in `actions`, -1 if it has none.

    Raises RunError if the files are damaged.
    """

    def __init__(self, folder: Path, num_states: int) -> None:
        try:
            self.actions: NDArray[np.float32] = np.load(folder / "actions.npy", mmap_mode="c")
            state_ids = np.load(folder / "state_ids.npy")
            self.chunk_size = int((folder / "chunk_size").read_text())
            if self.chunk_size < 1:
                raise ValueError(f"chunk_size is {self.chunk_size}")
            if self.actions.dtype != np.float32 or self.actions.ndim != 3:
                raise ValueError(f"actions.npy is {self.actions.dtype} of shape {self.actions.shape}")
            if state_ids.dtype != np.int64 or state_ids.shape != self.actions.shape[:1]:
                raise ValueError(f"state_ids.npy is {state_ids.dtype} of shape {state_ids.shape}")
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"the support cache in {folder} cannot be read ({error}); {ADVICE}") from error
        if (np.diff(state_ids, prepend=-1) < 1).any() or (state_ids >= num_states).any():
            raise RunError(f"the support cache in {folder} does not fit this buffer; {ADVICE}")
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
        allocate(folder / "actions.npy", (len(state_ids), num_actions, action_size))
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

    def of(self, state_ids: Tensor) -> Tensor:
        """The actions (M', K, A) of states (M',) that have some, in memory."""
        return torch.from_numpy(self.actions[self.slots[state_ids].numpy()])

    def require(self, state_ids: Tensor, num_actions: int, action_size: int) -> None:
        """Raise RunError if the cache is for other states or sizes."""
        if self.actions.shape[1:] != (num_actions, action_size) or not torch.equal(self.state_ids, state_ids):
            raise RunError(
                f"the support cache in {self.folder} holds actions {self.actions.shape} of other states or another "
                f"number; expected {(len(state_ids), num_actions, action_size)}: {ADVICE}"
            )

    def pending(self, rank: int = 0, world: int = 1) -> list[int]:
        """Chunks still to be drawn by this rank (by default, all), including those that differ from their mark."""
        try:
            marks = b"".join(marks.read_bytes() for marks in self.folder.glob(MARKS.format("*")))
        except OSError as error:
            raise RunError(f"the support cache in {self.folder} cannot be read ({error}); {ADVICE}") from error
        drawn = set(re.findall(rb"<(\d+) ([0-9a-f]+)>", marks))  # a chunk may be drawn again, with another hash
        chunks = range(-(-len(self.state_ids) // self.chunk_size))

        def is_whole(chunk: int) -> bool:
            return (b"%d" % chunk, _hash(self.actions[self._span(chunk)]).encode()) in drawn

        return [chunk for chunk in chunks[rank::world] if not is_whole(chunk)]

    def chunk_ids(self, chunk: int) -> Tensor:
        """State ids of a chunk."""
        return self.state_ids[self._span(chunk)]

    def write(self, chunk: int, actions: Tensor, rank: int = 0) -> None:
        """Store a chunk's actions (M', K, A), then mark it; if killed in between, it is drawn again.

        Raises DivergenceError unless they are finite.

        Each process writes its own byte range and its own file of marks, which is safe on shared file systems.
        """
        rows = actions.cpu().numpy().astype(np.float32)
        if not np.isfinite(rows).all():
            raise DivergenceError("samples of the behavior policy are NaN or infinite, and cannot be support actions")
        write_rows(self.folder / "actions.npy", self._span(chunk).start, rows)
        with (self.folder / MARKS.format(rank)).open("a") as file:
            file.write(f"<{chunk} {_hash(rows)}>\n")

    def _span(self, chunk: int) -> slice:
        return slice(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, len(self.state_ids)))


def _hash(rows: ArrayLike) -> str:
    return hashlib.blake2b(np.ascontiguousarray(rows).tobytes(), digest_size=8).hexdigest()


def fill(cache: SupportCache, draw: Callable[[Tensor], Tensor], chunks: Iterable[int], rank: int = 0) -> Iterator[int]:
    """Draw `chunks` with `draw(state_ids)` -> (M', K, A), on process `rank`; yields the number of states per chunk."""
    for chunk in chunks:
        state_ids = cache.chunk_ids(chunk)
        cache.write(chunk, draw(state_ids), rank)
        yield len(state_ids)
