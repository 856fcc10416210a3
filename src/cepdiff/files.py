"""Files that are either whole or absent: written aside, flushed to disk, renamed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

from cepdiff.errors import OutputError

# Names that `path_aside` makes.
LEFTOVER = re.compile(r"\.(?P<target>.+?)\.[0-9a-f]{8}(?P<suffix>\.[^.]*)?")
ABANDONED = 3600.0  # seconds without a write after which a file counts as abandoned


@contextmanager
def path_aside(path: Path) -> Iterator[Path]:
    """Yield a name in the folder of `path`; the file written there takes the name `path` if the block succeeds.

    Removes what a killed writer of the same file left. Raises `OutputError` if it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        with made(path.parent):
            remove_leftovers(path.parent, lambda target, age: target == path.name and age > ABANDONED)
            try:
                yield aside
                with aside.open("rb+") as file:
                    os.fsync(file.fileno())
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides a full disk
        if not isinstance(cause, OSError):
            raise
        raise OutputError(f"{path}: cannot be written ({cause.strerror or cause})") from error


def remove_leftovers(folder: Path, unwanted: Callable[[str, float], bool]) -> None:
    """Remove temporary files of killed writers in `folder`, if `unwanted(final name, age in seconds)`."""
    for file in folder.glob(".*"):
        found = LEFTOVER.fullmatch(file.name)
        if found and Path(found["target"]).suffix == (found["suffix"] or "") and not file.is_symlink():
            with suppress(OSError):  # its writer may just be finishing
                if file.is_file() and unwanted(found["target"], time.time() - file.stat().st_mtime):
                    file.unlink()


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """`path_aside`, opened as a binary file."""
    with path_aside(path) as aside, aside.open("xb") as file:
        yield file


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make `folder` and its parents, `tidied`."""
    with tidied(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield


@contextmanager
def tidied(folder: Path) -> Iterator[None]:
    """If the block fails, remove `folder` and its parents, but only what is new and empty."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    except BaseException:
        for each in new:
            with suppress(OSError):  # not empty
                each.rmdir()
        raise


def check_output(path: Path) -> None:
    """Raise `OutputError` early if `path` cannot be written; makes nothing, not even its folder."""
    try:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; expected the name of a file")
        with tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def unused(path: Path, is_free: Callable[[Path], bool] = lambda path: not path.exists()) -> Path:
    """The first of `path`, `stem_2`, `stem_3`, ... that `is_free`: by default, that is not there."""
    numbered = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in count(2))
    return next(place for place in chain([path], numbered) if is_free(place))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one move."""
    with written_aside(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: Any) -> None:
    """Replace `path` by indented JSON in one move. Raises ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def file_hash(path: Path, digest: Any = None) -> str:
    """Hash of a file's bytes in hexadecimal digits; by default, BLAKE2b with 16 digits."""
    digest = digest or hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return str(digest.hexdigest())
