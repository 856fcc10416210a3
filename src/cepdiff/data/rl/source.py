"""From what a user calls a dataset to its arrays: a task, a file, a name in the dataset folder, a Minari id."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.tasks import TASKS, Task
from cepdiff.errors import ConfigError, DataError, nearest

MINARI_PREFIX = "minari:"
_SUFFIXES = (".hdf5", ".h5")


def dataset_folder(dataset_dir: str | Path | None = None) -> Path:
    """The dataset folder: `dataset_dir`, else $D4RL_DATASET_DIR, else ~/.d4rl/datasets, as D4RL itself."""
    return Path(dataset_dir or os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser()


def task_path(task: Task, dataset_dir: str | Path | None = None) -> Path:
    """Where a task's file is or would be downloaded to; D4RL uses the same names."""
    if task.embedded is not None:
        return Path(str(resources.files("cepdiff.data") / "embedded" / task.embedded))
    if task.url is None:
        raise DataError(f"the task {task.name} has neither a URL nor an embedded file")
    return dataset_folder(dataset_dir) / task.url.rsplit("/", 1)[1]


def resolve(dataset: str, dataset_dir: str | Path | None = None, *, allow_download: bool = True) -> Path:
    """The file of a dataset, downloaded where it is a task's, absent, and `allow_download`.

    `dataset` is a task's name, a path, or the name or stem of a file in the dataset folder. Raises `DataError`
    where the file is absent or out of reach, `ConfigError` for a name that is nothing known.
    """
    if dataset in TASKS:
        return _task_file(TASKS[dataset], dataset_dir, allow_download)
    path = Path(dataset).expanduser()
    home = dataset_folder(dataset_dir)
    for candidate in (path, home / path, *(home / f"{dataset}{suffix}" for suffix in _SUFFIXES)):
        if candidate.is_file():
            return candidate
    files = sorted(f.name for f in home.iterdir() if f.suffix in _SUFFIXES) if home.is_dir() else []
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected an HDF5 file")
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise DataError(f"{path}: no such file, neither here nor in {home}.{nearest(path.name, files)}")
    known = [*TASKS, *(Path(name).stem for name in files)]
    raise ConfigError(f"unknown dataset '{dataset}': no task, no file, nothing in {home}.{nearest(dataset, known)}")


def load_dataset(
    dataset: str, dataset_dir: str | Path | None = None, *, allow_download: bool = True, infos: bool = False
) -> RawArrays:
    """The arrays of a dataset, with `infos` those too: `minari:ID`, or whatever `resolve` finds.

    `dataset_dir` is the dataset folder, for Minari its own. The environment of a task is added to the metadata of a
    file that does not name one; a task's file without timeouts is cut at the task's horizon.
    """
    if dataset.startswith(MINARI_PREFIX):
        from cepdiff.data.minari.read import read_minari

        return read_minari(dataset.removeprefix(MINARI_PREFIX), dataset_dir, allow_download=allow_download, infos=infos)
    from cepdiff.data.rl.hdf5 import read_arrays

    path = resolve(dataset, dataset_dir, allow_download=allow_download)
    task = TASKS.get(dataset)
    raw = read_arrays(path, infos=infos, horizon=task.horizon if task else None)
    if task is not None:
        raw.metadata.setdefault("env_id", task.env_id)
    return raw


def _task_file(task: Task, dataset_dir: str | Path | None, allow_download: bool) -> Path:
    path = task_path(task, dataset_dir)
    if path.is_file():
        return path
    if task.url is None:
        raise DataError(f"{path}: the file of the task {task.name} is missing; install cepdiff again")
    if not allow_download:
        raise DataError(f"{path}: not downloaded yet; run cepdiff data download {task.name}")
    from cepdiff.data.rl.download import download

    return download(task.url, path, expected_size=task.file_size)
