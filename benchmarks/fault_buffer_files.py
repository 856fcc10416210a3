"""Damage to a buffer's metadata, file and bytes, and the expected outcome of each kind."""

from __future__ import annotations

import gzip
import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fault_toy import EITHER, LINE, SAME, TOLD, Arrays, Damage, on_arrays, on_bytes, on_file, on_metadata, write_toy

Random = np.random.Generator


def metadata() -> Iterator[tuple[str, Damage]]:
    """Metadata of wrong types and values."""
    bounds = ("action_low", "action_high")
    numbers = ("horizon", "reference_min", "reference_max", *bounds)
    for name in numbers:
        for odd in NO_NUMBERS:
            yield f"metadata {name} is {odd!r}", on_metadata(name, odd, TOLD)
        for odd in ODD_NUMBERS:
            yield f"metadata {name} is {odd!r}", on_metadata(name, odd, EITHER)
    yield "bounds swapped", on_arrays(lambda a: None, LINE, action_low=[1.0, 1.0], action_high=[-1.0, -1.0])
    yield "bounds equal", on_arrays(lambda a: None, LINE, action_low=[1.0, 1.0], action_high=[1.0, 1.0])
    yield "one bound infinite", on_arrays(lambda a: None, LINE, action_low=[-np.inf, -1.0])
    yield "bounds of float32's limit", on_arrays(lambda a: None, EITHER, action_low=-3.4e38, action_high=3.4e38)
    yield "bounds too narrow", on_arrays(lambda a: None, LINE, action_low=[-0.1, -0.1], action_high=[0.1, 0.1])
    yield "references equal", on_arrays(lambda a: None, TOLD, reference_min=1.0, reference_max=1.0)
    yield "references swapped", on_arrays(lambda a: None, TOLD, reference_min=5.0, reference_max=-5.0)
    yield "one reference", on_arrays(lambda a: None, EITHER, reference_min=None)
    for odd in NO_TEXTS:
        yield f"metadata env_id is {odd!r}", on_metadata("env_id", odd, TOLD)
    for odd in ODD_TEXTS:
        yield f"metadata env_id is {str(odd)[:20]!r}", on_metadata("env_id", odd, EITHER)
    for odd in NO_OPTIONS:
        yield f"metadata env_kwargs is {str(odd)[:20]!r}", on_metadata("env_kwargs", odd, TOLD)
    for name in ("env_id", "env_kwargs", *numbers):
        for kind, write in WRITTEN.items():
            yield f"metadata {name} is {kind}", on_metadata(name, write, EITHER)
    yield "metadata is an array", on_file(lambda file: replaced_by(file, "metadata", np.arange(3)), EITHER)
    yield "metadata links to itself", on_file(lambda file: replaced_by(file, "metadata", LOOP), EITHER)
    yield "metadata of another file", on_file(lambda file: replaced_by(file, "metadata", ELSEWHERE), EITHER)
    yield "attributes of all kinds", on_file(attributes, EITHER)
    yield "group in itself", on_file(lambda file: replaced_by(file, "loop", file["/"]), SAME)


NO_NUMBERS: list[Any] = ["seven", "", np.nan, np.inf, -np.inf, b"\xff\xfe"]
ODD_NUMBERS: list[Any] = [0, -1, 1e300, 2**62, 2.5, [1.0, 2.0, 3.0], [[1.0, 2.0]], [], True, "20", "{}", ["a", "b"]]
NO_TEXTS: list[Any] = [7, np.nan, [1, 2], ["a", "b"], True]
ODD_TEXTS: list[Any] = ["", "no such env", "nowhere:Env-v0", "a" * 100_000, "Ω\u202e", "../..", "a\nb", b"\xff"]
NO_OPTIONS: list[Any] = [7, "[1]", "{", [1, 2], '{"a": ' * 2000, b"\xff"]
LOOP, ELSEWHERE = h5py.SoftLink("/metadata"), h5py.ExternalLink("x.hdf5", "/")
WRITTEN: dict[str, Any] = {
    "a group": lambda file, name: file.create_group(name),
    "a reference": lambda file, name: file.create_dataset(name, data=file["rewards"].ref),
    "a region": lambda file, name: file.create_dataset(name, data=file["rewards"].regionref[:3]),
    "a compound": lambda file, name: file.create_dataset(name, data=np.zeros((), [("a", "f4"), ("b", "S3")])),
    "null": lambda file, name: file.create_dataset(name, data=h5py.Empty("f4")),
    "of variable length": lambda file, name: file.create_dataset(name, (2,), h5py.vlen_dtype(np.float32)),
    "opaque": lambda file, name: file.create_dataset(name, data=np.zeros((), "V5")),
    "an enumeration": lambda file, name: file.create_dataset(name, data=1, dtype=h5py.enum_dtype({"a": 1})),
    "complex": lambda file, name: file.create_dataset(name, data=1j),
    "huge": lambda file, name: file.create_dataset(name, (2**40,), "f8", chunks=(1024,)),
    "a million texts": lambda file, name: file.create_dataset(name, data=np.full(10**5, b"x" * 10)),
    "a dangling link": lambda file, name: file.__setitem__(name, h5py.SoftLink("/nothing")),
    "a loop": lambda file, name: file.__setitem__(name, h5py.SoftLink(f"/{name}")),
    "in another file": lambda file, name: file.__setitem__(name, h5py.ExternalLink("/etc/passwd", "/")),
}


def replaced_by(file: h5py.File, name: str, value: Any) -> None:
    if name in file:
        del file[name]
    file[name] = value


def attributes(file: h5py.File) -> None:
    file.attrs["reference"] = file["rewards"].ref
    file.attrs["compound"] = np.zeros(2, [("a", "f4")])
    file.attrs["empty"] = h5py.Empty("f4")
    file.attrs["bytes"] = b"\xff\xfe"
    file.attrs["texts"] = ["a", "b"]
    file.attrs["complex"] = 1j


def files() -> Iterator[tuple[str, Damage]]:
    """Things that are not a buffer file."""
    yield "empty file", on_bytes(lambda data, rng: b"", LINE)
    yield "a text", on_bytes(lambda data, rng: b"<html>not found</html>\n", LINE)
    yield "random bytes", on_bytes(lambda data, rng: rng.bytes(5000), LINE)
    yield "only the signature", on_bytes(lambda data, rng: data[:8], LINE)
    yield "zipped", on_bytes(lambda data, rng: gzip.compress(data), LINE)
    yield "a pickle", on_bytes(lambda data, rng: pickle.dumps({"a": 1}), LINE)
    yield "user block", on_bytes(lambda data, rng: bytes(512) + data, SAME)
    yield "bytes appended", on_bytes(lambda data, rng: data + b"\0" * 100, SAME)
    yield "twice in one file", on_bytes(lambda data, rng: data + data, SAME)
    yield "a folder", instead(lambda path: path.mkdir())
    yield "missing", instead(lambda path: None)
    yield "a pipe", instead(os.mkfifo)
    yield "a link to itself", instead(lambda path: path.symlink_to(path))
    yield "a link to nothing", instead(lambda path: path.symlink_to("nothing"))
    yield "a device", instead(lambda path: path.symlink_to("/dev/zero"))
    yield "unreadable", unreadable
    yield "an empty HDF5 file", instead(lambda path: h5py.File(path, "w").close())
    yield "everything in a group", in_group
    yield "a billion rows", a_billion_rows
    for version in ("earliest", "latest"):
        yield f"HDF5's {version} format", partial(as_version, version)


def instead(make: Callable[[Path], object]) -> Damage:
    """Put something else in place of the file; it must be refused."""

    def damage(path: Path, arrays: Arrays, rng: Random) -> str:
        make(path)
        return LINE

    return damage


def unreadable(path: Path, arrays: Arrays, rng: Random) -> str:
    write_toy(path, arrays)
    path.chmod(0)
    return EITHER if os.access(path, os.R_OK) else LINE


def in_group(path: Path, arrays: Arrays, rng: Random) -> str:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[f"data/{name}"] = array
    return LINE


def a_billion_rows(path: Path, arrays: Arrays, rng: Random) -> str:
    """Declare rows without writing them, so that the file is small."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, (10**9, *array.shape[1:]), array.dtype, chunks=(1024, *array.shape[1:]))
    return LINE


def as_version(version: str, path: Path, arrays: Arrays, rng: Random) -> str:
    with h5py.File(path, "w", libver=version) as file:
        for name, array in arrays.items():
            file[name] = array
    return EITHER  # without metadata


FILES: dict[str, Damage] = dict([*metadata(), *files()])


def flipped(data: bytes, rng: Random, count: int) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(len(data), size=count):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def zeroed(data: bytes, rng: Random) -> bytes:
    start = int(rng.integers(len(data)))
    return data[:start] + bytes(min(512, len(data) - start)) + data[start + 512 :]


RANDOM: dict[str, Damage] = {
    "cut off": on_bytes(lambda data, rng: data[: int(rng.integers(len(data)))], SAME),
    "one bit": on_bytes(lambda data, rng: flipped(data, rng, 1), SAME),
    "eight bits": on_bytes(lambda data, rng: flipped(data, rng, 8), SAME),
    "a block of zeros": on_bytes(zeroed, SAME),
    "bits of the header": on_bytes(lambda data, rng: flipped(data[:2048], rng, 4) + data[2048:], SAME),
}
