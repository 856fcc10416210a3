"""Reading of Minari datasets, through the `minari` package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cepdiff.data.arrays import RawArrays
from cepdiff.errors import DataError, MissingExtraError, nearest

_ROOT_VARIABLE = "MINARI_DATASETS_PATH"


def read_minari(dataset_id: str, root: str | Path | None = None, *, allow_download: bool = True) -> RawArrays:
    """All steps of a Minari dataset such as "mujoco/walker2d/medium-v0".

    It is looked up in `root` (default: Minari's own folder, $MINARI_DATASETS_PATH or ~/.minari/datasets) and
    only downloaded if it is not there. An episode of T steps holds T + 1 observations, so every next observation
    is known. An episode which ends by neither flag is cut there: a time limit. The metadata take the
    environment, its action bounds, and the reference returns where the dataset has them.

    Raises `MissingExtraError` without the package, `DataError` where the dataset is unknown, out of reach, or
    its observations or actions are not plain vectors.
    """
    try:
        import minari
    except ImportError as error:
        raise MissingExtraError("Reading Minari datasets", "minari") from error
    source = f"minari:{dataset_id}"
    with _root(root):
        _ensure_local(minari, dataset_id, allow_download)
        try:
            dataset = minari.load_dataset(dataset_id)
            sizes = {
                kind: _vector_size(source, kind, getattr(dataset, f"{kind}_space"))
                for kind in ("observation", "action")
            }
            raw = _allocate(dataset, sizes["observation"], sizes["action"], source)
            _fill(raw, dataset)
        except (OSError, ValueError, KeyError, AssertionError, ImportError) as error:
            raise DataError(f"{source}: cannot be read ({_reason(error)})") from error
    return raw.validate()


def _ensure_local(minari: Any, dataset_id: str, allow_download: bool) -> None:
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # TypeError: an id without its version
        raise DataError(
            f"minari:{dataset_id}: not a Minari id, expected one like mujoco/walker2d/medium-v0."
            f"{nearest(dataset_id, minari.list_local_datasets())}"
        ) from error
    folder = get_dataset_path(dataset_id)
    if (folder / "data").exists():
        return
    advice = f"download it where there is a network (minari download {dataset_id}) and put it into {folder}"
    if not allow_download:
        raise DataError(
            f"minari:{dataset_id}: not in {folder.parent}; {advice}.{nearest(dataset_id, minari.list_local_datasets())}"
        )
    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # each of Minari's stores raises errors of its own
        raise DataError(f"minari:{dataset_id}: cannot be downloaded ({_reason(error)}); {advice}") from error


def _vector_size(source: str, kind: str, space: Any) -> int:
    shape = getattr(space, "shape", None)
    if type(space).__name__ != "Box" or shape is None or len(shape) != 1:
        raise DataError(f"{source}: the {kind} space is {space}, expected a Box with one axis")
    return int(shape[0])


def _allocate(dataset: Any, observation_size: int, action_size: int, source: str) -> RawArrays:
    rows = dataset.total_steps
    return RawArrays(
        observations=np.empty((rows, observation_size), dtype=np.float32),
        actions=np.empty((rows, action_size), dtype=np.float32),
        rewards=np.empty(rows, dtype=np.float32),
        terminals=np.empty(rows, dtype=np.bool_),
        timeouts=np.empty(rows, dtype=np.bool_),
        next_observations=np.empty((rows, observation_size), dtype=np.float32),
        metadata=_metadata(dataset),
        source=source,
    )


def _fill(raw: RawArrays, dataset: Any) -> None:
    assert raw.next_observations is not None
    start = 0
    for episode in dataset.iterate_episodes():
        stop = start + len(episode.rewards)
        if stop == start:
            continue
        raw.observations[start:stop] = episode.observations[:-1]
        raw.next_observations[start:stop] = episode.observations[1:]
        raw.actions[start:stop] = episode.actions
        raw.rewards[start:stop] = episode.rewards
        raw.terminals[start:stop] = episode.terminations
        raw.timeouts[start:stop] = episode.truncations
        raw.timeouts[stop - 1] |= not raw.terminals[stop - 1]
        start = stop
    if start != len(raw):
        raise ValueError(f"its episodes hold {start} steps, its metadata say {len(raw)}")


def _metadata(dataset: Any) -> dict[str, Any]:
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


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _root(root: str | Path | None) -> Iterator[None]:
    """Minari takes its folder from the environment alone."""
    before = os.environ.get(_ROOT_VARIABLE)
    if root is not None:
        os.environ[_ROOT_VARIABLE] = str(root)
    try:
        yield
    finally:
        if root is not None:
            if before is None:
                del os.environ[_ROOT_VARIABLE]
            else:
                os.environ[_ROOT_VARIABLE] = before
