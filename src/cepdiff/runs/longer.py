"""Longer training: the `max_steps` of a stage was raised, and it goes on from its last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cepdiff.errors import RunError
from cepdiff.runs.folder import StageFolder, StageRecord, differences
from cepdiff.seals import content_hash, write_sealed

LENGTH = "max_steps"


def steps_of(folder: StageFolder) -> int:
    """The steps that the stage's record asks for; 0 if it is not trained."""
    steps = (folder.made_from or {}).get(LENGTH)
    return steps if isinstance(steps, int) else 0


def is_shorter(folder: StageFolder, record: Mapping[str, Any]) -> bool:
    """True if the stage has fewer steps than `record`, and was made from the same otherwise."""
    now = record[LENGTH]
    if not 0 < steps_of(folder) < now:
        return False
    return not differences({**(folder.made_from or {}), LENGTH: now}, record)


def check_longer(folder: StageFolder, record: Mapping[str, Any], later: Sequence[str], depends_on_length: bool) -> None:
    """Raise RunError unless a finished, shorter training can go on: its last state is there, nothing was made from it.

    `later` names the stages that follow; `depends_on_length` is the module's.
    """
    wanted = f"{folder.path} has {steps_of(folder):,} steps and cannot go on to {record[LENGTH]:,}"
    anew = f"train it anew in another --run_dir (with --reuse {folder.run_dir}, which takes over the stages before it)"
    if depends_on_length:
        raise RunError(f"{wanted}, as its learning rate depends on {LENGTH} (lr_schedule cosine): {anew}")
    if changed := folder.changed():
        raise RunError(f"{folder.path / changed} was changed, swapped or lost after it was made; {anew}")
    if not folder.last.is_file():
        raise RunError(f"{wanted}, as {folder.last.name} was deleted, or never kept by an earlier version: {anew}")
    if made := [folder.run_dir / name for name in later if (folder.run_dir / name).exists()]:
        raise RunError(
            f"{wanted}, as {made[0].name} was made from it: choose another --run_dir with --reuse {folder.run_dir}, "
            f"where it goes on from there and this run stays, or delete {', '.join(map(str, made))}"
        )


def go_on(folder: StageFolder, record: Mapping[str, Any]) -> None:
    """Mark a shorter training as one to go on with; its final weights stay until the longer one has finished."""
    if is_shorter(folder, record):
        write_sealed(folder.record_file, asdict(StageRecord({**(folder.made_from or {}), LENGTH: record[LENGTH]})))


def hash_with(folder: StageFolder, steps: int) -> str:
    """Hash of the stage's record with this number of steps (0: any), by which its checkpoints are recognised."""
    return content_hash({**(folder.made_from or {}), LENGTH: steps})
