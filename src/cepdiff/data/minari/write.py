"""Writing of a file in D4RL's layout as a Minari dataset, with nothing lost.

Minari holds episodes of T steps and T + 1 observations, a file of D4RL's one row a step. What an episode has no
room for (next observations which are not the following row's, the metadata group, unusual types) goes into
`LAYOUT_FILE` beside the episodes, and a `LayoutMark` in the dataset's metadata says that it is there. What only
Minari has (seeds and options, authors, last infos) a converted file holds in its group `minari`, see `convert`.
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
from cepdiff.data.rl.hdf5 import open_file, stored_metadata, write_metadata
from cepdiff.errors import DataError

# Metadata which Minari or the new name decide, not the source.
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
    """A Gymnasium environment as Minari stores it: its spec as JSON, and the bounds of its actions if it was made."""

    spec: str
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None


def bare_environment(env_id: str, env_kwargs: Mapping[str, Any], horizon: int | None) -> Environment:
    """An environment that is not installed here: named, but Minari cannot make it from this."""
    return Environment(
        json.dumps(
            {
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
        )
    )


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
    """(rows, episodes, folder) of the dataset that the file `path` becomes; `facts` complete its metadata.

    The dataset is built in a hidden folder of the same root and renamed. `progress` is called with rows done and
    all rows. Raises `DataError` where the target exists (unless `overwrite`) or cannot be written, the file is
    torn, or its actions lie beyond [-1, 1] while neither metadata nor environment say the bounds.
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
    """The folder of a dataset to write. Raises `DataError` where it may not be written, or is none of Minari's."""
    from minari.storage.datasets_root_dir import get_dataset_path

    parse_id(dataset_id)
    folder: Path = get_dataset_path(dataset_id).absolute()
    if folder.exists():
        if not (folder / "data").is_dir():
            raise DataError(f"{folder}: exists and is no Minari dataset; choose another name or remove it")
        if not overwrite:
            raise DataError(f"{folder}: exists; choose another name or version, or add --overwrite to replace it")
    return folder


def _new_storage(data: Path, source: EpisodeSource, environment: Environment | None) -> Any:
    from minari.dataset.minari_storage import MinariStorage
    from minari.serialization import deserialize_space

    spaces = {
        kind: source.described.get(f"{kind}_space") or make(source, environment)
        for kind, make in (("observation", _observation_space), ("action", _action_space))
    }
    return MinariStorage.new(
        data,
        observation_space=deserialize_space(spaces["observation"]),
        action_space=deserialize_space(spaces["action"]),
    )


def _observation_space(source: EpisodeSource, environment: Environment | None) -> str:
    item = source.arrays["observations"]
    return _box(item, [-np.inf] * item.shape[1], [np.inf] * item.shape[1])


def _action_space(source: EpisodeSource, environment: Environment | None) -> str:
    """Bounds of the metadata; without them [-1, 1] as everywhere here, or the environment's if actions lie beyond."""
    item, known = source.arrays["actions"], source.metadata
    low, high = known.get("action_low"), known.get("action_high")
    if low is None or high is None:
        low, high = -1.0, 1.0
        starts = range(0, source.rows, BLOCK_ROWS)
        if max(float(np.abs(item[i : i + BLOCK_ROWS]).max()) for i in starts) > 1 + 1e-6:
            if environment is None or environment.action_low is None or environment.action_high is None:
                raise DataError(
                    f"{source.path}: actions lie beyond [-1, 1] and nothing says their bounds; "
                    "name an installed environment with --env_id"
                )
            low, high = environment.action_low, environment.action_high
    bounds = (np.broadcast_to(np.asarray(value, dtype=np.float64), item.shape[1:]).tolist() for value in (low, high))
    return _box(item, *bounds)


def _box(item: h5py.Dataset, low: list[float], high: list[float]) -> str:
    return json.dumps(
        {"type": "Box", "dtype": str(item.dtype), "shape": list(item.shape[1:]), "low": low, "high": high}
    )


def _described(source: EpisodeSource, dataset_id: str, environment: Environment | None, version: str) -> dict[str, Any]:
    """What the new dataset says about itself: the file's group `minari`, else what its metadata know."""
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
            found[name] = set(found[name])  # what Minari's checks want; it writes a list
    return {name: value for name, value in found.items() if value is not None}


def _restore_attributes(storage: Any, source: EpisodeSource) -> None:
    groups = {} if source.own is None else source.own.get("episodes", {})
    if len(groups):
        episodes = sorted(int(name) for name in groups)
        storage.update_episode_metadata((dict(groups[str(i)].attrs) for i in episodes), episodes)


def _write_rest(layout: h5py.File, source: EpisodeSource, derived: Mapping[str, Any]) -> bool:
    """Copies what are no row arrays; whether a conversion back needs any of it, `derived` being known without."""
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
    rest |= _copy_other_infos(layout, source)
    before = stored_metadata(source.file)
    write_metadata(layout, {name: value for name, value in source.facts.items() if name not in before})
    return rest or stored_metadata(layout) != derived


def _copy_other_infos(layout: h5py.File, source: EpisodeSource) -> bool:
    group = source.file.get("infos")
    others: list[str] = []
    if isinstance(group, h5py.Group):
        group.visititems(lambda name, item: _other(others, name, item, source.infos))
        for name in others:
            source.file.copy(group[name], layout.require_group("infos"), name)
    return bool(others)


def _other(others: list[str], name: str, item: Any, known: Mapping[str, Any]) -> None:
    if isinstance(item, h5py.Dataset) and name not in known:
        others.append(name)


@contextmanager
def _new_dataset(dataset_id: str, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """(its hidden data folder, its folder once the block has ended without an error)."""
    from minari.namespace import create_namespace, list_local_namespaces
    from minari.storage.datasets_root_dir import get_dataset_path

    folder = check_minari_target(dataset_id, overwrite)
    try:
        aside = Path(tempfile.mkdtemp(dir=get_dataset_path().absolute(), prefix=f".{folder.name}."))
        try:
            aside.chmod(0o755)  # mkdtemp's own mode would hide the dataset from every other user
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
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:  # Minari has no own kind
        raise DataError(f"minari:{dataset_id}: cannot be written to {folder} ({reason(error)})") from error


def _move(aside: Path, folder: Path) -> None:
    """Puts `aside` in the place of `folder`, whose old content goes only when the new one stands."""
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
