"""Finding runs: finished ones at any depth below a folder, and those that a report must call missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepdiff.errors import RunError
from cepdiff.runs.folder import EARLIER, LOCK, RunFolder
from cepdiff.runs.results import Results
from cepdiff.schema import typed

SWEEP = "sweep.json"
SWEEP_FORMAT = 1
NAMED = 5  # folders that a line names before it counts the rest
NO_RUNS = "no run folders, skipped"
NOT_FINISHED = "not finished, skipped (run the same `cepdiff {}` again)"
UNFINISHED = "not finished"  # status of a run outside sweeps
LOST = "results are missing"  # of a run that its sweep has finished
OLD = "made by an earlier version of cepdiff, skipped (run `cepdiff fit` with another --run_dir)"


@dataclass(frozen=True)
class Planned:
    """A run of a sweep: its folder, its values by dotted key, and its status."""

    folder: str
    settings: Mapping[str, Any]
    status: str


@dataclass(frozen=True)
class Found:
    """Finished runs, each once; runs that are not finished, with their status; other folders by the reason."""

    runs: Sequence[Results]
    unfinished: Mapping[Path, str]
    skipped: Mapping[str, Sequence[Path]]


def find_runs(folders: Iterable[Path]) -> Found:
    """The runs in and below `folders`; a line on stderr for each kind of folder that is left out.

    Raises:
        RunError: a folder that is missing, or damaged results.
    """
    places: dict[Path, tuple[Path, str]] = {}  # real path -> path as given, status ("" if finished)
    skipped: dict[str, list[Path]] = {}
    for folder in {folder.resolve(): folder for folder in folders}.values():
        if not folder.exists():
            raise RunError(f"there is no run folder {folder}")
        found = list(look_in(folder, set(), given=True))
        for path, status in found:
            if status == OLD:
                skipped.setdefault(OLD, []).append(path)
            else:
                places.setdefault(path.resolve(), (path, status))
        if not found:
            skipped.setdefault(NO_RUNS, []).append(folder)
    runs = [Results.read(RunFolder(path).results) for path, status in places.values() if not status]
    for run in runs:
        run.check_folder()
    unfinished = {path: status for path, status in places.values() if status}
    for why, left_out in skipped.items():
        warn(why, left_out)
    warn(NOT_FINISHED.format("fit"), [path for path, status in unfinished.items() if status == UNFINISHED])
    warn(NOT_FINISHED.format("sweep"), [path for path, status in unfinished.items() if status != UNFINISHED])
    return Found(runs, unfinished, skipped)


def look_in(folder: Path, seen: set[Path], given: bool = False) -> Iterator[tuple[Path, str]]:
    """(run folder, status) in and below `folder`; the status is "" for a finished run.

    Below a folder that was `given`, results count only beside a configuration: another program's may have the name.
    """
    if not folder.is_dir() or folder.resolve() in seen:  # a link may lead back
        return
    seen.add(folder.resolve())
    run = RunFolder(folder)
    is_run = run.config.is_file() or (folder / LOCK).is_file()
    state = None
    if given or is_run:
        earlier = any((folder / name).is_file() for name in EARLIER)
        state = "" if run.results.is_file() else OLD if earlier else None
    if state is not None:
        yield folder, state
    below = [
        found
        for path in sorted(folder.iterdir())
        if path.name[0] != "." and path.is_dir()
        for found in look_in(path, seen)
    ]
    known = {path.resolve() for path, _ in below}
    planned = planned_runs(folder)
    status = {path.resolve(): LOST if run.status == "finished" else run.status for path, run in planned.items()}
    below = [(path, state and status.get(path.resolve(), state)) for path, state in below]
    below += [(path, status[path.resolve()]) for path in planned if path.resolve() not in known]
    if below:
        yield from below
    elif is_run and state is None:
        yield folder, UNFINISHED


def planned_runs(folder: Path) -> dict[Path, Planned]:
    """The runs of a sweep by their folders; none if `folder` holds no sweep. Raises RunError for a damaged file."""
    path = folder / SWEEP
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != SWEEP_FORMAT:
            raise RunError(f"{path} was written by another version of cepdiff; report its runs one by one")
        runs = [{key: run[key] for key in ("folder", "settings", "status")} for run in content["runs"]]
        return {folder / run.folder: run for run in typed(list[Planned], runs, "runs")}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is damaged ({error}); run the same sweep again, or report its runs one by one"
        ) from error


def warn(what: str, folders: Sequence[Path]) -> None:
    """Print a line on stderr about these folders, if there are any."""
    more = f" and {len(folders) - NAMED} more" if len(folders) > NAMED else ""
    if folders:
        print(f"note: {what}: {', '.join(map(str, folders[:NAMED]))}{more}", file=sys.stderr)
