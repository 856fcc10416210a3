"""The raw arrays of a dataset: validated NumPy arrays, not interpreted yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cepdiff.data.rl.metadata import checked_metadata
from cepdiff.errors import DataError

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

REQUIRED = ("observations", "actions", "rewards", "terminals", "timeouts")
OPTIONAL = ("next_observations",)
WIDE = ("observations", "actions", "next_observations")  # (N, size); the others are (N,)
# Large arrays are processed in blocks, so that temporaries stay small.
BLOCK_ROWS = 65536
# Metadata key: the choices made by the reader of another layout, one per line.
NOTES = "layout_notes"
# Metadata keys: the columns of the observation that are the achieved goal; rewards depend on a goal that is not there.
GOAL_COLUMNS = "goal_columns"
NEEDS_GOAL = "needs_goal"


@dataclass
class RawArrays:
    """D4RL's arrays: observations (N, S), actions (N, A) in the environment's units, rewards (N,), terminals
    and timeouts (N,), and next_observations (N, S) if the source has them.

    `metadata` holds plain values, see `checked_metadata`. `infos` are optional further arrays with N rows (`qpos`,
    `qvel`) of any type. `source` names the dataset in messages. Arrays are converted to float32 or bool, and from
    (N, 1) to (N,), without a copy if possible.
    """

    observations: FloatArray
    actions: FloatArray
    rewards: FloatArray
    terminals: BoolArray
    timeouts: BoolArray
    next_observations: FloatArray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    infos: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    source: str = "dataset"

    def __post_init__(self) -> None:
        for name, array in self.fields.items():
            dtype = np.bool_ if name in ("terminals", "timeouts") else np.float32
            check_type(name, array.dtype, self.source)
            if dtype is np.bool_ and array.dtype != np.bool_ and (strange := (array != 0) & (array != 1)).any():
                raise DataError(f"{self.source}: '{name}' contains {array[strange][0]}; expected only 0 and 1")
            array = np.ascontiguousarray(array, dtype=dtype)
            if name not in WIDE and array.ndim == 2 and array.shape[1] == 1:
                array = array.reshape(-1)  # (N, 1) -> (N,)
            setattr(self, name, array)

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def fields(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name, without `next_observations` if it is None."""
        arrays = {name: getattr(self, name) for name in (*REQUIRED, *OPTIONAL)}
        return {name: array for name, array in arrays.items() if array is not None}

    def validate(self) -> RawArrays:
        """Return self. Raises `DataError` like `check_shapes` and `checked_metadata`, or if a row is not finite."""
        check_shapes({name: array.shape for name, array in self.fields.items()}, self.source)
        self.metadata = checked_metadata(self.metadata, self.source)
        for name, array in self.fields.items():
            if array.dtype != np.bool_:
                _check_finite(name, array, self.source)
        return self


def check_type(name: str, dtype: np.dtype[Any], source: str) -> None:
    """Raise `DataError` for an array that does not hold numbers, or for discrete actions."""
    if dtype.kind not in "biuf":
        raise DataError(f"{source}: '{name}' has type {dtype}; expected numbers")
    if name == "actions" and dtype.kind != "f":
        raise DataError(
            f"{source}: 'actions' has type {dtype}: discrete actions cannot be trained on, as policies here are "
            "densities of real vectors; store them as float32 if they are real numbers"
        )


def check_shapes(shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise `DataError` if an array is missing, empty, or has the wrong number of axes or rows."""
    for name in REQUIRED:
        if name not in shapes:
            there = ", ".join(sorted(shapes)) or "nothing"
            hint = " (all False if no episode was cut)" if name == "timeouts" else ""
            raise DataError(f"{source}: the array '{name}' is missing{hint}; found {there}")
    rows = shapes["observations"][0] if shapes["observations"] else 0
    for name in (*REQUIRED, *OPTIONAL):
        shape = shapes.get(name)
        if shape is None:
            continue
        wide = name in WIDE
        fits = len(shape) == 2 if wide else len(shape) == 1 or shape[1:] == (1,)
        if not fits:
            raise DataError(f"{source}: '{name}' has shape {shape}; expected {'(rows, size)' if wide else '(rows,)'}")
        if shape[0] != rows:
            raise DataError(f"{source}: '{name}' has {shape[0]} rows, but 'observations' has {rows}")
        if wide and shape[1] == 0:
            raise DataError(f"{source}: '{name}' has shape {shape}; expected at least one column")
    if rows == 0:
        raise DataError(f"{source}: has no rows")
    expected = shapes["observations"]
    if shapes.get("next_observations", expected) != expected:
        raise DataError(
            f"{source}: 'next_observations' has shape {shapes['next_observations']}, but 'observations' {expected}"
        )


def layout_notes(raw: RawArrays) -> list[str]:
    """The choices made by the reader of another layout."""
    return str(raw.metadata.get(NOTES, "")).splitlines()


def blocks(rows: int) -> Iterator[slice]:
    """Slices that cover `rows` rows."""
    return (slice(i, min(i + BLOCK_ROWS, rows)) for i in range(0, rows, BLOCK_ROWS))


def rows_where(rows: int, mask: Callable[[slice], Any]) -> npt.NDArray[np.int64]:
    """Ascending rows of `rows` at which `mask`, called for each of their `blocks`, is True."""
    return np.concatenate([np.flatnonzero(mask(part)) + part.start for part in blocks(rows)])


def first_rows(bad: npt.NDArray[np.int64]) -> str:
    """Format as `"3 rows: 5, 6, 9"`, listing at most five."""
    names = ", ".join(str(row) for row in bad[:5])
    return f"{len(bad)} row{'s' * (len(bad) != 1)}: {names}{', ...' * (len(bad) > 5)}"


def _check_finite(name: str, array: FloatArray, source: str) -> None:
    bad = rows_where(len(array), lambda part: ~np.isfinite(array[part]).reshape(part.stop - part.start, -1).all(axis=1))
    if len(bad):
        raise DataError(
            f"{source}: '{name}' is NaN or infinite in {first_rows(bad)}; set 'timeouts' of the row before each, so "
            "that its episode ends there, then remove these rows: else a false transition spans the gap"
        )
