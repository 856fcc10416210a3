"""Download a task's file from D4RL's server or a copy of it, and what to do where none can be reached."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from cepdiff.data.rl.download import download
from cepdiff.data.rl.published import check_download, published
from cepdiff.data.rl.task import Task
from cepdiff.errors import ConfigError, DataError, OutputError
from cepdiff.files import check_output, made

VARIABLE = "D4RL_DATASET_URL"
# Copies of D4RL's files, all in one folder, tried after D4RL's own server.
COPIES = ("https://huggingface.co/datasets/imone/D4RL/resolve/main",)

_SCHEMES = ("https", "http", "file")
_RETRIES = 2  # of each address; D4RL's server can be down for days


def addresses(task: Task, mirrors: Sequence[str] = ()) -> list[str]:
    """Return the addresses of a task's file in the order in which they are tried, each once.

    First `mirrors`, then those in $D4RL_DATASET_URL (separated by commas or spaces), D4RL's server, and `COPIES`. A
    mirror is the address of a folder that has the file under D4RL's name. Raises `ConfigError` for anything else.
    """
    assert task.url is not None
    name = task.url.rsplit("/", 1)[1]
    found = [f"{mirror}/{name}" for mirror in own_mirrors(mirrors, VARIABLE)]
    return list(dict.fromkeys([*found, task.url, *(f"{copy}/{name}" for copy in COPIES)]))


def own_mirrors(mirrors: Sequence[str], variable: str) -> list[str]:
    """`mirrors`, then those in an environment variable, without a slash at the end. Raises `ConfigError`."""
    own = [*mirrors, *os.environ.get(variable, "").replace(",", " ").split()]
    for mirror in own:
        parts = urlsplit(mirror)
        if parts.scheme not in _SCHEMES or not (parts.netloc or parts.scheme == "file"):
            raise ConfigError(
                f"the mirror '{mirror}' is not the address of a folder; expected one like "
                f"https://example.org/d4rl or file:///mnt/d4rl (in --mirror or ${variable})"
            )
    return [mirror.rstrip("/") for mirror in own]


def fetch(task: Task, path: Path, mirrors: Sequence[str] = (), *, backoff: float = 1.0, timeout: float = 30.0) -> Path:
    """Download the task's file to `path` from the first of its `addresses` that has it, see `fetch_first`."""
    known = published(task)
    return fetch_first(
        addresses(task, mirrors),
        path,
        size=None if known is None else known.size,
        check=lambda part: check_download(part, task),
        other_ways=lambda: _other_ways(task, path),
        backoff=backoff,
        timeout=timeout,
    )


def fetch_first(
    urls: Sequence[str],
    path: Path,
    *,
    check: Callable[[Path], None],
    other_ways: Callable[[], str],
    size: int | None = None,
    backoff: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """Download a file to `path` from the first address that has it, and return `path`.

    An address that is down, slow, or has other content is named in one line on stderr, and the next one is tried.
    Processes that want the same file wait for the one that began. The other arguments are those of `download`.

    Raises `DataError` that names all `other_ways` if no address has the file, `OutputError` if it cannot be written.
    """
    reasons = []
    with _alone(path):
        for url, following in zip(urls, [*urls[1:], None], strict=True):
            if path.is_file():  # downloaded by another process meanwhile
                return path
            try:
                return download(
                    url,
                    path,
                    size=size,
                    check=check,
                    retries=_RETRIES,
                    backoff=backoff,
                    timeout=timeout,
                )
            except DataError as error:
                reasons.append(f"{urlsplit(url).netloc or url}: {str(error).removeprefix(f'{url}: ')}")
                if following is not None:
                    print(f"{error}; trying {following}", file=sys.stderr)
        raise DataError(f"{path.name}: not at any address ({'; '.join(reasons)}). {other_ways()}")


def minari_counterpart(task: Task) -> str | None:
    """Return the id of Minari's dataset of the same name; None if there is none that `cepdiff` can read.

    These are never D4RL's data: Adroit's are D4RL's actions, replayed in an environment with other rewards; all others
    were recorded anew in Gymnasium's environments.
    """
    robot, _, rest = task.name.partition("-")
    kind = rest.rpartition("-")[0]
    if kind.startswith("eval-"):
        return None
    if task.family == "locomotion":
        return f"mujoco/{robot}/{kind}-v0" if kind in ("medium", "expert") else None
    names = {"antmaze": f"antmaze/{kind}-v1", "maze2d": f"pointmaze/{kind}-v2", "adroit": f"{robot}/{kind}-v2"}
    return f"D4RL/{names[task.family]}" if task.family in names else None


def _other_ways(task: Task, path: Path) -> str:
    """One line: by hand, a mirror, `collect` and, if there is one, Minari's counterpart."""
    counterpart = minari_counterpart(task)
    minari = f", or take minari:{counterpart}, which has other data" if counterpart else ""
    return (
        f"Copy {task.url} to {path} by hand, name another mirror in ${VARIABLE}, record your own with "
        f"`cepdiff collect`{minari}"
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the download of `path`, so that two processes never write to the same part; wait for another that does."""
    check_output(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with made(path.parent):
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"{path.name}: another process is downloading it; waiting for it", file=sys.stderr)
                lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise OutputError(f"{lock.lock_file}: cannot be locked ({error})") from error
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                Path(lock.lock_file).unlink()
            lock.release()
