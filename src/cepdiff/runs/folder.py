"""A run folder: where its files are, what each stage was made from, and whether that still holds."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from cepdiff.components import is_default
from cepdiff.errors import RunError, shortened
from cepdiff.files import ABANDONED, file_hash, made, remove_leftovers, unused, write_text
from cepdiff.schema import typed
from cepdiff.seals import read_sealed, unsealed, write_sealed

LOCK = ".lock"
FINAL = "final.ckpt"
ADOPTED = ".adopted"  # suffix of a stage's folder while it is taken over
OWN = (".yaml", ".json", ".npz", ".png", ".pt")  # suffixes of the files that `fit` writes to the run folder
FORMAT = 3  # of run folders; versions before 0.2 wrote none
EARLIER = ("scores.json", "distances.json", "images.json")  # results of versions before 0.2


@dataclass(frozen=True)
class StageRecord:
    """The content of `stage.json`.

    Args:
        made_from: plain values that identify the data, settings and stages that the stage depends on.
        done: True once the stage has finished.
        seconds: wall clock of the finished stage; a trained stage counts all its sessions.
        files: name -> hash of each file of the finished stage.
        format: version of the folder's format.
        num_threads: CPU threads that the stage began with; None if they were not chosen by measurement.
    """

    made_from: dict[str, Any]
    done: bool = False
    seconds: float = 0.0
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    num_threads: int | None = None


class StageFolder:
    """A stage's folder: `stage.json` (its record), `last.ckpt` (to go on from), `final.ckpt` when it is done."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.run_dir = run_dir
        self.name = name
        self.path = run_dir / name
        self.record_file = self.path / "stage.json"
        self.last = self.path / "last.ckpt"
        self.final = self.path / FINAL

    @property
    def done(self) -> bool:
        """True once the stage has finished."""
        record = self.record()
        return record is not None and record.done

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the finished stage, 0 before."""
        record = self.record()
        return 0.0 if record is None else record.seconds

    @property
    def made_from(self) -> dict[str, Any] | None:
        """The stage's `made_from`, None if it has not begun."""
        record = self.record()
        return None if record is None else record.made_from

    @property
    def files(self) -> dict[str, str]:
        """Name -> hash of each file of the finished stage, taken when it finished."""
        record = self.record()
        return {} if record is None else record.files

    @property
    def num_threads(self) -> int | None:
        """CPU threads that the stage began with; None if they were not chosen by measurement."""
        record = self.record()
        return None if record is None else record.num_threads

    def claim(self, record: Mapping[str, Any], later: Sequence[str] = ()) -> None:
        """Write the record, or check that it equals an earlier run's; `later` names the stages that follow.

        Raises:
            RunError: the stage was made from something else, or changed since; the message says what to do.
        """
        found = self.record()
        if found is None:
            if self.last.exists() or self.final.exists():
                raise RunError(f"{self.path} holds checkpoints without stage.json; choose another --run_dir")
            self.path.mkdir(parents=True, exist_ok=True)
            write_sealed(self.record_file, asdict(StageRecord(dict(record))))
            return
        stale = [self.run_dir / name for name in (self.name, *later) if (self.run_dir / name).exists()]
        again = f"delete {', '.join(map(str, stale))} to make it again"
        changes = differences(found.made_from, record)
        if changes:
            raise RunError(
                f"{self.path} was made from something else: {'; '.join(changes[:4])}"
                f"{f' (and {len(changes) - 4} more)' if len(changes) > 4 else ''}. Choose another --run_dir, "
                f"undo the change, or {again}"
            )
        if changed := self.changed():
            raise RunError(f"{self.path / changed} was changed, swapped or lost after it was made; {again}")

    def changed(self) -> str:
        """The first file of the finished stage that has changed since; "" if none has."""
        for name, known in self.files.items():
            file = self.path / name
            if not file.is_file() or file_hash(file) != known:
                return name
        return ""

    def adopt(self, other: StageFolder, record: Mapping[str, Any]) -> str:
        """Take over another run's finished stage, if there is none here yet; return the reason if that is impossible.

        Raises RunError if the other stage's files changed after it was made.
        """
        if self.path.exists() or not other.done:
            return ""
        if changes := differences(other.made_from, record):
            return f"not taken over from {other.run_dir}: {changes[0]}"
        if changed := other.changed():
            raise RunError(
                f"{other.path / changed} was changed, swapped or lost after it was made; leave out --reuse, or delete "
                f"{other.path}"
            )
        aside = self.path.with_name(f".{self.name}{ADOPTED}")
        shutil.rmtree(aside, ignore_errors=True)
        last = [other.last.name] if other.last.is_file() else []
        for name in (*other.files, *last, other.record_file.name):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(other.path / name, aside / name)
        aside.rename(self.path)
        return ""

    def finish(self, seconds: float, files: Iterable[Path] | None = None) -> None:
        """Mark the stage as done, with the hashes of its `files`; by default, all in the folder."""
        if files is None:
            others = (self.record_file.name, self.last.name)
            found = sorted(self.path.rglob("*"))
            files = [file for file in found if file.is_file() and file.name not in others and file.name[0] != "."]
        hashes = {file.relative_to(self.path).as_posix(): file_hash(file) for file in files}
        record = replace(self.record() or StageRecord({}), done=True, seconds=round(seconds, 1), files=hashes)
        write_sealed(self.record_file, asdict(record))

    def keep_threads(self, num_threads: int) -> None:
        """Note the number of threads in the record."""
        record = self.record() or StageRecord({})
        write_sealed(self.record_file, asdict(replace(record, num_threads=num_threads)))

    def load_weights(self) -> dict[str, Any]:
        """The state dict in `final.ckpt`."""
        weights: dict[str, Any] = read_checkpoint(self.final)["state_dict"]
        return weights

    def record(self) -> StageRecord | None:
        """The content of `stage.json`, None if there is none; raises RunError if it cannot be used."""
        advice = f"delete {self.path} to make the stage again"
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; expected the stage's folder: {advice}")
        if not self.record_file.exists():
            return None
        try:
            content = read_sealed(self.record_file, FORMAT)
            if content is None:
                raise RunError(made_by_another_version(self.path))
            found = typed(StageRecord, content)
            if any(Path(name).is_absolute() or ".." in Path(name).parts for name in found.files):
                raise ValueError("it lists files outside the folder")
        except ValueError as error:
            raise RunError(
                f"{self.record_file} is damaged, or was changed after it was made ({error}); {advice}"
            ) from error
        return found


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
        try:
            names = [entry.name for entry in self.path.iterdir()]
        except OSError as error:
            raise RunError(f"{self.path} cannot be read ({error.strerror}); choose another --run_dir") from error
        if not self.config.exists():
            foreign = [name for name in names if name != LOCK]
            if foreign:
                raise RunError(f"{self.path} is no run folder (it holds {foreign[0]}); choose another --run_dir")
        if self.results.name not in names and any(name in EARLIER for name in names):
            raise RunError(made_by_another_version(self.path))
        for file in (self.path / LOCK, self.config, self.results, self.samples):
            if (file.exists() and not file.is_file()) or (file.name == LOCK and file.is_symlink()):
                raise RunError(f"{file} is not a regular file; delete it, or choose another --run_dir")
        if self.logs.exists() and not self.logs.is_dir():
            raise RunError(f"{self.logs} is a file; expected a folder: delete it, or choose another --run_dir")

    def check_kept(self) -> None:
        """Raise RunError if the folder was deleted while this command ran: later files would not be a whole run."""
        if not self.config.is_file():
            raise RunError(
                f"{self.path} was deleted while this command ran; delete what is there now, and run it again"
            )

    def keep(self, config: str, replace: bool = True) -> None:
        """Write the configuration of the last command that fitted, or the first one's."""
        if replace or not self.config.exists():
            write_text(self.config, config)

    def keep_results(self) -> None:
        """Rename results that are about to be replaced to `results_earlier.json`, or `results_earlier_2.json`, ..."""
        if self.results.is_file():
            kept = unused(self.path / f"{self.results.stem}_earlier.json")
            self.results.rename(kept)
            print(f"the results so far are kept as {kept}", file=sys.stderr)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold it for this process, so that two commands never write to one run."""
        self.check()
        with held(self.path):
            self._clean()
            yield

    def _clean(self) -> None:
        """Remove what killed commands left; commands other than `fit` may be writing to the folder right now."""
        remove_leftovers(self.path, lambda target, age: age > ABANDONED or Path(target).suffix in OWN)
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                if path.name.startswith(".") and path.name.endswith(ADOPTED):
                    shutil.rmtree(path, ignore_errors=True)
                remove_leftovers(path, lambda target, age: True)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Make the folder `path` and hold it for this process; if the block fails, a new folder goes unless it holds files.

    Raises RunError if another command holds it.
    """
    new = not path.exists()
    with ExitStack() as stack:
        try:
            stack.enter_context(made(path))
            lock = FileLock(path / LOCK, timeout=0)
            lock.acquire()
        except Timeout as error:
            raise RunError(f"another command is working in {path}; wait for it or choose another") from error
        except OSError as error:
            raise RunError(f"{path} cannot be written to ({error.strerror or error})") from error
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                if new and [entry.name for entry in path.iterdir()] == [LOCK]:
                    (path / LOCK).unlink()
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
        content = unsealed(torch.load(path, map_location="cpu", weights_only=True))
        content["state_dict"]
    except Exception as error:  # torch.load raises many kinds on a torn or foreign file
        raise RunError(
            f"{path} cannot be read as a checkpoint, or was changed; delete {path.parent} to make that stage again"
        ) from error
    return content


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, since finished files are replaced, never changed; copy it if there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def differences(found: Any, record: Mapping[str, Any]) -> list[str]:
    """`compare` for a record that was read from a file and one that was not written yet."""
    return list(compare(found, json.loads(json.dumps(record))))


def compare(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """One phrase for each leaf in which two plain trees differ; a changed source file is named.

    An option that a class got after `found` was written is no difference at its default.
    """
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        if isinstance(options := found.get("init_args"), Mapping) and found.get("class_path") == wanted.get(
            "class_path"
        ):
            new = {key: value for key, value in wanted.get("init_args", {}).items() if key not in options}
            added = {key: value for key, value in new.items() if is_default(wanted["class_path"], key, value)}
            found = {**found, "init_args": {**options, **added}}
        for key in [*found, *(key for key in wanted if key not in found)]:
            below = f"{where}.{key}" if where else str(key)
            before, now = found.get(key) or {}, wanted.get(key) or {}
            if key == "source" and isinstance(before, Mapping) and isinstance(now, Mapping):
                yield from (f"{name} changed" for name in {**before, **now} if before.get(name) != now.get(name))
            else:
                yield from compare(found.get(key), wanted.get(key), below.replace(".init_args", ""))
    elif found != wanted:
        yield f"{where} was {shortened(str(found), 100)}, now {shortened(str(wanted), 100)}"
