"""Lossless conversion of a file in D4RL's layout to a Minari dataset.

Minari stores episodes of T steps and T + 1 observations; a D4RL file has one row per step. What does not fit into an
episode (next observations that differ from the following row, the metadata group, unusual types) goes into
`LAYOUT_FILE` next to the episodes, announced by a `LayoutMark` in the metadata. What only Minari has (seeds, options,
authors, last infos) comes from the file's group `minari`, see `convert`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cepdiff.data.minari.episodes import MINARI_GROUP, EpisodeSource, EpisodeWriter, Progress
from cepdiff.data.minari.read import LAYOUT_FILE, MARK, import_minari, minari_metadata, minari_root, parse_id, reason
from cepdiff.data.rl.arrays import BLOCK_ROWS, OPTIONAL, REQUIRED
from cepdiff.data.rl.hdf5 import datasets_below, open_file, stored_metadata, write_metadata
from cepdiff.errors import DataError

# Metadata set by Minari or the new name instead of the source.
OWN_METADATA = (
    "dataset_id",
    "total_episodes",
    "total_steps",
    "dataset_size",
    "data_format",
    "jpeg_encoding",
    "minari_version",
)


@dataclass(frozen=True)
class Environment:
    """A Gymnasium environment as Minari stores it: its spec as JSON and, if it could be made, its action bounds."""

    spec: str
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None


def bare_environment(env_id: str, env_kwargs: Mapping[str, Any], horizon: int | None) -> Environment:
    """An environment that is not installed: it has a name, but Minari cannot make it."""
    spec: dict[str, Any] = {
        "id": env_id,
        "entry_point": None,
        "reward_threshold": None,
        "nondeterministic": False,
        "max_episode_steps": horizon,
        "order_enforce": True,
        "disable_env_checker": False,
        "kwargs": dict(env_kwargs),
        "additional_wrappers": [],
        "vector_entry_point": None,
    }
    return Environment(json.dumps(spec))


def write_minari(
    path: Path,
    dataset_id: str,
    root: str | Path | None,
    *,
    facts: Mapping[str, Any],
    environment: Environment | None,
    overwrite: bool,
    progress: Progress,
) -> tuple[int, int, Path]:
    """Write the file `path` as a dataset and return its (rows, episodes, folder); `facts` are added to its metadata.

    The dataset is built in a hidden folder of the same root and then renamed. `progress` is called with rows done and
    total rows. Raises `DataError` if the target exists (unless `overwrite`) or cannot be written, if the file is
    damaged, or if actions exceed [-1, 1] and neither metadata nor environment have bounds.
    """
    minari = import_minari()
    with minari_root(root), open_file(path) as file:
        source = EpisodeSource.of(file, path, facts)
        with _new_dataset(dataset_id, overwrite) as (data, folder):
            storage = _new_storage(data, source, environment)
            storage.update_metadata(_described(source, dataset_id, environment, minari.__version__))
            with h5py.File(data / LAYOUT_FILE, "w") as layout:
                writer = EpisodeWriter(source, layout, progress)
                storage.update_episodes(writer.episodes())
                _restore_attributes(storage, source)
                needed = _write_rest(layout, source, minari_metadata(minari.MinariDataset(storage)))
            mark = writer.mark()
            plain = not (mark.unknown_final_observations or mark.cut_last_episode or mark.foreign_successors)
            if plain and not needed and not mark.types:
                (data / LAYOUT_FILE).unlink()
            else:
                storage.update_metadata({MARK: asdict(mark)})
            storage.update_metadata({"dataset_size": storage.get_size()})
        return source.rows, len(source.lengths), folder


def check_minari_target(dataset_id: str, overwrite: bool) -> Path:
    """Return the folder of a dataset to write. Raises `DataError` if it must not be replaced."""
    from minari.storage.datasets_root_dir import get_dataset_path

    parse_id(dataset_id)
    folder: Path = get_dataset_path(dataset_id).absolute()
    if folder.exists():
        if not (folder / "data").is_dir():
            raise DataError(f"{folder}: exists but is not a Minari dataset; choose another name or remove it")
        if not overwrite:
            raise DataError(f"{folder}: already exists; choose another name or version, or add --overwrite")
    return folder


def _new_storage(data: Path, source: EpisodeSource, environment: Environment | None) -> Any:
    from minari.dataset.minari_storage import MinariStorage
    from minari.serialization import deserialize_space

    vectors = source.arrays["observations"]
    observation_space = source.described.get("observation_space") or _box(
        vectors, [-np.inf] * vectors.shape[1], [np.inf] * vectors.shape[1]
    )
    action_space = source.described.get("action_space") or _action_space(source, environment)
    return MinariStorage.new(
        data, observation_space=deserialize_space(observation_space), action_space=deserialize_space(action_space)
    )


def _action_space(source: EpisodeSource, environment: Environment | None) -> str:
    """Bounds of the metadata, else [-1, 1], or the environment's if actions exceed that."""
    item, known = source.arrays["actions"], source.metadata
    low, high = known.get("action_low"), known.get("action_high")
    if low is None or high is None:
        low, high = -1.0, 1.0
        starts = range(0, source.rows, BLOCK_ROWS)
        if max(float(np.abs(item[i : i + BLOCK_ROWS]).max()) for i in starts) > 1 + 1e-6:
            if environment is None or environment.action_low is None or environment.action_high is None:
                raise DataError(
                    f"{source.path}: actions exceed [-1, 1] and their bounds are unknown; "
                    "name an installed environment with --env_id"
                )
            low, high = environment.action_low, environment.action_high
    bounds = (np.broadcast_to(np.asarray(value, dtype=np.float64), item.shape[1:]).tolist() for value in (low, high))
    return _box(item, *bounds)


def _box(item: h5py.Dataset, low: list[float], high: list[float]) -> str:
    box = {"type": "Box", "dtype": str(item.dtype), "shape": list(item.shape[1:]), "low": low, "high": high}
    return json.dumps(box)


def _described(source: EpisodeSource, dataset_id: str, environment: Environment | None, version: str) -> dict[str, Any]:
    """Metadata of the new dataset: from the file's group `minari`, else from its own metadata."""
    known = source.metadata
    found = {k: v for k, v in source.described.items() if k not in (*OWN_METADATA, MARK) and not k.endswith("_space")}
    if not source.described:
        found = {
            "ref_min_score": known.get("reference_min"),
            "ref_max_score": known.get("reference_max"),
            "algorithm_name": known.get("algorithm"),
            "description": f"{source.path.name}, converted from D4RL's layout",
        }
    if environment is not None:
        found.setdefault("env_spec", environment.spec)
    found |= {"dataset_id": dataset_id, "minari_version": version}
    for name in ("author", "author_email"):
        if name in found:
            found[name] = set(found[name])  # Minari checks for a set, but writes a list
    return {name: value for name, value in found.items() if value is not None}


def _restore_attributes(storage: Any, source: EpisodeSource) -> None:
    groups = {} if source.own is None else source.own.get("episodes", {})
    if len(groups):
        episodes = sorted(int(name) for name in groups)
        storage.update_episode_metadata((dict(groups[str(i)].attrs) for i in episodes), episodes)


def _write_rest(layout: h5py.File, source: EpisodeSource, derived: Mapping[str, Any]) -> bool:
    """Copy all but the row arrays. True if converting back needs it, given that `derived` is known anyway."""
    layout.attrs.update(source.file.attrs)
    rest = bool(len(source.file.attrs))
    rows = {*REQUIRED, *OPTIONAL, MINARI_GROUP, "metadata", "infos"}
    for name, item in source.file.items():
        if name not in rows:
            source.file.copy(item, layout, name)
            rest = True
    metadata = source.file.get("metadata")
    if metadata is not None:
        source.file.copy(metadata, layout, "metadata")
        rest |= not set(metadata) <= set(derived) or bool(len(metadata.attrs))
    for name, item in datasets_below(source.file.get("infos")).items():
        if name not in source.infos:
            source.file.copy(item, layout.require_group("infos"), name)
            rest = True
    before = stored_metadata(source.file)
    write_metadata(layout, {name: value for name, value in source.facts.items() if name not in before})
    return rest or stored_metadata(layout) != derived


@contextmanager
def _new_dataset(dataset_id: str, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """Yield (hidden data folder, final folder); moved into place if the block ends without an error."""
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.storage.datasets_root_dir import get_dataset_path

    folder = check_minari_target(dataset_id, overwrite)
    try:
        aside = Path(tempfile.mkdtemp(dir=get_dataset_path().absolute(), prefix=f".{folder.name}."))
        try:
            aside.chmod(0o755)  # mkdtemp makes it private to this user
            yield aside / "data", folder
            for written in (aside / "data").iterdir():
                with written.open("rb+") as file:
                    os.fsync(file.fileno())
            namespace = parse_id(dataset_id)
            if namespace is not None and namespace not in list_local_namespaces():
                create_namespace(namespace)
            _move(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:  # raised by Minari
        raise DataError(f"minari:{dataset_id}: cannot be written to {folder} ({reason(error)})") from error


def _move(aside: Path, folder: Path) -> None:
    """Replace `folder` by `aside`; old content is deleted only after the new one is in place."""
    old = aside.with_name(f"{aside.name}.old")
    with suppress(FileNotFoundError):
        folder.rename(old)
    try:
        aside.rename(folder)
    except OSError:
        with suppress(FileNotFoundError):
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
