"""Find and load a dataset by name: a task, an OGBench name, a path, a file in the dataset folder or a Minari id."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.ogbench import find_ogbench, parse_name, read_ogbench
from cepdiff.data.rl.tasks import TASKS, Task
from cepdiff.errors import ConfigError, DataError, nearest

MINARI_PREFIX = "minari:"
_SUFFIXES = (".hdf5", ".h5", ".npz")


def dataset_folder(dataset_dir: str | Path | None = None) -> Path:
    """The dataset folder: `dataset_dir`, else $D4RL_DATASET_DIR, else ~/.d4rl/datasets, like D4RL."""
    return Path(dataset_dir or os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser()


def task_path(task: Task, dataset_dir: str | Path | None = None) -> Path:
    """Path of a task's file, downloaded or not; same names as D4RL."""
    if task.embedded is not None:
        return Path(str(resources.files("cepdiff.data") / "embedded" / task.embedded))
    if task.url is None:
        raise DataError(f"the task {task.name} has neither a URL nor an embedded file")
    return dataset_folder(dataset_dir) / task.url.rsplit("/", 1)[1]


def resolve(
    dataset: str, dataset_dir: str | Path | None = None, *, allow_download: bool = True, mirrors: Sequence[str] = ()
) -> Path:
    """Return the path of a dataset; a task's missing file is downloaded if `allow_download`, first from `mirrors`.

    `dataset` is a task name, one of OGBench's names, a path, or the name or stem of a file in the dataset folder.
    Raises `DataError` if the file is missing or cannot be downloaded, `ConfigError` for an unknown name.
    """
    if dataset in TASKS:
        return _task_file(TASKS[dataset], dataset_dir, allow_download, mirrors)
    if (named := parse_name(dataset)) is not None:
        return find_ogbench(named, dataset_dir, allow_download=allow_download, mirrors=mirrors)
    path = Path(dataset).expanduser()
    home = dataset_folder(dataset_dir)
    for candidate in (path, home / path, *(home / f"{dataset}{suffix}" for suffix in _SUFFIXES)):
        if candidate.is_file():
            return candidate
    files = sorted(f.name for f in home.iterdir() if f.suffix in _SUFFIXES) if home.is_dir() else []
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected an HDF5 or .npz file")
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise DataError(f"{path}: no such file, here or in {home}.{nearest(path.name, files)}")
    known = [*TASKS, *(Path(name).stem for name in files)]
    raise ConfigError(f"unknown dataset '{dataset}': not a task, a file or in {home}.{nearest(dataset, known)}")


def part_names(dataset: str) -> list[str]:
    """Split a name into the names of its datasets, which are separated by commas."""
    names = [name.strip() for name in dataset.split(",")]
    if len(names) == 1 or _exists(dataset):
        return [dataset]
    if not all(names):
        raise ConfigError(f"the dataset '{dataset}' has an empty name between its commas")
    return names


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except OSError:  # longer than a file's name can be
        return False


def require(dataset: str, dataset_dir: str | Path | None = None) -> None:
    """Raise like `resolve` if a part of a dataset is missing and is nothing that could be downloaded."""
    for name in part_names(dataset):
        if not name.startswith(MINARI_PREFIX) and name not in TASKS and parse_name(name) is None:
            resolve(name, dataset_dir)


def local_files(dataset: str, dataset_dir: str | Path | None = None) -> list[Path]:
    """The files of a dataset's parts, but for Minari's. Raises like `resolve`; nothing is downloaded."""
    names = [name for name in part_names(dataset) if not name.startswith(MINARI_PREFIX)]
    return [resolve(name, dataset_dir, allow_download=False) for name in names]


def short_name(dataset: str) -> str:
    """A dataset's name for tables and folders."""
    if dataset.startswith(MINARI_PREFIX):
        return dataset.removeprefix(MINARI_PREFIX).replace("/", "-")
    return dataset if dataset in TASKS else Path(dataset).stem


def load_dataset(
    dataset: str, dataset_dir: str | Path | None = None, *, allow_download: bool = True, infos: bool = False
) -> RawArrays:
    """Load the arrays of `minari:ID` or of any dataset that `resolve` finds, optionally with its `infos`.

    Several names, separated by commas, are parts of one dataset. `dataset_dir` is the dataset folder, or Minari's
    root. For tasks, missing metadata get the task's environment, and files without timeouts are cut at the
    horizon.
    """
    if len(names := part_names(dataset)) > 1:
        from cepdiff.data.rl.parts import joined  # it loads torch

        parts = (load_dataset(name, dataset_dir, allow_download=allow_download, infos=infos) for name in names)
        return joined(list(parts))
    if dataset.startswith(MINARI_PREFIX):
        from cepdiff.data.minari.read import read_minari

        return read_minari(dataset.removeprefix(MINARI_PREFIX), dataset_dir, allow_download=allow_download, infos=infos)
    from cepdiff.data.rl.layouts import read_file

    path = resolve(dataset, dataset_dir, allow_download=allow_download)
    if dataset not in TASKS and (named := parse_name(dataset)) is not None:
        return read_ogbench(named, path, infos=infos)
    task = TASKS.get(dataset)
    raw = read_file(path, infos=infos, horizon=task.horizon if task else None)
    if task is not None:
        raw.metadata.setdefault("env_id", task.env_id)
    return raw


def _task_file(task: Task, dataset_dir: str | Path | None, allow_download: bool, mirrors: Sequence[str]) -> Path:
    path = task_path(task, dataset_dir)
    if path.is_file():
        return path
    if task.url is None:
        raise DataError(f"{path}: the file of task {task.name} is missing; reinstall cepdiff")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected the file of task {task.name}")
    if not allow_download:
        raise DataError(f"{path}: not downloaded yet; run cepdiff data download {task.name}")
    from cepdiff.data.rl.mirrors import fetch

    return fetch(task, path, mirrors)
