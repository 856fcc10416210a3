"""Check that a downloaded file is the published file of its task."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from cepdiff.data.rl.d4rl_tasks import D4RL_URL
from cepdiff.data.rl.hdf5 import open_file, row_arrays
from cepdiff.data.rl.task import Task
from cepdiff.errors import DataError
from cepdiff.files import file_hash

_HDF5 = b"\x89HDF\r\n\x1a\n"
_KINDS = {  # first bytes in lower case -> kind of file
    _HDF5.lower(): "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"pk\x03\x04": "a zip file",
    b"version https://git-lfs": "a Git LFS pointer",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
}
_SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class Published:
    """Size in bytes and SHA-256 of a file that D4RL published."""

    size: int
    sha256: str


def published(task: Task) -> Published | None:
    """Return size and hash of the task's file; None for unlisted files, which are judged by their arrays."""
    return None if task.url is None else _table().get(task.url.removeprefix(f"{D4RL_URL}/"))


def check_download(path: Path, task: Task) -> None:
    """Raise `DataError` unless `path` is the published file or, if unlisted, holds rows of the task's sizes."""
    known = published(task)
    if known is None:
        _check_rows(path, task)
    elif (found := file_hash(path, hashlib.sha256())) != known.sha256:
        raise DataError(f"received {_described(path)} with SHA-256 {found}; D4RL's file has {known.sha256}")


def _check_rows(path: Path, task: Task) -> None:
    """Check the first and last rows; reading all of them would take as long as the download."""
    if not _head(path).startswith(_HDF5):
        raise DataError(f"received {_described(path)}; expected an HDF5 file")
    try:
        with open_file(path) as file:
            arrays = row_arrays(file, path, timeouts_required=False)
            sizes = {"observations": task.observation_size, "actions": task.action_size}
            for name, size in sizes.items():
                if arrays[name].shape[1] != size:
                    raise DataError(f"'{name}' has {arrays[name].shape[1]} columns; {task.env_id} has {size}")
            for name in (*sizes, "rewards"):
                for part in (slice(None, _SAMPLE_ROWS), slice(-_SAMPLE_ROWS, None)):
                    if not np.isfinite(arrays[name][part]).all():
                        raise DataError(f"'{name}' is NaN or infinite")
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DataError(f"received {_described(path)} that does not hold {task.name}: {reason}") from error


def _described(path: Path) -> str:
    """Describe a file, for instance "an HTML page of 11 bytes"."""
    size, head = path.stat().st_size, _head(path)
    if not size:
        return "an empty file"
    kind = next((kind for start, kind in _KINDS.items() if head.lstrip().lower().startswith(start)), None)
    if kind is None:
        with suppress(UnicodeDecodeError):
            kind = f"the text {head.decode().partition(chr(10))[0][:40]!r}"
    return f"{kind or 'a file'} of {size:,} byte{'s' * (size != 1)}"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


@cache
def _table() -> dict[str, Published]:
    lines = (resources.files("cepdiff.data.rl") / "d4rl_files.txt").read_text().splitlines()
    entries = (line.split() for line in lines if not line.startswith("#"))
    return {path: Published(int(size), digest) for path, size, digest in entries}
