"""Synthetic buffers shared by the tests of the data layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from pictures import BLUE, GREEN, RED, WHITE, save

from cepdiff.data.rl.arrays import RawArrays

Overrides = dict[str, object]


@pytest.fixture
def make_raw() -> Callable[..., RawArrays]:
    """Ten rows, S=2, A=1: episodes 0-2 (terminal), 3-6 (time limit), 7-9 (cut by the end of the data).

    The observation of row i is (i, -i); its reward is i.
    """

    def make(**overrides: object) -> RawArrays:
        rows = np.arange(10, dtype=np.float32)
        terminals, timeouts = np.zeros(10, bool), np.zeros(10, bool)
        terminals[2] = timeouts[6] = True
        arrays: Overrides = {
            "observations": np.stack([rows, -rows], axis=1),
            "actions": np.linspace(-1, 1, 10, dtype=np.float32)[:, None],
            "rewards": rows.copy(),
            "terminals": terminals,
            "timeouts": timeouts,
        }
        return RawArrays(**{**arrays, **overrides})  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_file(make_raw: Callable[..., RawArrays], tmp_path: Path) -> Callable[..., Path]:
    """The same data as a file written with plain h5py: `make_file(name=array)` replaces an array, None drops it."""

    def make(**overrides: object) -> Path:
        path = tmp_path / "own.hdf5"
        arrays: Overrides = {**make_raw().fields, **overrides}
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                if array is not None:
                    file[name] = array
        return path

    return make


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Subfolders b (blue, deep red) and a (green, white), with files not in sorted order."""
    save(tmp_path / "b/2.png", BLUE)
    save(tmp_path / "b/10/deep.PNG", RED)
    save(tmp_path / "a/y.png", WHITE)
    save(tmp_path / "a/x.bmp", GREEN)
    return tmp_path
