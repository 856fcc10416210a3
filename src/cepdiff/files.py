"""Files that are either whole or absent: written aside, flushed to disk, renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cepdiff.errors import OutputError


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A binary file in the folder of `path` that takes its name when the block ends without an error.

    Raises `OutputError` where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes it private
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def check_writable(folder: Path) -> None:
    """Makes `folder` where it is absent. Raises `OutputError` where no file can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror or error})") from error


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one move."""
    with written_aside(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: Any) -> None:
    """Replaces `path` by indented JSON in one move. Raises ValueError for NaN and infinity: JSON has neither."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
