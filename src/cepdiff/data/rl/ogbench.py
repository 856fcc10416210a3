"""OGBench's datasets by name (Park et al. 2025, arXiv 2410.20092): their files, and the rewards of a single task.

A file has `observations`, `actions`, `terminals`, and the simulator's state before each step: `qpos`, `qvel` and, with
buttons, `button_states`. It has no rewards, because these depend on the task.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cepdiff.data.rl.arrays import GOAL_COLUMNS, NEEDS_GOAL, RawArrays, check_shapes
from cepdiff.data.rl.layouts import flags_of, stored_arrays
from cepdiff.errors import ConfigError, DataError, MissingExtraError, one_line

URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
MIRROR = "OGBENCH_DATASET_URL"
FOLDER = "~/.ogbench/data"  # the package's own
# Environments of the package by their ids here, see `cepdiff.envs.ogbench`.
ENVIRONMENTS = "ogbench/"

_MAZES = r"(?:(?:point|ant|humanoid)maze|antsoccer)-[a-z]+-(?:navigate|stitch|explore)"
_MANIPULATION = r"(?:cube-[a-z]+|scene|puzzle-\dx\d|powderworld-[a-z]+)-(?:play|noisy)"
_NAME = re.compile(rf"((?:visual-)?(?:{_MAZES}|{_MANIPULATION}))(-singletask(?:-task\d)?)?-(v\d)")
_STATES = ("qpos", "qvel", "button_states")


@dataclass(frozen=True)
class OGBenchName:
    """A dataset's name, the name of its file without suffix, its environment in the package, and whether the name
    fixes a task, which gives rewards."""

    name: str
    stem: str
    env_id: str
    single_task: bool


def parse_name(dataset: str) -> OGBenchName | None:
    """The parts of an OGBench name such as "cube-single-play-singletask-task1-v0"; None for any other name.

    Raises `ConfigError` for datasets of images or discrete actions.
    """
    if (match := _NAME.fullmatch(dataset)) is None:
        return None
    if dataset.startswith(("visual-", "powderworld-")):
        raise ConfigError(f"'{dataset}' has images as observations; expected a dataset of states")
    data, task, version = match.groups("")
    return OGBenchName(dataset, f"{data}-{version}", f"{data.rpartition('-')[0]}{task}-{version}", bool(task))


def ogbench_path(name: OGBenchName, dataset_dir: str | Path | None = None) -> Path:
    """Path of the file, downloaded or not: in `dataset_dir`, else in the package's own folder."""
    return Path(dataset_dir or FOLDER).expanduser() / f"{name.stem}.npz"


def find_ogbench(
    name: OGBenchName,
    dataset_dir: str | Path | None = None,
    *,
    allow_download: bool = True,
    mirrors: Sequence[str] = (),
) -> Path:
    """Return the path of the file, downloaded if it is missing and `allow_download`: first from `mirrors`, then those
    in $OGBENCH_DATASET_URL, then from OGBench's server. Raises `DataError`."""
    path = ogbench_path(name, dataset_dir)
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected the file of {name.name}")
    if not allow_download:
        raise DataError(f"{path}: not downloaded yet; run cepdiff data download {name.name}")
    from cepdiff.data.rl.mirrors import fetch_first, own_mirrors

    return fetch_first(
        [f"{folder}/{path.name}" for folder in (*own_mirrors(mirrors, MIRROR), URL)],
        path,
        check=lambda part: _check_file(part, name),
        other_ways=lambda: (
            f"Copy {URL}/{path.name} to {path} by hand, name a mirror in ${MIRROR}, or record your own with "
            f"`cepdiff collect {name.stem} --output {path.parent}` (point mazes, cubes, puzzles)"
        ),
    )


def _check_file(path: Path, name: OGBenchName) -> None:
    try:
        _arrays(path)
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ")
        size = f"{path.stat().st_size:,} bytes"
        raise DataError(f"received a file of {size} that is not {name.stem}: {reason}") from error


def read_ogbench(name: OGBenchName, path: Path, *, infos: bool = False) -> RawArrays:
    """Read the transitions of a file, with the rewards and masks of a single task as `ogbench` labels them.

    Without a task, rewards are -1 and nothing is terminal until goals are drawn, see `GoalDataModule`.

    The last row of a trajectory has no action that was taken, so it is only the next observation of the row before. An
    episode ends where a trajectory ends (timeout) or where the task has succeeded (mask 0, terminal). `infos` adds the
    simulator's states. Raises `MissingExtraError` without the package, `DataError` for an unusable file.
    """
    arrays = _arrays(path)
    last = flags_of(arrays, "terminals", path)
    if not last[-1]:
        raise DataError(f"{path}: the last row does not end a trajectory (terminals 1), so rows are missing")
    rows = np.flatnonzero(~last)
    if not len(rows):
        raise DataError(f"{path}: all trajectories have one row only; expected actions between two observations")
    states = {key: arrays[key][rows] for key in _STATES if key in arrays}
    metadata: dict[str, Any] = {"env_id": ENVIRONMENTS + name.env_id, "reward_rule": "none"}
    if name.single_task:
        rewards, masks = _labels(name, states, path)
    else:
        rewards, masks = np.full(len(rows), -1.0), np.ones(len(rows))
        metadata |= {GOAL_COLUMNS: tuple(range(arrays["observations"].shape[1])), NEEDS_GOAL: True}
    raw = RawArrays(
        observations=arrays["observations"][rows],
        actions=arrays["actions"][rows],
        rewards=rewards,
        terminals=masks == 0,
        timeouts=last[rows + 1] & (masks != 0),
        next_observations=arrays["observations"][rows + 1],
        metadata=metadata,
        infos=states if infos else {},
        source=str(path),
    )
    return raw.validate()


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    needed = ("observations", "actions", "terminals", "qpos")
    arrays = stored_arrays(path, {*needed, *_STATES})
    if missing := [key for key in needed if key not in arrays]:
        found = ", ".join(sorted(arrays)) or "none of its arrays"
        raise DataError(f"{path}: found {found}; OGBench's files also have {', '.join(missing)}")
    shapes = {key: arrays[key].shape for key in needed[:3]}
    check_shapes(shapes | dict.fromkeys(("rewards", "timeouts"), shapes["terminals"]), str(path))
    for key in {*_STATES} & arrays.keys():
        if arrays[key].ndim != 2 or len(arrays[key]) != len(arrays["observations"]):
            expected = f"({len(arrays['observations'])}, size)"
            raise DataError(f"{path}: '{key}' has shape {arrays[key].shape}; expected {expected}")
    return arrays


def _labels(name: OGBenchName, states: Mapping[str, npt.NDArray[Any]], path: Path) -> tuple[Any, Any]:
    """Rewards (N,) and masks (N,) of the name's task, computed by the package from the states."""
    ogbench, labelled = import_ogbench(), dict(states)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the arm's action bounds are float64 and become float32
        try:
            env = ogbench.make_env_and_datasets(name.name, env_only=True)
        except Exception as error:  # Gymnasium's, for an unknown environment
            raise ConfigError(f"unknown dataset '{name.name}': {one_line(error)}") from error
        try:
            import_module("ogbench.relabel_utils").relabel_dataset(name.env_id, env, labelled)
            found, expected = states["qpos"].shape[1], env.unwrapped.model.nq
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(f"{path}: its states are not those of {name.env_id} ({one_line(error)})") from error
        finally:
            env.close()
    if found != expected:
        raise DataError(f"{path}: 'qpos' has {found} columns; {name.env_id} has {expected}")
    return labelled["rewards"], labelled["masks"]


def import_ogbench() -> Any:
    """Import the package. Raises `MissingExtraError` without it."""
    try:
        return import_module("ogbench")
    except ModuleNotFoundError as error:
        raise MissingExtraError("The rewards of OGBench's tasks", "ogbench") from error
