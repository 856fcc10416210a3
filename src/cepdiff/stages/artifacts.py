"""A run folder: what lies where, what each stage was made from, and whether that still holds."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cepdiff.errors import RunError
from cepdiff.files import write_json, write_text

LOCK = ".lock"
STAGES = ("behavior", "support", "critic", "guidance", "evaluation")


class StageFolder:
    """A stage's folder: `stage.json` (its record), `last.ckpt` while it runs, `final.ckpt` when done."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.run_dir = run_dir
        self.name = name
        self.path = run_dir / name
        self.record_file = self.path / "stage.json"
        self.last = self.path / "last.ckpt"
        self.final = self.path / "final.ckpt"

    @property
    def done(self) -> bool:
        """Whether the stage has finished."""
        return bool(self._content().get("done", False))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that the finished stage took, over all resumptions."""
        return float(self._content().get("seconds", 0.0))

    @property
    def made_from(self) -> dict[str, Any] | None:
        """What the stage was made from, as its record tells; None where there is none."""
        found: dict[str, Any] | None = self._content().get("made_from")
        return found

    def claim(self, record: Mapping[str, Any]) -> None:
        """Notes what the stage is made from, or checks that it is what an earlier run noted.

        Raises:
            RunError: the stage was made from something else; names what, and what to do.
        """
        found = self.made_from
        if found is None:
            if self.last.exists() or self.final.exists():
                raise RunError(f"{self.path} holds checkpoints without stage.json; choose another --run_dir")
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.record_file, {"done": False, "made_from": record})
            return
        differences = list(compare(found, json.loads(json.dumps(record))))
        if differences:
            later = [stage for stage in STAGES[STAGES.index(self.name) :] if (self.run_dir / stage).exists()]
            folders = ", ".join(str(self.run_dir / stage) for stage in later)
            raise RunError(
                f"{self.path} was made from something else: {'; '.join(differences[:4])}"
                f"{f' (and {len(differences) - 4} more)' if len(differences) > 4 else ''}. "
                f"Choose another --run_dir, undo the change, or delete {folders} to make it again"
            )

    def adopt(self, other: StageFolder, record: Mapping[str, Any]) -> None:
        """Takes over the finished stage of another run, if it was made from `record` and nothing lies here yet."""
        if self.path.exists() or not other.done or any(compare(other.made_from, json.loads(json.dumps(record)))):
            return
        aside = self.path.with_name(f".{self.name}.adopted")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(other.path, aside, copy_function=link_or_copy)
        aside.rename(self.path)

    def finish(self, seconds: float) -> None:
        """Marks the stage as done."""
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
        return content


class RunFolder:
    """The folder of one run; its stages are `behavior/`, `support/`, `critic/` and `guidance/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.logs = path / "logs"
        self.scores = path / "scores.json"
        self.figure = path / "scores.png"
        self.distances = path / "distances.json"
        self.samples = path / "samples.npz"
        self.panel = path / "samples.png"
        self.images = path / "images.json"

    def stage(self, name: str) -> StageFolder:
        """The folder of a stage."""
        return StageFolder(self.path, name)

    def check(self) -> None:
        """Raises RunError where the path is a file, or a folder with other things in it."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; choose another --run_dir")
        if self.path.is_dir() and not self.config.exists():
            foreign = [entry.name for entry in self.path.iterdir() if entry.name != LOCK]
            if foreign:
                raise RunError(f"{self.path} is no run folder (it holds {foreign[0]}); choose another --run_dir")

    def open(self, config: str) -> None:
        """Keeps the configuration in the folder where it holds none yet."""
        if not self.config.exists():
            self.keep(config)

    def keep(self, config: str) -> None:
        """Replaces the configuration in the folder: that of the last command which it fitted."""
        write_text(self.config, config)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it for this process, so that two commands never write to one run."""
        self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(f"another command is working in {self.path}; wait for it or choose another") from error
            yield


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, never unpickled; raises RunError where it cannot be read."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        content["state_dict"]
    except Exception as error:  # torch.load raises many kinds on a torn or foreign file
        raise RunError(
            f"{path} cannot be read as a checkpoint; delete {path.parent} to make that stage again"
        ) from error
    return content


def link_or_copy(source: str, target: str) -> None:
    """A hard link: finished files are replaced, never changed. A copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def made_from_of(path: Path) -> dict[str, Any] | None:
    """What an earlier result in a JSON file was made from, or None."""
    if not path.is_file():
        return None
    try:
        made_from: dict[str, Any] | None = json.loads(path.read_text()).get("made_from")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged; delete it to evaluate again") from error
    return made_from


def file_hash(path: Path) -> str:
    """BLAKE2b of a file's bytes, 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def record_hash(record: Mapping[str, Any]) -> str:
    """BLAKE2b of a record's canonical JSON, 16 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=8).hexdigest()


def compare(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """One phrase for each leaf in which two plain trees differ."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in [*found, *(key for key in wanted if key not in found)]:
            below = f"{where}.{key}" if where else str(key)
            yield from compare(found.get(key), wanted.get(key), below.replace(".init_args", ""))
    elif found != wanted:
        yield f"{where} was {found}, now {wanted}"
