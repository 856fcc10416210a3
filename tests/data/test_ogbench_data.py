"""OGBench's datasets by name, held against the package's own loader."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.ogbench import parse_name
from cepdiff.data.rl.settings import settings_of
from cepdiff.data.rl.source import load_dataset, resolve
from cepdiff.errors import ConfigError, DataError, MissingExtraError

ogbench = pytest.importorskip("ogbench")
relabel_dataset = pytest.importorskip("ogbench.relabel_utils").relabel_dataset
SIZES = {
    "pointmaze-medium-navigate-v0": (2, 2, 2),
    "cube-double-play-v0": (37, 5, 28),
}


@pytest.mark.parametrize(
    ("name", "stem", "env_id", "single"),
    [
        ("pointmaze-medium-navigate-v0", "pointmaze-medium-navigate-v0", "pointmaze-medium-v0", False),
        ("antmaze-large-stitch-singletask-v0", "antmaze-large-stitch-v0", "antmaze-large-singletask-v0", True),
        ("cube-single-play-singletask-task4-v0", "cube-single-play-v0", "cube-single-singletask-task4-v0", True),
        ("scene-noisy-singletask-v0", "scene-noisy-v0", "scene-singletask-v0", True),
        ("puzzle-4x5-play-v0", "puzzle-4x5-play-v0", "puzzle-4x5-v0", False),
    ],
)
def test_names(name: str, stem: str, env_id: str, single: bool) -> None:
    """The same parts as in the package, which finds files and environments by these rules."""
    found = parse_name(name)
    assert found is not None
    assert (found.stem, found.env_id, found.single_task) == (stem, env_id, single)
    ours = settings_of(None, None, {"env_id": f"ogbench/{env_id}"})
    assert (ours.reward_rule, ours.evaluation_episodes) == ("none", 50)


@pytest.mark.parametrize("name", ["antmaze-medium-play-v2", "antmaze-umaze-v0", "maze2d-large-v1", "kitchen-mixed-v0"])
def test_names_of_d4rl_are_others(name: str) -> None:
    assert parse_name(name) is None


def near_goals(stem: str, name: str) -> tuple[Any, dict[str, Any]]:
    """The environment, and 40 rows in three trajectories with states within twice the tolerance of the task's goal."""
    size, actions, state = SIZES[stem]
    numbers = np.random.default_rng(0)
    env = ogbench.make_env_and_datasets(name, env_only=True).unwrapped
    env.reset()
    qpos = numbers.normal(0, 0.03, (40, state))
    if "maze" in stem:
        qpos = env.cur_goal_xy + numbers.uniform(-1.5, 1.5, (40, 2))
    else:
        for cube, target in enumerate(env._data.mocap_pos):
            qpos[:, 14 + 7 * cube : 17 + 7 * cube] += target
    ends = np.isin(np.arange(40), (11, 12, 39))
    return env, {
        "observations": numbers.normal(size=(40, size)).astype(np.float32),
        "actions": numbers.uniform(-1, 1, (40, actions)).astype(np.float32),
        "terminals": ends,
        "qpos": qpos.astype(np.float32),
        "qvel": qpos.astype(np.float32),
    }


@pytest.mark.parametrize(
    "name",
    [
        "pointmaze-medium-navigate-singletask-v0",
        "pointmaze-medium-navigate-singletask-task3-v0",
        "cube-double-play-singletask-task2-v0",
    ],
)
def test_as_the_package_loads_it(name: str, tmp_path: Path) -> None:
    """Rows, next observations, rewards and masks; ends of trajectories are timeouts unless the task has succeeded."""
    parts = parse_name(name)
    assert parts is not None
    path = tmp_path / f"{parts.stem}.npz"
    env, arrays = near_goals(parts.stem, name)
    np.savez(path, **arrays)
    raw = load_dataset(name, tmp_path, infos=True)
    theirs = ogbench.load_dataset(str(path), add_info=True)
    relabel_dataset(parts.env_id, env, theirs)
    for field in ("observations", "actions", "next_observations", "rewards"):
        assert np.array_equal(getattr(raw, field), theirs[field]), field
    assert np.array_equal(raw.terminals, theirs["masks"] == 0)
    assert np.array_equal(raw.terminals | raw.timeouts, (theirs["masks"] == 0) | (theirs["terminals"] == 1))
    assert not (raw.terminals & raw.timeouts).any()
    assert 0 < raw.terminals.sum() < len(raw) == 37
    assert len(np.unique(raw.rewards)) == (2 if "maze" in name else 3)  # of both cubes, one, none
    assert raw.metadata == {"env_id": f"ogbench/{parts.env_id}", "reward_rule": "none"}
    assert np.array_equal(raw.infos["qpos"], arrays["qpos"][~arrays["terminals"]])
    assert len(TransitionBuffer.from_arrays(raw).transitions) == 37


NAME = "pointmaze-medium-navigate-singletask-v0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qpos": None}, "found actions, observations, qvel, terminals; OGBench's files also have qpos"),
        ({"qpos": np.zeros((40, 3))}, "'qpos' has 3 columns; pointmaze-medium-singletask-v0 has 2"),
        ({"qpos": np.zeros((39, 2))}, r"'qpos' has shape \(39, 2\); expected \(40, size\)"),
        ({"actions": np.zeros((39, 2))}, "'actions' has 39 rows, but 'observations' has 40"),
        ({"terminals": np.zeros(40)}, "the last row does not end a trajectory"),
        ({"terminals": np.ones(40)}, "all trajectories have one row only"),
        ({"terminals": np.full(40, 2)}, "expected only 0 and 1"),
        ({"observations": np.full((40, 2), np.nan)}, "NaN or infinite"),
    ],
)
def test_unusable_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = near_goals("pointmaze-medium-navigate-v0", NAME)[1] | changes
    np.savez(tmp_path / "pointmaze-medium-navigate-v0.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(DataError, match=message):
        load_dataset(NAME, tmp_path)


def test_unknown_names(tmp_path: Path) -> None:
    for name in ("visual-cube-single-play-v0", "powderworld-easy-play-v0"):
        with pytest.raises(ConfigError, match=f"'{name}' has images as observations"):
            resolve(name)
    for name in ("pointmaze-tiny-navigate-singletask-v0", "pointmaze-medium-navigate-singletask-task9-v0"):
        parts = parse_name(name)
        assert parts is not None
        np.savez(tmp_path / f"{parts.stem}.npz", **near_goals("pointmaze-medium-navigate-v0", NAME)[1])
        with pytest.raises(ConfigError, match=f"unknown dataset '{name}'"):
            load_dataset(name, tmp_path)


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a mirror; what is no file of OGBench is refused, and a failure names the other ways."""
    mirror, home = tmp_path / "mirror", tmp_path / "home"
    mirror.mkdir()
    monkeypatch.setenv("OGBENCH_DATASET_URL", f"{mirror.as_uri()}/")
    monkeypatch.setattr("cepdiff.data.rl.ogbench.URL", (tmp_path / "nowhere").as_uri())
    with pytest.raises(DataError, match=r"not downloaded yet; run cepdiff data download pointmaze"):
        resolve(NAME, home, allow_download=False)
    with pytest.raises(DataError, match=r"a mirror in \$OGBENCH_DATASET_URL, .* `cepdiff collect pointmaze-medium"):
        resolve(NAME, home)
    served = mirror / "pointmaze-medium-navigate-v0.npz"
    served.write_bytes(b"<html></html>")
    with pytest.raises(DataError, match=r"a file of 13 bytes that is not pointmaze-medium-navigate-v0: not an"):
        resolve(NAME, home)
    assert not home.exists()
    np.savez(served, **near_goals("pointmaze-medium-navigate-v0", NAME)[1])
    assert resolve(NAME, home) == home / "pointmaze-medium-navigate-v0.npz"
    assert len(load_dataset(NAME, home)) == 37


def test_the_default_folder_is_the_packages_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OGBENCH_DATASET_URL", (tmp_path / "none").as_uri())
    path = tmp_path / ".ogbench" / "data" / "pointmaze-medium-navigate-v0.npz"
    with pytest.raises(DataError, match=f"{path}: not downloaded yet"):
        resolve(NAME, allow_download=False)


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "pointmaze-medium-navigate-v0.npz", **near_goals("pointmaze-medium-navigate-v0", NAME)[1])
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[ogbench\]"):
        load_dataset(NAME, tmp_path)
