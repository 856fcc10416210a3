"""Small files and Minari datasets with the features of D4RL's, home-made and Minari's own, for tests of `convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest


def random_file(path: Path, seed: int) -> Path:
    """A small file with features of D4RL's and home-made files; `seed` chooses the mix."""
    random = np.random.default_rng(seed)
    rows, size = int(random.integers(5, 40)), 3
    observations = random.normal(size=(rows, size)).astype(np.float64 if seed % 4 == 3 else np.float32)
    observations[1] = [-0.0, 0.0, 1e-40]  # bit patterns that `==` does not distinguish, and a subnormal
    terminals, timeouts = random.random(rows) < 0.15, random.random(rows) < 0.1
    terminals[-1], timeouts[-1] = [(False, False), (True, False), (False, True), (True, True)][seed % 4]
    with h5py.File(path, "w") as file:
        file["observations"] = observations
        file["actions"] = random.uniform(-1, 1, (rows, 2)).astype(np.float32)
        rewards = random.normal(size=rows)
        file["rewards"] = rewards[:, None].astype(np.float32) if seed % 3 == 1 else rewards
        file["terminals"] = terminals.astype(np.uint8) if seed % 5 == 2 else terminals
        file["timeouts"] = timeouts[:, None] if seed % 5 == 3 else timeouts
        if seed % 2:
            successors = np.concatenate([observations[1:], random.normal(size=(1, size))])
            ends = terminals | timeouts
            successors[ends] = random.normal(size=(ends.sum(), size))
            if seed % 4 == 1:  # known, but not equal to the next row's; in row 0 only the sign of a zero differs
                successors[[0, rows // 2]] = -observations[[1, 0]]
            file["next_observations"] = successors.astype(np.float64 if seed % 8 == 1 else observations.dtype)
        if seed % 3:
            file["infos/qpos"] = random.normal(size=(rows, 4))
            file["infos/goal"] = random.normal(size=(rows, 2)).astype(np.float32)
            file["infos/env_state/steps"] = np.arange(rows, dtype=np.int16)
            file["infos/note"] = "one for all rows"
            file["metadata/policy/fc0/weight"] = random.normal(size=(20, 20))
            file["metadata/recipe"] = "SAC"
            file["metadata/seed"] = 7
            file["metadata/action_low"], file["metadata/action_high"] = [-1.5, -1.25], [1.1, 2.0]
            file["metadata/env_kwargs"] = json.dumps({"x": 1})
            file.attrs["versions"] = "numpy 2"
        if seed % 4 == 2:
            file["metadata/env_id"], file["metadata/reference_min"] = "Pendulum-v1", -1000.5
            file["qpos_of_the_start"] = np.zeros(5)
    return path


def contents(path: Path, without: tuple[str, ...] = ("minari",)) -> dict[str, Any]:
    """Path -> (dtype, shape, bytes) of every dataset of a file, and every attribute."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if name.split("/")[0] in without:
            return
        found.update({f"{name}@{key}": value for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            value = item[()]
            found[name] = (item.dtype.str, item.shape, value if isinstance(value, bytes) else value.tobytes())

    with h5py.File(path) as file:
        found.update({f"@{key}": value for key, value in file.attrs.items()})
        file.visititems(visit)
    return found


def native(root: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """`test/native-v0` as written by Minari's own tools: float64, T + 1 infos, seeds, options, an open episode."""
    minari = pytest.importorskip("minari")
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    random = np.random.default_rng(0)
    episodes = []
    for number, (steps, ends) in enumerate([(3, (True, False)), (1, (False, True)), (4, (False, False))]):
        flags = np.zeros((2, steps), bool)
        flags[:, -1] = ends
        infos: dict[str, Any] = {
            "qpos": random.normal(size=(steps + 1, 2)),
            "nested": {"success": np.zeros(steps, np.int32)},
            "names": ["a"] * steps,
            "mass": 1.5,
        }
        episodes.append(
            EpisodeBuffer(
                seed=None if number == 1 else 40 + number,
                options={"start": {"x": 1.5}} if number == 2 else None,
                observations=random.normal(size=(steps + 1, 3)),
                actions=random.uniform(-2, 2, (steps, 1)).astype(np.float32),
                rewards=list(random.normal(size=steps)),
                terminations=list(flags[0]),
                truncations=list(flags[1]),
                infos=infos,
            )
        )
    given: dict[str, Any] = {
        "observation_space": spaces.Box(-np.inf, np.inf, (3,), np.float64),
        "action_space": spaces.Box(-2, 2, (1,), np.float32),
        "author": {"B. Author", "A. Author"},
        "description": "native",
        **options,
    }
    dataset = minari.create_dataset_from_buffers("test/native-v0", episodes, **given)
    dataset.storage.update_episode_metadata([{"weight": np.float32(0.5)}], [1])
