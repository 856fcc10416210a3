"""A run folder: where its files are, what each stage was made from, and whether that still holds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from cepdiff.errors import RunError
from cepdiff.files import write_json, write_text

LOCK = ".lock"
FORMAT = 2  # of run folders; those of versions before 0.2 name none
EARLIER = ("scores.json", "distances.json", "images.json")  # results of those versions


class StageFolder:
    """A stage's folder: `stage.json` (its record), `last.ckpt` while it runs, `final.ckpt` when it is done."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.run_dir = run_dir
        self.name = name
        self.path = run_dir / name
        self.record_file = self.path / "stage.json"
        self.last = self.path / "last.ckpt"
        self.final = self.path / "final.ckpt"

    @property
    def done(self) -> bool:
        """True once the stage has finished."""
        return bool(self._content().get("done", False))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the finished stage; a trained stage counts all its sessions."""
        return float(self._content().get("seconds", 0.0))

    @property
    def made_from(self) -> dict[str, Any] | None:
        """The stage's record, None if there is none."""
        found: dict[str, Any] | None = self._content().get("made_from")
        return found

    def claim(self, record: Mapping[str, Any], later: Sequence[str] = ()) -> None:
        """Write the record, or check that it is the one of an earlier run; `later` names the stages that follow.

        Raises:
            RunError: the stage was made from something else; says what changed, and what to do.
        """
        found = self.made_from
        if found is None:
            if self.last.exists() or self.final.exists():
                raise RunError(f"{self.path} holds checkpoints without stage.json; choose another --run_dir")
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.record_file, {"format": FORMAT, "done": False, "made_from": record})
            return
        changes = differences(found, record)
        if changes:
            stale = [self.run_dir / name for name in (self.name, *later) if (self.run_dir / name).exists()]
            raise RunError(
                f"{self.path} was made from something else: {'; '.join(changes[:4])}"
                f"{f' (and {len(changes) - 4} more)' if len(changes) > 4 else ''}. Choose another --run_dir, "
                f"undo the change, or delete {', '.join(map(str, stale))} to make it again"
            )

    def adopt(self, other: StageFolder, record: Mapping[str, Any]) -> str:
        """Take over another run's finished stage, if nothing is here yet; return why it cannot be, if so."""
        if self.path.exists() or not other.done:
            return ""
        if changes := differences(other.made_from, record):
            return f"not taken over from {other.run_dir}: {changes[0]}"
        aside = self.path.with_name(f".{self.name}.adopted")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(other.path, aside, copy_function=link_or_copy)
        aside.rename(self.path)
        return ""

    def finish(self, seconds: float) -> None:
        """Mark the stage as done."""
        write_json(self.record_file, {**self._content(), "done": True, "seconds": round(seconds, 1)})
        self.last.unlink(missing_ok=True)

    def load_weights(self) -> dict[str, Any]:
        """The state dict in `final.ckpt`."""
        weights: dict[str, Any] = read_checkpoint(self.final)["state_dict"]
        return weights

    def _content(self) -> dict[str, Any]:
        if not self.record_file.is_file():
            return {}
        try:
            content: dict[str, Any] = {**json.loads(self.record_file.read_text())}
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{self.record_file} is damaged; delete {self.path} to make the stage again") from error
        if content.get("format") != FORMAT:
            raise RunError(made_by_another_version(self.path))
        return content


class RunFolder:
    """The folder of one run, with a folder per stage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.logs = path / "logs"
        self.results = path / "results.json"
        self.samples = path / "samples.npz"

    def stage(self, name: str) -> StageFolder:
        """The folder of a stage."""
        return StageFolder(self.path, name)

    def check(self) -> None:
        """Raise RunError if the path is a file, a folder with other things in it, or a run of another version."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; choose another --run_dir")
        if not self.path.is_dir():
            return
        if not self.config.exists():
            foreign = [entry.name for entry in self.path.iterdir() if entry.name != LOCK]
            if foreign:
                raise RunError(f"{self.path} is no run folder (it holds {foreign[0]}); choose another --run_dir")
        if any((self.path / name).exists() for name in EARLIER):
            raise RunError(made_by_another_version(self.path))

    def keep(self, config: str, replace: bool = True) -> None:
        """Write the configuration of the last command that fitted, or the first one's."""
        if replace or not self.config.exists():
            write_text(self.config, config)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold it for this process, so that two commands never write to one run."""
        self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(f"another command is working in {self.path}; wait for it or choose another") from error
        try:
            yield
        finally:
            lock.release()


def made_by_another_version(path: Path) -> str:
    """Message for a folder in another format."""
    return (
        f"{path} was made by another version of cepdiff, whose folders this one does not read: choose another "
        "--run_dir, or use that version"
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, never unpickled; raises RunError if it cannot be read."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        content["state_dict"]
    except Exception as error:  # torch.load raises many kinds on a torn or foreign file
        raise RunError(
            f"{path} cannot be read as a checkpoint; delete {path.parent} to make that stage again"
        ) from error
    return content


def link_or_copy(source: str, target: str) -> None:
    """Hard-link a file, since finished files are replaced, never changed; copy it if there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def record_hash(record: Mapping[str, Any]) -> str:
    """BLAKE2b of a record's canonical JSON, 16 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(found: Any, record: Mapping[str, Any]) -> list[str]:
    """`compare` for a record that was read from a file and one that was not written yet."""
    return list(compare(found, json.loads(json.dumps(record))))


def compare(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """One phrase for each leaf in which two plain trees differ; a changed source file is named."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in [*found, *(key for key in wanted if key not in found)]:
            below = f"{where}.{key}" if where else str(key)
            before, now = found.get(key) or {}, wanted.get(key) or {}
            if key == "source" and isinstance(before, Mapping) and isinstance(now, Mapping):
                yield from (f"{name} changed" for name in {**before, **now} if before.get(name) != now.get(name))
            else:
                yield from compare(found.get(key), wanted.get(key), below.replace(".init_args", ""))
    elif found != wanted:
        yield f"{where} was {found}, now {wanted}"
