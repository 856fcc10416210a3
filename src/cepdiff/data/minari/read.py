"""Read Minari datasets with the `minari` package."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from cepdiff.data.rl.arrays import GOAL_COLUMNS, RawArrays, check_type
from cepdiff.data.rl.hdf5 import open_file, stored_metadata
from cepdiff.data.rl.storage import refuse_foreign
from cepdiff.errors import DataError, MissingExtraError, nearest
from cepdiff.files import tidied

# Key in metadata.json for the `LayoutMark` of a dataset converted from D4RL's layout.
MARK = "d4rl_layout"
# Stored next to the episodes: what does not fit Minari's layout (metadata group, separate next observations).
LAYOUT_FILE = "d4rl_layout.hdf5"
# Gymnasium-Robotics' mazes observe a dictionary. These parts, in this order, make up D4RL's observation vector:
# 29 = position (2) and the rest of the ant (27), 4 = position and velocity of the ball.
VECTOR_PARTS = {"AntMaze": ("achieved_goal", "observation"), "PointMaze": ("observation",)}

# The part that is left out, and the width of a cell: goals are at most a quarter of a cell from a cell's centre.
_GOAL = "desired_goal"
_CELLS = {"AntMaze": 4.0, "PointMaze": 1.0}
_ROOT_VARIABLE = "MINARI_DATASETS_PATH"
_READ_ERRORS = (OSError, ValueError, KeyError, AssertionError, ImportError, RuntimeError, IndexError, TypeError)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LayoutMark:
    """Notes in a Minari dataset on its conversion from D4RL's layout, needed to read it back correctly.

    `rows`: number of steps when converted. `unknown_final_observations`: the last of an episode's T + 1 observations
    is unknown and repeats the one before. `cut_last_episode`: the data end within the last episode, not at a time
    limit. `foreign_successors`: number of next observations that differ from the following row, kept in
    `LAYOUT_FILE`. `types`: array -> [dtype, row shape], for arrays that Minari stores differently.
    """

    rows: int
    unknown_final_observations: bool
    cut_last_episode: bool
    foreign_successors: int
    types: dict[str, list[Any]] = field(default_factory=dict)


def read_minari(
    dataset_id: str, root: str | Path | None = None, *, allow_download: bool = True, infos: bool = False
) -> RawArrays:
    """Read all steps of a Minari dataset such as "mujoco/walker2d/medium-v0".

    It is looked up in `root` (default: $MINARI_DATASETS_PATH or ~/.minari/datasets) and downloaded if missing. An
    episode of T steps has T + 1 observations, so every next observation is known; an episode that ends without a
    flag gets a timeout. For converted datasets, the `LayoutMark` overrides both. The metadata contain the
    environment, its action bounds and, if available, the reference returns. The `VECTOR_PARTS` of AntMaze's and
    PointMaze's dictionary observations are concatenated. `infos` adds the numeric arrays with T or T + 1 rows in
    every episode, unchanged except that the last of T + 1 rows is dropped.

    Raises `MissingExtraError` without the package, `DataError` if the dataset is unknown or cannot be downloaded, or
    if its observations or actions are not plain vectors.
    """
    with open_minari(dataset_id, root, allow_download=allow_download) as dataset:
        source = f"minari:{dataset_id}"
        parts = vector_parts(dataset, source)
        raw = _allocate(dataset, parts, source)
        _fill(raw, dataset, parts)
        if infos:
            raw.infos = _infos(dataset, parts, len(raw))
        mark = layout_mark(dataset, source)
        if mark is not None:
            _honour(mark, raw, Path(dataset.storage.data_path) / LAYOUT_FILE)
    return raw.validate()


@contextmanager
def open_minari(dataset_id: str, root: str | Path | None = None, *, allow_download: bool = True) -> Iterator[Any]:
    """Open the `MinariDataset`, downloading it if missing. Raises like `read_minari`, also while it is open."""
    minari = import_minari()
    with minari_root(root):
        _ensure_local(minari, dataset_id, allow_download)
        try:
            dataset = minari.load_dataset(dataset_id)
            for path in sorted(Path(dataset.storage.data_path).glob("*.hdf5")):
                with h5py.File(path, "r") as file:
                    refuse_foreign(file, path)
            yield dataset
        except _READ_ERRORS as error:
            raise DataError(f"minari:{dataset_id}: cannot be read ({reason(error)})") from error


def import_minari() -> Any:
    """Import the package `minari`. Raises `MissingExtraError` without it."""
    try:
        import minari
    except ImportError as error:
        raise MissingExtraError("Reading or writing a Minari dataset", "minari") from error
    return minari


def parse_id(dataset_id: str) -> str | None:
    """Return the namespace of an id. Raises `DataError` if the id is malformed or has no version."""
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        namespace: str | None = parse_dataset_id(dataset_id)[0]
    except (ValueError, TypeError) as error:  # TypeError: an id without its version
        raise DataError(
            f"minari:{dataset_id}: not a Minari id, expected one like mujoco/walker2d/medium-v0."
            f"{nearest(dataset_id, import_minari().list_local_datasets())}"
        ) from error
    return namespace


def layout_mark(dataset: Any, source: str) -> LayoutMark | None:
    """Return the mark of a converted dataset. Raises `DataError` if its file is missing or the data changed."""
    stored = dataset.storage.metadata.get(MARK)
    if stored is None:
        return None
    mark = LayoutMark(**stored)
    if mark.rows != dataset.total_steps:
        raise DataError(
            f"{source}: changed since it was converted ({mark.rows} steps then, {dataset.total_steps} now); "
            "convert it again from its source"
        )
    if not (Path(dataset.storage.data_path) / LAYOUT_FILE).is_file():
        raise DataError(f"{source}: the file {LAYOUT_FILE} is missing; copy the whole folder, or convert it again")
    return mark


def foreign_successors(path: Path) -> tuple[npt.NDArray[np.int64], Array]:
    """Read (rows (M,), next observations (M, S)) that differ from the following row from a `LAYOUT_FILE`."""
    with open_file(path) as file:
        return file["successors/rows"][()], file["successors/values"][()]


def vector_parts(dataset: Any, source: str) -> tuple[str, ...]:
    """Return the parts to concatenate into the observation vector; empty if observations are already vectors.

    Raises `DataError` for any other spaces.
    """
    space, env = dataset.observation_space, dataset.env_spec
    _check_vector(source, "action", dataset.action_space)
    if type(space).__name__ != "Dict":
        _check_vector(source, "observation", space)
        return ()
    parts = VECTOR_PARTS.get("" if env is None else env.id.split("_")[0], ())
    if not parts or not set(parts) <= set(space.spaces):
        raise DataError(f"{source}: the observation space is {space}, expected a Box with one axis")
    for part in space.spaces.values():
        _check_vector(source, "observation", part)
    return parts


def observation_vectors(observations: Any, parts: tuple[str, ...]) -> Array:
    """Observations (T + 1, S) of an episode; the `parts` of a dictionary are concatenated."""
    joined: Array = np.concatenate([observations[part] for part in parts], axis=1) if parts else observations
    return joined


def episode_infos(episode: Any, parts: tuple[str, ...]) -> dict[str, Any]:
    """Infos of an episode by path ("a/b"), plus the observation parts that are not in the vector."""
    found = dict(flat(episode.infos or {}))
    for name, value in episode.observations.items() if parts else ():
        if name not in parts:
            if name in found:
                raise ValueError(f"'{name}' is both an info and a part of the observation")
            found[name] = value
    return found


def minari_metadata(dataset: Any) -> dict[str, Any]:
    """Metadata that Minari stores itself: environment, action bounds and reference returns."""
    stored, space, env = dataset.storage.metadata, dataset.action_space, dataset.env_spec
    found = {
        "env_id": None if env is None else env.id,
        "env_kwargs": None if env is None else dict(env.kwargs),
        "horizon": None if env is None else env.max_episode_steps,
        "action_low": tuple(space.low.tolist()),
        "action_high": tuple(space.high.tolist()),
        "reference_min": stored.get("ref_min_score"),
        "reference_max": stored.get("ref_max_score"),
    }
    return {name: value for name, value in found.items() if value is not None}


def reason(error: Exception) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def minari_root(root: str | Path | None) -> Iterator[None]:
    """Set Minari's root in the environment, as an absolute path: Minari cannot size datasets at relative ones.

    Minari makes that folder even for reading; if the block fails, an empty one goes.
    """
    before = os.environ.get(_ROOT_VARIABLE)
    place = Path(root or before or "~/.minari/datasets").expanduser().absolute()
    if root is not None:
        os.environ[_ROOT_VARIABLE] = str(place)
    try:
        with tidied(place):
            yield
    finally:
        os.environ.pop(_ROOT_VARIABLE, None)
        if before is not None:
            os.environ[_ROOT_VARIABLE] = before


def _ensure_local(minari: Any, dataset_id: str, allow_download: bool) -> None:
    from minari.storage.datasets_root_dir import get_dataset_path

    parse_id(dataset_id)
    folder = get_dataset_path(dataset_id)
    if (folder / "data").exists():
        return
    advice = (
        f"run minari download {dataset_id} on a machine with network access and copy it to {folder}, take a task of "
        "`cepdiff data list`, or record your own data with `cepdiff collect`"
    )
    if not allow_download:
        raise DataError(
            f"minari:{dataset_id}: not in {folder.parent}; {advice}.{nearest(dataset_id, minari.list_local_datasets())}"
        )
    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # each of Minari's storage backends has its own errors
        raise DataError(f"minari:{dataset_id}: cannot be downloaded ({reason(error)}); {advice}") from error


def _check_vector(source: str, kind: str, space: Any) -> None:
    shape = getattr(space, "shape", None)
    if type(space).__name__ != "Box" or shape is None or len(shape) != 1:
        reason = ": discrete actions cannot be trained on" if "Discrete" in type(space).__name__ else ""
        raise DataError(f"{source}: the {kind} space is {space}, expected a Box with one axis{reason}")
    if kind == "action":
        check_type("actions", space.dtype, source)


def _allocate(dataset: Any, parts: tuple[str, ...], source: str) -> RawArrays:
    space = dataset.observation_space
    size = sum(space.spaces[part].shape[0] for part in parts) if parts else space.shape[0]
    rows = dataset.total_steps
    return RawArrays(
        observations=np.empty((rows, size), dtype=np.float32),
        actions=np.empty((rows, dataset.action_space.shape[0]), dtype=np.float32),
        rewards=np.empty(rows, dtype=np.float32),
        terminals=np.empty(rows, dtype=np.bool_),
        timeouts=np.empty(rows, dtype=np.bool_),
        next_observations=np.empty((rows, size), dtype=np.float32),
        metadata=minari_metadata(dataset),
        source=source,
    )


def _fill(raw: RawArrays, dataset: Any, parts: tuple[str, ...]) -> None:
    assert raw.next_observations is not None
    start = 0
    goals: list[Array] = []  # lowest and highest of each episode
    for episode in dataset.iterate_episodes():
        stop = start + len(episode.rewards)
        if stop == start:
            continue
        rows, observations = slice(start, stop), observation_vectors(episode.observations, parts)
        raw.observations[rows], raw.next_observations[rows] = observations[:-1], observations[1:]
        raw.actions[rows], raw.rewards[rows] = episode.actions, episode.rewards
        raw.terminals[rows], raw.timeouts[rows] = episode.terminations, episode.truncations
        raw.timeouts[stop - 1] |= not raw.terminals[stop - 1]
        if parts and _GOAL in episode.observations and _GOAL not in parts:
            goals += [episode.observations[_GOAL].min(axis=0), episode.observations[_GOAL].max(axis=0)]
        start = stop
    if start != len(raw):
        raise ValueError(f"its episodes have {start} steps, its metadata say {len(raw)}")
    if goals:
        raw.metadata[GOAL_COLUMNS] = (0, 1)  # the position
        raw.metadata["goal_range"] = float(np.ptp(goals, axis=0).max()) / _CELLS[dataset.env_spec.id.split("_")[0]]


def _infos(dataset: Any, parts: tuple[str, ...], rows: int) -> dict[str, Array]:
    found: dict[str, list[Array]] = {}
    for episode in dataset.iterate_episodes():
        steps = len(episode.rewards)
        for name, value in episode_infos(episode, parts).items():
            if is_row_array(value, steps):
                found.setdefault(name, []).append(value[:steps])
    whole = {name: arrays for name, arrays in found.items() if sum(map(len, arrays)) == rows}
    return {name: np.concatenate(arrays) for name, arrays in whole.items()}


def is_row_array(value: Any, steps: int) -> bool:
    """True if an info is a numeric array with one row for each of T steps or T + 1 observations."""
    numeric = isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.ndim > 0
    return numeric and len(value) in (steps, steps + 1)


def _honour(mark: LayoutMark, raw: RawArrays, path: Path) -> None:
    assert raw.next_observations is not None
    if mark.cut_last_episode:
        raw.timeouts[-1] = False
    if mark.unknown_final_observations:
        raw.next_observations = None
    elif mark.foreign_successors:
        rows, values = foreign_successors(path)
        raw.next_observations[rows] = values
    with open_file(path) as file:
        raw.metadata |= stored_metadata(file)


def flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of nested mappings: ("a/b", 1) of {"a": {"b": 1}}."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
