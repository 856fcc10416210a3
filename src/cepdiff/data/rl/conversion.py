"""Parts of every conversion: its summary, checks of its target, and writing any dataset in D4RL's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepdiff.data.rl.episodes import episodes_of
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.data.rl.source import MINARI_PREFIX, load_dataset, local_files
from cepdiff.errors import ConfigError, DataError

_SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class Conversion:
    """Paths, rows, episodes and sizes in bytes of a conversion; `env_id` is in the target's form. `env_installed`:
    Minari can make the environment from the dataset."""

    source: str
    target: str
    rows: int
    episodes: int
    source_bytes: int
    target_bytes: int
    env_id: str | None = None
    env_installed: bool = False


def check_target(path: Path, overwrite: bool) -> None:
    """Raise unless a .hdf5 file can be written at `path`."""
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"the target is {path}; expected a {' or '.join(_SUFFIXES)} file or {MINARI_PREFIX}ID")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected a file")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: already exists; choose another name, or add --overwrite")


def check_unnamed(source: str, named: Any, env_id: str | None, env_kwargs: Mapping[str, Any] | None) -> None:
    """Raise `ConfigError` if an environment is given for a source that already names one."""
    if named is not None and (env_kwargs is not None or env_id not in (None, named)):
        raise ConfigError(f"{source} already names its environment '{named}': remove --env_id and --env_kwargs")


def convert_files(
    source: str,
    target: Path,
    dataset_dir: str | Path | None,
    given: Mapping[str, Any],
    overwrite: bool,
    compress: bool,
) -> Conversion:
    """Write the rows of a dataset, from one file or several, in D4RL's layout; arguments as in `convert`."""
    check_target(target, overwrite)
    raw = load_dataset(source, dataset_dir, infos=True)
    named = raw.metadata.get("env_id")
    check_unnamed(source, named, **given)
    write_arrays(target, raw, given if named is None else None, compress=compress)
    size = sum(map(bytes_of, local_files(source, dataset_dir)))
    episodes = len(episodes_of(raw).lengths)
    return Conversion(raw.source, str(target), len(raw), episodes, size, bytes_of(target), raw.metadata.get("env_id"))


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
