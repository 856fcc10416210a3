"""Other layouts of transitions, read as D4RL's arrays: robomimic's HDF5 and .npz files, OGBench's among them.

A reader's choices that change values are kept as notes in the metadata; `cepdiff data check` and `fit` show them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np
import numpy.typing as npt

from cepdiff.data.rl.arrays import NOTES, OPTIONAL, REQUIRED, BoolArray, RawArrays, check_shapes, check_type
from cepdiff.data.rl.hdf5 import open_file, read_arrays, read_flags
from cepdiff.data.rl.storage import check_stored
from cepdiff.errors import DataError

Array = npt.NDArray[Any]
_GYM = 2  # robomimic's type number of gym environments
_OGBENCH = ("observations", "actions", "terminals", "masks", "rewards")
_OGBENCH_ADVICE = (
    "OGBench's files have no rewards of their own: name the task instead, such as --data.dataset "
    "cube-single-play-singletask-v0, with the file's folder as --data.dataset_dir"
)


def read_file(path: Path, *, infos: bool = False, horizon: int | None = None) -> RawArrays:
    """Read a file of any known layout; `infos` and `horizon` are for D4RL's, see `read_arrays`.

    Raises `DataError` if the file is missing or damaged, or if its arrays cannot be used.
    """
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite; such rows are refused
        if path.suffix == ".npz":
            return read_npz(path)
        if is_robomimic(path):
            return read_robomimic(path)
    return read_arrays(path, infos=infos, horizon=horizon)


def is_robomimic(path: Path) -> bool:
    """True for an HDF5 file whose demonstrations are groups below `data`."""
    with open_file(path) as file:
        return isinstance(file.get("data"), h5py.Group) and "observations" not in file


def read_robomimic(path: Path) -> RawArrays:
    """Read the demonstrations below `data` in numeric order, each one episode.

    Observations are the vectors in `obs`, concatenated by name; images are left out.
    """
    with open_file(path) as file:
        group = file["data"]
        names = sorted((name for name in group if isinstance(group[name], h5py.Group)), key=lambda n: (len(n), n))
        if not names:
            raise DataError(f"{path}: 'data' has no demonstrations (demo_0, demo_1, ...)")
        keys, others = _observation_keys(group[names[0]], path)
        demos = [_demonstration(group[name], keys, path) for name in names]
        _check_widths(names, demos, path)
        metadata = _environment(group.attrs.get("env_args"), path)
    rows = {name: np.concatenate([demo[name] for demo in demos]) for name in demos[0] if all(name in d for d in demos)}
    ends = np.zeros(len(rows["rewards"]), dtype=np.bool_)
    ends[np.cumsum([len(demo["rewards"]) for demo in demos]) - 1] = True
    terminals, notes = _terminals(rows.pop("dones"), ends, rows["rewards"])
    if np.array_equal(rows.get("next_observations", ()), rows["observations"]):
        del rows["next_observations"]
        notes.append("'next_obs' only repeats 'obs': the following row's observation is used instead")
    if others:
        notes.append(f"the observations leave out {', '.join(others)}: only vectors are read")
    arrays = {**rows, "terminals": terminals, "timeouts": ends & ~terminals}
    return _raw(arrays, path, notes, metadata | {"observation_keys": ", ".join(keys)})


def _terminals(dones: BoolArray, ends: BoolArray, rewards: Array) -> tuple[BoolArray, list[str]]:
    """Terminals (N,), and notes on how robomimic's `dones` are read; `ends` are the demonstrations' last rows.

    In robomimic's algorithms `dones` stop bootstrapping. But its scripts may also set them at the end of any
    demonstration. With sparse rewards, one that ends with `dones` 1 but no reward was cut short.
    """
    if np.isin(rewards, (0, 1)).all():
        cut = dones & ends & (rewards == 0)
        count = f"{int(cut.sum()):,} of {int(ends.sum()):,} demonstrations end with done = 1 and reward 0"
        return dones & ~cut, [f"{count}: these ends are read as timeouts"] if cut.any() else []
    unclear = "all demonstrations end with done = 1, read as terminals: values are wrong if some were only cut short"
    return dones, [unclear] if dones[ends].all() else []


def _raw(
    arrays: dict[str, Any], path: Path, notes: Sequence[str] = (), metadata: dict[str, Any] | None = None
) -> RawArrays:
    check_shapes({name: array.shape for name, array in arrays.items()}, str(path))
    facts = (metadata or {}) | ({NOTES: "\n".join(notes)} if notes else {})
    return RawArrays(**arrays, metadata=facts, source=str(path)).validate()


def _observation_keys(demo: h5py.Group, path: Path) -> tuple[list[str], list[str]]:
    """Names in `obs` of (vectors, images and other arrays), sorted."""
    group = demo.get("obs")
    items = group.items() if isinstance(group, h5py.Group) else ()
    arrays = {name: item for name, item in items if isinstance(item, h5py.Dataset)}
    vectors = sorted(name for name, item in arrays.items() if item.ndim in (1, 2))
    if not vectors:
        found = f"only images ({', '.join(sorted(arrays))})" if arrays else "nothing"
        advice = "write them with robomimic's dataset_states_to_obs.py"
        raise DataError(f"{path}: '{demo.name}/obs' holds {found}; expected observation vectors: {advice}")
    return vectors, sorted(arrays.keys() - set(vectors))


def _demonstration(demo: h5py.Group, keys: list[str], path: Path) -> dict[str, Array]:
    actions, rewards = (_dataset(demo, name, path)[()] for name in ("actions", "rewards"))
    rows = len(actions) if actions.ndim else 0
    dones = read_flags(_dataset(demo, "dones", path), path)
    for name, array in (("rewards", rewards), ("dones", dones)):
        if rows == 0 or array.shape not in ((rows,), (rows, 1)):
            raise DataError(f"{path}: '{demo.name}/{name}' has shape {array.shape}, but 'actions' {actions.shape}")
    if (own := _observation_keys(demo, path)[0]) != keys:
        raise DataError(f"{path}: '{demo.name}/obs' holds {', '.join(own)}, but the first one {', '.join(keys)}")
    found = {"actions": actions, "rewards": rewards.reshape(-1), "dones": dones.reshape(-1)}  # (T, 1) -> (T,)
    found["observations"] = _vectors(demo, "obs", keys, rows, path)
    if "next_obs" in demo:
        found["next_observations"] = _vectors(demo, "next_obs", keys, rows, path)
    return found


def _check_widths(names: list[str], demos: list[dict[str, Array]], path: Path) -> None:
    for name, demo in zip(names, demos, strict=True):
        for field in demo.keys() & demos[0].keys():
            found, expected = demo[field].shape, demos[0][field].shape
            if found[1:] != expected[1:]:
                raise DataError(f"{path}: '{field}' of {name} have shape {found}, but those of {names[0]} {expected}")


def _vectors(demo: h5py.Group, part: str, keys: list[str], rows: int, path: Path) -> Array:
    columns = [_dataset(demo, f"{part}/{key}", path)[()] for key in keys]
    for key, column in zip(keys, columns, strict=True):
        if column.ndim not in (1, 2) or len(column) != rows:
            shape = f"has shape {column.shape}; expected ({rows}, size), one row per action"
            raise DataError(f"{path}: '{demo.name}/{part}/{key}' {shape}")
    return np.concatenate([column.reshape(rows, -1) for column in columns], axis=1, dtype=np.float32)


def _dataset(demo: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    item = demo.get(name)
    if not isinstance(item, h5py.Dataset):
        raise DataError(f"{path}: the array '{demo.name}/{name}' is missing; found {', '.join(sorted(demo))}")
    if item.shape is None:
        raise DataError(f"{path}: '{demo.name}/{name}' is empty; expected numbers")
    check_type(name, item.dtype, f"{path}, {demo.name}")
    check_stored({f"{demo.name}/{name}": item}, path)
    return item


def _environment(env_args: Any, path: Path) -> dict[str, Any]:
    """The metadata in `env_args` that name a Gymnasium environment; none for robosuite and others."""
    if env_args is None:
        return {}
    try:
        found = json.loads(env_args)
        kind, name, kwargs = found.get("type"), found.get("env_name"), found.get("env_kwargs") or {}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: the attribute 'env_args' of 'data' is not a JSON object") from error
    if kind != _GYM or not isinstance(name, str) or not isinstance(kwargs, dict):
        return {}
    return {"env_id": name} | ({"env_kwargs": kwargs} if kwargs else {})


def read_npz(path: Path) -> RawArrays:
    """Read the arrays of an .npz file: D4RL's names, or OGBench's if there are `masks` instead of `timeouts`.

    OGBench's `terminals` mark the last row of a trajectory, whose next state is unknown unless `next_observations` are
    there (in its compact form, `valids` is 0 in that row instead). Its `masks` are 0 where a task has succeeded; only
    they stop bootstrapping. OGBench's own files, without `masks` and `rewards`, are read by `read_ogbench`.
    """
    stored = stored_arrays(path, _NAMES)
    if "timeouts" in stored:
        arrays = {name: stored[name] for name in (*REQUIRED, *OPTIONAL) if name in stored}
        return _raw(arrays, path)
    found = ", ".join(sorted(stored)) or "no array of a known name"
    missing = [name for name in _OGBENCH if name not in stored]
    if missing and {*missing} <= {"masks", "rewards"}:
        choice = "'timeouts' (D4RL's layout) or 'masks' (OGBench's), which say if its terminals stop bootstrapping"
        advice = f"add {choice}" if "rewards" in stored else _OGBENCH_ADVICE
        raise DataError(f"{path}: found {found}; {advice}")
    if missing:
        expected = f"{', '.join(REQUIRED)}, or OGBench's {', '.join(_OGBENCH)}"
        raise DataError(f"{path}: found {found}; expected the arrays {expected}")
    goes_on, ends = flags_of(stored, "masks", path), flags_of(stored, "terminals", path)
    if "valids" in stored:
        ends = ~flags_of(stored, "valids", path)
    notes = []
    if (goes_on != ends).all():
        notes.append("masks are 0 at the end of each trajectory only: values are wrong if some were only cut")
    arrays = {name: stored[name] for name in ("observations", "actions", "rewards", *OPTIONAL) if name in stored}
    arrays |= {"terminals": ~goes_on, "timeouts": ends & goes_on}
    return _raw(arrays, path, notes)


_NAMES = {*REQUIRED, *OPTIONAL, "masks", "valids"}


def stored_arrays(path: Path, names: Collection[str]) -> dict[str, Any]:
    """Load the arrays with these names from an .npz file. Raises `DataError` if it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in names}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, TypeError, AttributeError, EOFError, MemoryError, BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not an .npz archive of arrays, or truncated ({reason})") from error
    for name, array in arrays.items():
        check_type(name, array.dtype, str(path))
    return arrays


def flags_of(stored: dict[str, Any], name: str, path: Path) -> BoolArray:
    """Flags (N,) of an array of 0 and 1. Raises `DataError` for other values or rows."""
    array = stored[name]
    rows = stored["observations"].shape[:1]
    if array.shape not in (rows, (*rows, 1)) or not np.isin(array, (0, 1)).all():
        found = f"values from {array.min()} to {array.max()}" if array.size else "no values"
        raise DataError(f"{path}: '{name}' has shape {array.shape} and {found}; expected only 0 and 1, of shape {rows}")
    flags: BoolArray = array.reshape(-1) != 0  # (N, 1) -> (N,)
    return flags
