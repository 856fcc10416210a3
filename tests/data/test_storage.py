"""HDF5 files that read from elsewhere, or declare what was never written: one line, before anything is allocated."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cepdiff.data.rl import storage
from cepdiff.data.rl.arrays import REQUIRED, WIDE
from cepdiff.data.rl.hdf5 import read_arrays, read_header
from cepdiff.errors import DataError

MakeFile = Callable[..., Path]


def test_data_in_other_files_are_refused(make_file: MakeFile, tmp_path: Path) -> None:
    """A raw file, another HDF5 file, and a virtual dataset with a source that is missing: it would read as zeros."""
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(10, dtype=np.float32).tobytes())
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["rewards"] = np.ones(10)
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "absent.hdf5", "rewards", (10,))
    kinds = {
        "is stored in another file": lambda file: file.create_dataset(
            "rewards", (10,), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        ),
        "is a link to another file": lambda file: file.__setitem__(
            "rewards", h5py.ExternalLink("other.hdf5", "rewards")
        ),
        "is a virtual dataset": lambda file: file.create_virtual_dataset("rewards", layout),
    }
    for words, add in kinds.items():
        path = make_file(rewards=None)
        with h5py.File(path, "a") as file:
            add(file)
        for read in (read_arrays, read_header):
            with pytest.raises(DataError, match=f"own.hdf5: 'rewards' {words}; expected all data in this file"):
                read(path)


def test_links_inside_the_file_are_fine(make_file: MakeFile) -> None:
    path = make_file(rewards=None)
    with h5py.File(path, "a") as file:
        file["kept/rewards"] = np.arange(10.0)
        file["kept/above"] = file["/"]  # a cycle
        file["rewards"] = h5py.SoftLink("/kept/rewards")
    assert read_arrays(path).rewards.tolist() == list(range(10))


def test_arrays_that_were_never_written(make_file: MakeFile) -> None:
    path = make_file()
    with h5py.File(path, "w") as file:
        for name, shape in dict.fromkeys(REQUIRED, (10**9,)).items():
            wide = (*shape, 2) if name in WIDE else shape
            file.create_dataset(name, wide, "f4", chunks=True, compression="gzip")
    with pytest.raises(DataError, match=r"'observations' declares the shape \(1000000000, 2\), but only 0 of its"):
        read_arrays(path)
    path = make_file(rewards=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", (10,), "f4")
    with pytest.raises(DataError, match=r"'rewards' declares the shape \(10,\), but only 0 of its 40 bytes"):
        read_arrays(path)
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file.create_dataset("rewards", (10,), "f4", chunks=(4,))[:5] = 1
    with pytest.raises(DataError, match="but only 2 of its 3 chunks were ever written"):
        read_header(path)


def test_more_than_this_machine_has(make_file: MakeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_file()
    monkeypatch.setattr(storage.os, "sysconf", lambda name: 10)
    with pytest.raises(DataError, match="its arrays need 0 GiB of memory, but this machine has 0 GiB"):
        read_arrays(path)


def test_a_compressed_file_is_named(make_file: MakeFile, tmp_path: Path) -> None:
    packed = tmp_path / "own.hdf5.gz"
    packed.write_bytes(gzip.compress(make_file().read_bytes()))
    with pytest.raises(DataError, match=r"is compressed with gzip; unpack it first: gzip -dc own.hdf5.gz > FILE"):
        read_arrays(packed)
    os.truncate(packed, 0)
    with pytest.raises(DataError, match="not an HDF5 file"):
        read_arrays(packed)
