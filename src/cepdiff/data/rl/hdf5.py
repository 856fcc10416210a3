"""Read and write D4RL's flat HDF5 layout: one array per field, one row per step, and a group `metadata`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from cepdiff.data.rl.arrays import OPTIONAL, REQUIRED, WIDE, BoolArray, FloatArray, RawArrays, check_shapes, check_type
from cepdiff.data.rl.metadata import Unreadable, checked_metadata, plain
from cepdiff.data.rl.storage import check_stored, refuse_compressed, refuse_foreign
from cepdiff.errors import DataError
from cepdiff.files import path_aside

COMPRESSION: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
_MAX_METADATA_BYTES = 65536


def read_header(path: str | Path) -> tuple[int, dict[str, Any]]:
    """(N, metadata) of a file, in milliseconds. Raises `DataError` like `read_arrays`, values aside."""
    with open_file(Path(path)) as file:
        return row_arrays(file, Path(path))["observations"].shape[0], stored_metadata(file)


def read_arrays(path: str | Path, *, infos: bool = False, horizon: int | None = None) -> RawArrays:
    """Read all rows of a file; numbers become float32, flags bool.

    With `infos`, also the numeric arrays of the group `infos`, unchanged. With `horizon`, a file may lack timeouts
    (like D4RL's oldest): episodes are cut after that many steps, like in D4RL, and the metadata note it.

    Raises `DataError` if the file is missing, damaged or not HDF5, or if an array is missing, empty, has the wrong
    shape, or is NaN or infinite in any row.
    """
    path = Path(path)
    with open_file(path) as file:
        datasets = row_arrays(file, path, timeouts_required=horizon is None)
        floats: dict[str, Any] = {name: _floats(datasets[name]) for name in (*WIDE, "rewards") if name in datasets}
        terminals, metadata = read_flags(datasets["terminals"], path), stored_metadata(file)
        if "timeouts" in datasets:
            timeouts = read_flags(datasets["timeouts"], path)
        else:
            assert horizon is not None
            timeouts = timeouts_at(horizon, terminals.reshape(-1))
            metadata["timeouts_from_horizon"] = horizon
        raw = RawArrays(
            **floats,
            terminals=terminals,
            timeouts=timeouts,
            metadata=metadata,
            infos=_infos(file, datasets["observations"].shape[0], path) if infos else {},
            source=str(path),
        )
    return raw.validate()


def timeouts_at(horizon: int, terminals: BoolArray) -> BoolArray:
    """Flags (N,) at every `horizon` steps since the last terminal."""
    rows = np.arange(len(terminals))
    starts = np.where(np.concatenate(([True], terminals[:-1])), rows, 0)
    since = rows - np.maximum.accumulate(starts)  # steps since the last terminal
    cut: BoolArray = (since % horizon == horizon - 1) & ~terminals
    return cut


def write_arrays(
    path: str | Path, arrays: RawArrays, metadata: Mapping[str, Any] | None = None, *, compress: bool = True
) -> None:
    """Write `arrays` to `path` atomically. `metadata` is added to the arrays' own, without None values.

    Raises `DataError` if the arrays are invalid, `OutputError` if the file cannot be written.
    """
    arrays.validate()
    options = COMPRESSION if compress else {}
    with new_file(Path(path)) as file:
        for key, array in arrays.fields.items():
            file.create_dataset(key, data=array, **options)
        for key, array in arrays.infos.items():
            file.create_dataset(f"infos/{key}", data=array, **options)
        write_metadata(file, {**arrays.metadata, **(metadata or {})})


def write_metadata(file: h5py.File, metadata: Mapping[str, Any]) -> None:
    """Add plain values to the group `metadata`: dictionaries as JSON, None values skipped."""
    for key, value in metadata.items():
        if value is not None:
            file[f"metadata/{key}"] = json.dumps(value) if isinstance(value, dict) else value


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """Yield a file that takes the name `path` if the block succeeds. Raises `OutputError` if it cannot be written."""
    with path_aside(path) as aside, h5py.File(aside, "w") as file:
        yield file


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open an existing file. Raises `DataError` if it is missing, not HDF5, has data in other files, or is found
    damaged while open."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected an HDF5 file")
    try:
        refuse_compressed(path)
        with h5py.File(path, "r") as file:
            refuse_foreign(file, path)
            yield file
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it") from error
    except BlockingIOError as error:
        raise DataError(f"{path}: is locked, because a program has it open for writing; wait, or end it") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # h5py, for damaged bytes
        raise torn(path, error) from error


def torn(path: Path, error: Exception) -> DataError:
    """Return the error to raise when h5py cannot read a file's bytes."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{path}: not an HDF5 file, or truncated ({reason}); download or write it again")


def row_arrays(file: h5py.File, path: Path, *, timeouts_required: bool = True) -> dict[str, h5py.Dataset]:
    """Return the top-level datasets, unread. Raises `DataError` for unusable shapes or types."""
    datasets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
    for name in (*REQUIRED, *OPTIONAL):
        if name in file and name not in datasets:
            raise DataError(f"{path}: '{name}' is a group, or a link that leads nowhere; expected an array")
    shapes = {name: item.shape or () for name, item in datasets.items()}
    if not timeouts_required and "terminals" in shapes:
        shapes.setdefault("timeouts", shapes["terminals"])
    check_shapes(shapes, str(path))
    rows = {name: datasets[name] for name in (*REQUIRED, *OPTIONAL) if name in datasets}
    for name, item in rows.items():
        check_type(name, item.dtype, str(path))
    check_stored(rows, path)
    return datasets


def _floats(dataset: h5py.Dataset) -> FloatArray:
    array = np.empty(dataset.shape, dtype=np.float32)
    if dataset.dtype.kind == "b":  # HDF5 does not convert enumerations to numbers
        array[:] = dataset[()]
    else:
        dataset.read_direct(array)
    return array


def read_flags(dataset: h5py.Dataset, path: Path) -> BoolArray:
    """Read flags of any type and shape as bool. Raises `DataError` for values other than 0 and 1."""
    values: npt.NDArray[Any] = dataset[()]
    if values.dtype == np.bool_:
        return values
    strange = (values != 0) & (values != 1)
    if strange.any():
        name = dataset.name.lstrip("/")
        raise DataError(f"{path}: '{name}' contains {values[strange][0]}; expected only 0 and 1")
    return values.astype(np.bool_)


def datasets_below(group: Any) -> dict[str, h5py.Dataset]:
    """Return the datasets of a group and its subgroups by path; none if `group` is not a group."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    if isinstance(group, h5py.Group):
        group.visititems(visit)
    return found


def _infos(file: h5py.File, rows: int, path: Path) -> dict[str, npt.NDArray[Any]]:
    group = file.get("infos")
    if not isinstance(group, h5py.Group):
        return {}
    arrays = {
        name: item for name, item in group.items() if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub"
    }
    for name, item in arrays.items():
        if not item.shape or item.shape[0] != rows:
            raise DataError(f"{path}: 'infos/{name}' has shape {item.shape}, but 'observations' has {rows} rows")
    check_stored(arrays, path)
    return {name: item[()] for name, item in arrays.items()}


def stored_metadata(file: h5py.File) -> dict[str, Any]:
    """Read attributes and `metadata/` of a file as plain values, without network weights.

    Raises `DataError` as `checked_metadata`.
    """
    found = _attributes(file)
    group = file.get("metadata")
    if isinstance(group, h5py.Group):
        found |= _attributes(group)
        for name in group:
            found[name] = _value(partial(_small, group, name))
    return checked_metadata(found, file.filename)


def _attributes(item: Any) -> dict[str, Any]:
    return {name: _value(partial(item.attrs.__getitem__, name)) for name in item.attrs}


def _small(group: h5py.Group, name: str) -> Any:
    """A dataset's value if it is small; larger ones are network weights."""
    item = group[name]
    if not isinstance(item, h5py.Dataset) or (item.size or 0) * item.dtype.itemsize > _MAX_METADATA_BYTES:
        return Unreadable()
    return item[()]


def _value(read: Callable[[], Any]) -> Any:
    """Convert to a plain value; None for an empty one of HDF5."""
    try:
        value = read()
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):  # h5py, for types that it does not know
        return Unreadable()
    return None if isinstance(value, h5py.Empty) else plain(value)
