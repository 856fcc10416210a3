"""A small buffer whose numbers are known, and functions that damage its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

HORIZON = 20
LENGTHS = (20, 7, 20, 12, 20, 20, 9, 20, 15, 20, 11, 20, 20, 6)  # of episodes; those of 20 hit the time limit
METADATA = {
    "env_id": "Toy-v0", "env_kwargs": "{}", "horizon": HORIZON, "action_low": [-1.0, -1.0], "action_high": [1.0, 1.0],
    "reference_min": -5.0, "reference_max": 5.0,
}  # fmt: skip
NAMES = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
LINE, TOLD, SAME, EITHER = "line", "told", "same", "either"
"""LINE: refused. TOLD: refused or warned about. SAME: used with the same numbers. EITHER: no traceback, no hang."""
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Numbers:
    """Numbers that training depends on."""

    episodes: int
    transitions: int
    factor: float  # of the reward rule
    content: str = ""  # hash of all arrays

    def differ(self, other: Numbers) -> str:
        """Describe the first difference; "" if there is none."""
        for name in ("episodes", "transitions", "factor", "content"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs and (mine != theirs if name != "factor" else abs(mine / theirs - 1) > 1e-4):
                return f"{name} {theirs} instead of {mine}"
        return ""


def toy() -> Arrays:
    """Make a buffer of numbered episodes: chained states, distinct rewards, half of the episodes cut by time."""
    rng = np.random.default_rng(0)
    rows = sum(LENGTHS)
    ends = np.zeros(rows, dtype=bool)
    ends[np.cumsum(LENGTHS) - 1] = True
    limits = np.repeat(np.asarray(LENGTHS) == HORIZON, LENGTHS) & ends
    observations = rng.normal(size=(rows, 4)).astype(np.float32)
    following = np.roll(observations, -1, axis=0)
    following[ends] = rng.normal(size=(int(ends.sum()), 4))
    return {
        "observations": observations,
        "actions": rng.uniform(-0.95, 0.95, size=(rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": ends & ~limits,
        "timeouts": limits,
        "next_observations": following,
    }


def write_toy(path: Path, arrays: Arrays | None = None, **changes: Any) -> Path:
    """Write a buffer with the toy's metadata; a None in `changes` leaves that entry out."""
    with h5py.File(path, "w") as file:
        for name, array in (toy() if arrays is None else arrays).items():
            packing: dict[str, Any] = {"compression": "gzip", "shuffle": True} if array.ndim else {}
            file.create_dataset(name, data=array, **packing)
        for name, value in {**METADATA, **changes}.items():
            if value is not None:
                file[f"metadata/{name}"] = value
    return path


def numbers_of(arrays: Arrays) -> Numbers:
    """Compute the numbers by definition: an episode ends at a flag, or where the chain of states breaks."""
    terminals, timeouts = (arrays[name].reshape(-1) != 0 for name in ("terminals", "timeouts"))
    ends = terminals | timeouts
    if "next_observations" in arrays:
        ends[:-1] |= (arrays["next_observations"][:-1] != arrays["observations"][1:]).any(axis=1)
    ends[-1] = True
    starts = np.concatenate(([0], np.flatnonzero(ends)[:-1] + 1))
    returns = np.add.reduceat(arrays["rewards"].reshape(-1).astype(np.float64), starts)
    known = len(ends) if "next_observations" in arrays else int((~ends | terminals).sum())
    return Numbers(len(starts), known, 1000 / float(returns.max() - returns.min()))


def flavours() -> dict[str, Arrays]:
    """The toy with and without next observations."""
    arrays = toy()
    return {"chained": arrays, "plain": {name: array for name, array in arrays.items() if name != "next_observations"}}


Damage = Callable[[Path, Arrays, np.random.Generator], "str | Numbers"]
"""(path to write, arrays, random numbers) -> expectation."""


def on_arrays(change: Callable[[Arrays], Any], expected: str | None, **metadata: Any) -> Damage:
    """Damage the arrays; without an expectation, the `numbers_of` the damaged arrays are expected."""

    def damage(path: Path, arrays: Arrays, rng: np.random.Generator) -> str | Numbers:
        arrays = {name: array.copy() for name, array in arrays.items()}
        changed = change(arrays)
        arrays = changed if isinstance(changed, dict) else arrays
        write_toy(path, arrays, **metadata)
        return numbers_of(arrays) if expected is None else expected

    return damage


def on_file(change: Callable[[h5py.File], Any], expected: str) -> Damage:
    """Damage through HDF5."""

    def damage(path: Path, arrays: Arrays, rng: np.random.Generator) -> str:
        write_toy(path, arrays)
        with h5py.File(path, "r+") as file:
            change(file)
        return expected

    return damage


def on_bytes(change: Callable[[bytes, np.random.Generator], bytes], expected: str) -> Damage:
    """Damage the bytes."""

    def damage(path: Path, arrays: Arrays, rng: np.random.Generator) -> str:
        write_toy(path, arrays)
        path.write_bytes(change(path.read_bytes(), rng))
        return expected

    return damage


def on_metadata(name: str, value: Any, expected: str) -> Damage:
    """Write one odd entry of the metadata; a function writes it itself."""

    def damage(path: Path, arrays: Arrays, rng: np.random.Generator) -> str:
        write_toy(path, arrays, **{name: None})
        with h5py.File(path, "r+") as file:
            if callable(value):
                value(file, f"metadata/{name}")
            else:
                file[f"metadata/{name}"] = value
        return expected

    return damage
