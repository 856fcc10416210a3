"""Damage to the arrays of a buffer, and the expected outcome of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fault_toy import (
    EITHER,
    HORIZON,
    LENGTHS,
    LINE,
    NAMES,
    SAME,
    TOLD,
    Arrays,
    Damage,
    Numbers,
    numbers_of,
    on_arrays,
    on_file,
    write_toy,
)

Random = np.random.Generator


def structures() -> Iterator[tuple[str, Damage]]:
    """Arrays that are missing or have other types or shapes."""
    for name in NAMES:
        needed = LINE if name != "next_observations" else EITHER
        wide = name in ("observations", "actions", "next_observations")
        flags = name in ("terminals", "timeouts")

        def edit(change: Any, name: str = name) -> Any:
            return lambda arrays: {k: change(v) if k == name else v for k, v in arrays.items()}

        yield f"{name} missing", on_arrays(partial(without, name), needed)
        yield f"{name} renamed", on_arrays(partial(renamed, name), needed)
        yield f"{name} as float64", on_arrays(edit(lambda v: v.astype(np.float64)), None)
        yield f"{name} as big-endian", on_arrays(edit(lambda v: v.astype(">f4")), None)
        yield f"{name} as bytes", on_arrays(edit(lambda v: v.astype("S")), needed)
        yield f"{name} as complex", on_arrays(edit(lambda v: v.astype(complex)), needed)
        yield f"{name} one row short", on_arrays(edit(lambda v: v[:-1]), needed)
        yield f"{name} one row more", on_arrays(edit(lambda v: np.concatenate([v, v[:1]])), needed)
        yield f"{name} empty", on_arrays(edit(lambda v: v[:0]), needed)
        yield f"{name} a scalar", on_arrays(edit(lambda v: v.reshape(-1)[0]), needed)
        yield (
            f"{name} with an axis more",
            on_arrays(edit(lambda v: v[..., None]), LINE if wide and needed == LINE else EITHER),
        )
        yield f"{name} transposed", on_arrays(edit(lambda v: v.T if v.ndim == 2 else v[None]), needed)
        yield f"{name} flat", on_arrays(edit(lambda v: v.reshape(-1)), needed if wide else EITHER)
        if wide:
            yield f"{name} without columns", on_arrays(edit(lambda v: v[:, :0]), needed)
            yield f"{name} with a column less", on_arrays(edit(lambda v: v[:, 1:]), EITHER)
        if flags:
            yield f"{name} as integers", on_arrays(edit(lambda v: v.astype(np.int64)), None)
            for odd in (2, -1, 0.5, np.nan, 255):
                yield (
                    f"{name} with {odd}",
                    on_arrays(edit(partial(with_value, odd)), LINE),
                )
        else:
            for odd in (np.nan, np.inf, -np.inf):
                yield f"{name} with {odd}", on_arrays(edit(partial(with_value, odd)), needed)
            yield (
                f"{name} with 1e39 as float64",
                on_arrays(edit(partial(with_value, 1e39)), needed),
            )
            yield f"{name} with 1e38", on_arrays(edit(partial(with_value, 1e38)), EITHER)
            yield f"{name} all NaN", on_arrays(edit(lambda v: np.full_like(v, np.nan)), needed)
            yield f"{name} subnormal", on_arrays(edit(lambda v: (v * 1e-40).astype(np.float32)), EITHER)
        yield f"{name} a group", on_file(partial(as_group, name), LINE if needed == LINE else EITHER)
        for kind in STORED:
            expected = TOLD if kind in ("unwritten", "half written") and needed == LINE else needed
            yield f"{name}: {kind}", on_file(partial(store, name, kind), expected)
        yield f"{name} chunked by row", on_file(partial(rewritten, name, chunks=True), SAME)
        yield f"{name} with checksums", on_file(partial(rewritten, name, fletcher32=True), SAME)


STORED = (
    "external file", "external link", "soft link to itself", "dangling link", "unwritten", "half written",
    "virtual without source", "references", "compound", "objects", "opaque", "unknown filter", "billion rows",
)  # fmt: skip


def without(name: str, arrays: Arrays) -> Arrays:
    return {key: array for key, array in arrays.items() if key != name}


def renamed(name: str, arrays: Arrays) -> Arrays:
    return {f"{key}_" if key == name else key: array for key, array in arrays.items()}


def with_value(value: float, array: Any) -> Any:
    array = array.astype(np.float64)
    array.reshape(-1)[len(array) // 3] = value
    return array


def as_group(name: str, file: h5py.File) -> None:
    if name in file:
        del file[name]
    file.create_group(name)["data"] = 1


def rewritten(name: str, file: h5py.File, **options: Any) -> None:
    if name in file:
        data = file[name][()]
        del file[name]
        file.create_dataset(name, data=data, **options)


def store(name: str, kind: str, file: h5py.File) -> None:
    """Replace an array by one that HDF5 can hold but a buffer must not."""
    data = file["observations" if name not in file else name][()]
    if name in file:
        del file[name]
    here = Path(file.filename).parent
    if kind == "external file":
        (here / "secret.bin").write_bytes(data.tobytes())
        file.create_dataset(name, data.shape, data.dtype, external=[(str(here / "secret.bin"), 0, data.nbytes)])
    elif kind == "external link":
        with h5py.File(here / "other.hdf5", "w") as other:
            other[name] = data
        file[name] = h5py.ExternalLink("other.hdf5", name)
    elif kind == "soft link to itself":
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == "dangling link":
        file[name] = h5py.SoftLink("/nothing")
    elif kind == "unwritten":
        file.create_dataset(name, data.shape, data.dtype, chunks=True)
    elif kind == "half written":
        half = len(data) // 2
        file.create_dataset(name, data.shape, data.dtype, chunks=(16, *data.shape[1:]))[:half] = data[:half]
    elif kind == "virtual without source":
        layout = h5py.VirtualLayout(data.shape, data.dtype)
        layout[:] = h5py.VirtualSource(str(here / "nothing.hdf5"), name, data.shape)
        file.create_virtual_dataset(name, layout)
    elif kind == "references":
        file.create_dataset(name, data.shape, h5py.ref_dtype)
    elif kind == "compound":
        file.create_dataset(name, data.shape, np.dtype([("a", "f4"), ("b", "i8")]))
    elif kind == "objects":
        file.create_dataset(name, data.shape, h5py.string_dtype())
    elif kind == "opaque":
        file.create_dataset(name, data=np.zeros(data.shape, dtype="V8"))
    elif kind == "unknown filter":
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(data.shape)
        properties.set_filter(305, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple(data.shape)
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(data.dtype), space, properties)
    elif kind == "billion rows":
        file.create_dataset(name, (10**9, *data.shape[1:]), data.dtype, chunks=(1024, *data.shape[1:]))


def values() -> Iterator[tuple[str, Damage]]:
    """Arrays of the right shape with odd numbers."""

    def cut(arrays: Arrays, rows: Any) -> Arrays:
        return {name: array[rows] for name, array in arrays.items()}

    def without_limits(arrays: Arrays) -> Arrays:
        return {**cut(arrays, ~arrays["timeouts"]), "timeouts": np.zeros(int((~arrays["timeouts"]).sum()), bool)}

    def equal_returns(arrays: Arrays, rounding: float) -> None:
        starts = np.concatenate(([0], np.cumsum(LENGTHS)[:-1]))
        arrays["rewards"][:] = 0
        arrays["rewards"][starts] = 0.1 + rounding * np.arange(len(starts))

    def chain_broken(arrays: Arrays) -> Arrays:
        return cut(arrays, np.delete(np.arange(len(arrays["rewards"])), [45, 101, 102]))

    yield "one row", on_arrays(lambda a: cut(a, slice(0, 1)), LINE)
    yield "two rows", on_arrays(lambda a: cut(a, slice(0, 2)), LINE)
    yield "one episode", on_arrays(lambda a: cut(a, slice(0, HORIZON)), LINE)
    yield "one episode, not ended", on_arrays(lambda a: cut(a, slice(0, HORIZON - 3)), LINE)
    yield "last episode not ended", on_arrays(lambda a: cut(a, slice(0, -2)), EITHER)
    yield "all rows terminal", on_arrays(lambda a: a["terminals"].__setitem__(slice(None), True), TOLD)
    yield "all rows time limits", on_arrays(lambda a: a["timeouts"].__setitem__(slice(None), True), TOLD)
    yield "no flags", on_arrays(lambda a: {**a, **{k: np.zeros_like(a[k]) for k in ("terminals", "timeouts")}}, TOLD)
    yield "flags swapped", on_arrays(lambda a: {**a, "terminals": a["timeouts"], "timeouts": a["terminals"]}, EITHER)
    yield "flags one row late", on_arrays(lambda a: rolled(a, "terminals", "timeouts"), EITHER)
    yield "rows at time limits dropped", limits_dropped
    yield "no time limits", no_limits
    yield (
        "time limits as terminals",
        on_arrays(
            lambda a: {**a, "terminals": a["terminals"] | a["timeouts"], "timeouts": np.zeros_like(a["timeouts"])},
            EITHER,
        ),
    )
    yield "only time limits, as terminals", only_limits
    yield "rows removed inside episodes", rows_removed
    yield "time limits twice", on_arrays(lambda a: {**a, "terminals": a["terminals"] | a["timeouts"]}, EITHER)
    yield "equal returns", on_arrays(lambda a: equal_returns(a, 0), LINE)
    yield "returns equal up to rounding", on_arrays(lambda a: equal_returns(a, 1e-9), LINE)
    yield "returns nearly equal in float32", on_arrays(lambda a: equal_returns(a, 7e-9), LINE)
    yield "rewards all zero", on_arrays(lambda a: a["rewards"].fill(0), LINE)
    yield "rewards of 1e30", on_arrays(lambda a: {**a, "rewards": a["rewards"] * np.float32(1e30)}, EITHER)
    yield "rewards of 1e-30", on_arrays(lambda a: {**a, "rewards": a["rewards"] * np.float32(1e-30)}, EITHER)
    yield "integer actions", on_arrays(lambda a: {**a, "actions": np.sign(a["actions"]).astype(np.int64)}, TOLD)
    yield "actions of 0 and 1", on_arrays(lambda a: {**a, "actions": (a["actions"] > 0).astype(np.int32)}, TOLD)
    yield (
        "one integer action",
        on_arrays(
            lambda a: {**a, "actions": (a["actions"][:, :1] > 0).astype(np.int8)},
            TOLD,
            action_low=None,
            action_high=None,
        ),
    )
    yield "constant actions", on_arrays(lambda a: a["actions"].fill(0.5), TOLD)
    yield "actions too large", on_arrays(lambda a: {**a, "actions": a["actions"] * 10}, LINE)
    yield "one action too large", on_arrays(lambda a: a["actions"].__setitem__((7, 0), 1.01), LINE)
    yield "actions beyond by rounding", on_arrays(lambda a: a["actions"].__setitem__((7, 0), 1 + 1e-7), None)
    yield "constant observations", on_arrays(lambda a: a["observations"].fill(1), TOLD)
    yield "rows repeated", on_arrays(lambda a: cut(a, np.repeat(np.arange(len(a["rewards"])), 2)), TOLD)
    yield "an episode twice", on_arrays(lambda a: cut(a, np.r_[0:20, 0 : len(a["rewards"])]), TOLD)
    yield "observations one row late", on_arrays(lambda a: rolled(a, "observations"), EITHER)
    for shift in (1, 2, -1):
        yield f"next observations shifted by {shift}", successors(lambda v, a, s=shift: np.roll(v, s, axis=0))
    yield "next observations are the observations", successors(lambda v, a: a["observations"])
    yield "next observations are zero", successors(lambda v, a: np.zeros_like(v))
    yield "next observations of the next episode", successors(lambda v, a: np.roll(a["observations"], -1, axis=0))


def rolled(arrays: Arrays, *names: str) -> Arrays:
    return {name: np.roll(array, 1, axis=0) if name in names else array for name, array in arrays.items()}


def successors(change: Any) -> Damage:
    def damage(path: Path, arrays: Arrays, rng: Random) -> str:
        if "next_observations" not in arrays:
            write_toy(path, arrays)
            return SAME
        write_toy(path, {**arrays, "next_observations": change(arrays["next_observations"], arrays)})
        return TOLD

    return damage


def limits_dropped(path: Path, arrays: Arrays, rng: Random) -> str | Numbers:
    """Write D4RL's `qlearning_dataset` to a file: the chain of states still shows where an episode ends."""
    kept = {name: array[~arrays["timeouts"]] for name, array in arrays.items()}
    write_toy(path, kept)
    return numbers_of(kept) if "next_observations" in kept else TOLD


def no_limits(path: Path, arrays: Arrays, rng: Random) -> str | Numbers:
    """Time limits without a flag."""
    changed = {**arrays, "timeouts": np.zeros_like(arrays["timeouts"])}
    write_toy(path, changed)
    return numbers_of(changed) if "next_observations" in changed else TOLD


def only_limits(path: Path, arrays: Arrays, rng: Random) -> str:
    """End every episode at the horizon, and flag that as a terminal."""
    rows = np.flatnonzero(np.repeat(np.asarray(LENGTHS) == HORIZON, LENGTHS))
    kept = {name: array[rows] for name, array in arrays.items()}
    write_toy(path, {**kept, "terminals": kept["timeouts"], "timeouts": np.zeros_like(kept["timeouts"])})
    return TOLD


def rows_removed(path: Path, arrays: Arrays, rng: Random) -> str:
    """Drop a few rows in the middle of episodes; without next observations, nothing shows it."""
    kept = {name: np.delete(array, [45, 101, 102], axis=0) for name, array in arrays.items()}
    write_toy(path, kept)
    return TOLD if "next_observations" in kept else EITHER


ARRAYS: dict[str, Damage] = dict([*structures(), *values()])
