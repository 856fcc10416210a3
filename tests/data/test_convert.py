"""Files in D4RL's layout and Minari datasets, both ways: bit for bit, with all metadata, overwriting nothing."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import contents, native, random_file

from cepdiff.data.minari import convert as convert_module
from cepdiff.data.minari import episodes as minari_episodes
from cepdiff.data.minari.convert import convert
from cepdiff.data.minari.read import LAYOUT_FILE, MARK, read_minari
from cepdiff.data.minari.write import bare_environment
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.hdf5 import read_arrays, write_arrays
from cepdiff.errors import DataError

minari = pytest.importorskip("minari")
from gymnasium import spaces  # noqa: E402
from minari.data_collector import EpisodeBuffer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def assert_equal_buffers(one: Any, other: Any) -> None:
    first, second = TransitionBuffer.from_arrays(one), TransitionBuffer.from_arrays(other)
    for name, value in vars(first).items():
        if hasattr(value, "numpy"):
            np.testing.assert_array_equal(value.numpy(), getattr(second, name).numpy(), err_msg=name)
        elif name != "content_hash":  # it depends on which arrays the source had: Minari always has next observations
            assert value == getattr(second, name)


@pytest.mark.parametrize("seed", range(24))
def test_file_there_and_back(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minari_episodes, "BLOCK_ROWS", 1 + seed)  # several blocks
    source = random_file(tmp_path / "a.hdf5", seed)
    made = convert(str(source), "minari:test/a-v0", tmp_path)
    back = tmp_path / "b.hdf5"
    again = convert("minari:test/a-v0", str(back), tmp_path)
    assert contents(back) == contents(source)
    assert (made.rows, made.episodes) == (again.rows, again.episodes)
    direct, through = read_arrays(source, infos=True), read_minari("test/a-v0", tmp_path, infos=True)
    assert_equal_buffers(direct, through)
    assert direct.metadata.items() <= through.metadata.items()
    for name, array in direct.infos.items():
        assert through.infos[name].tobytes() == array.tobytes()
    convert(str(back), "minari:test/b-v0", tmp_path)
    convert("minari:test/b-v0", str(tmp_path / "c.hdf5"), tmp_path)
    assert contents(tmp_path / "c.hdf5", without=()) == contents(back, without=())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5", "b.hdf5", "c.hdf5", "test"]


def test_minari_holds_what_a_stranger_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    source = random_file(tmp_path / "a.hdf5", 6)
    made = convert(str(source), "minari:test/a-v0", describe=lambda *_: bare_environment("Pendulum-v1", {}, 200))
    assert made.env_installed
    dataset = minari.load_dataset("test/a-v0")
    raw = read_arrays(source, infos=True)
    assert (dataset.total_steps, dataset.total_episodes) == (len(raw), made.episodes)
    assert (dataset.env_spec.id, dataset.storage.metadata["ref_min_score"]) == ("Pendulum-v1", -1000.5)
    assert dataset.storage.metadata[MARK]["unknown_final_observations"] is True
    episodes = list(dataset.iterate_episodes())
    np.testing.assert_array_equal(np.concatenate([e.actions for e in episodes]), raw.actions)
    for episode in episodes:
        assert episode.observations.shape == (len(episode) + 1, 3)
        np.testing.assert_array_equal(episode.observations[-1], episode.observations[-2])
        assert dataset.observation_space.contains(episode.observations[0])
    assert all(e.terminations[-1] or e.truncations[-1] for e in episodes)


def test_unknown_successors_stay_unknown(tmp_path: Path) -> None:
    source = random_file(tmp_path / "a.hdf5", 0)
    convert(str(source), "minari:test/a-v0", tmp_path)
    raw = read_minari("test/a-v0", tmp_path)
    assert raw.next_observations is None
    assert not raw.timeouts[-1]  # the data end in the middle of an episode: no time limit
    buffer = TransitionBuffer.from_arrays(raw)
    assert buffer.next_index[-1] == -1
    assert not buffer.episode_returns()[1][-1]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}/{key}").items()}
    array = np.asarray(value)
    return {name: (array.dtype, array.shape, array.tolist() if array.dtype == object else array.tobytes())}


def assert_equal_datasets(one: str, other: str) -> None:
    first, second = minari.load_dataset(one), minari.load_dataset(other)
    for name in ("seed", "options", "weight"):
        get = [[m.get(name) for m in d.storage.get_episode_metadata(range(len(d)))] for d in (first, second)]
        assert get[0] == get[1]
    for a, b in zip(first.iterate_episodes(), second.iterate_episodes(), strict=True):
        assert flat(vars(a)) == flat(vars(b))
    changing = {"dataset_id", "dataset_size"}
    metadata = [{k: v for k, v in d.storage.metadata.items() if k not in changing} for d in (first, second)]
    assert metadata[0] == metadata[1]


@pytest.mark.parametrize("env", [None, "Pendulum-v1"])
def test_minari_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str | None) -> None:
    references = {} if env is None else {"env": env, "ref_min_score": -1000.0, "ref_max_score": -100.0}
    native(tmp_path, monkeypatch, **references)
    files = [tmp_path / "a.hdf5", tmp_path / "b.hdf5"]
    convert("minari:test/native-v0", str(files[0]))
    convert(str(files[0]), "minari:test/again-v0")
    assert_equal_datasets("test/native-v0", "test/again-v0")
    assert not (tmp_path / "test/again-v0/data" / LAYOUT_FILE).exists()
    convert("minari:test/again-v0", str(files[1]), compress=False)
    assert contents(files[0], without=()) == contents(files[1], without=())
    file, through = read_arrays(files[0], infos=True), read_minari("test/native-v0", infos=True)
    assert_equal_buffers(file, through)
    assert file.timeouts.tolist() == [False, False, False, True, False, False, False, True]
    assert file.metadata == through.metadata
    assert file.metadata.get("env_id") == env
    np.testing.assert_array_equal(file.infos["qpos"], through.infos["qpos"])
    assert file.infos["qpos"].dtype == np.float64


def test_notes_added_to_a_converted_dataset_go_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    convert(str(random_file(tmp_path / "a.hdf5", 1)), "minari:test/a-v0")
    minari.load_dataset("test/a-v0").storage.update_metadata({"author": {"me"}})
    convert("minari:test/a-v0", str(tmp_path / "b.hdf5"))
    convert(str(tmp_path / "b.hdf5"), "minari:test/b-v0")
    assert minari.load_dataset("test/b-v0").storage.metadata["author"] == {"me"}
    assert contents(tmp_path / "b.hdf5") == contents(tmp_path / "a.hdf5")


def maze(name: str, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch, root: Path) -> dict[str, Any]:
    """`test/maze-v0`, whose observations are the dictionary of a Gymnasium-Robotics maze."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    parts = {part: np.random.default_rng(size).normal(size=(4, size)) for part, size in sizes.items()}
    episode = EpisodeBuffer(
        observations=parts,
        actions=np.zeros((3, 2), np.float32),
        rewards=[0.0, 0.0, 1.0],
        terminations=[False] * 3,
        truncations=[False, False, True],
        infos={"success": np.array([False, False, True])},
    )
    dataset = minari.create_dataset_from_buffers(
        "test/maze-v0",
        [episode],
        observation_space=spaces.Dict({k: spaces.Box(-np.inf, np.inf, (v,), np.float64) for k, v in sizes.items()}),
        action_space=spaces.Box(-1, 1, (2,), np.float32),
    )
    dataset.storage.update_metadata({"env_spec": bare_environment(name, {}, None).spec})
    return parts


@pytest.mark.parametrize(
    ("env_id", "size", "order"),
    [("AntMaze_UMaze-v4", 27, ("achieved_goal", "observation")), ("PointMaze_Open-v3", 4, ("observation",))],
)
def test_mazes_of_gymnasium_robotics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env_id: str, size: int, order: tuple[str, ...]
) -> None:
    parts = maze(env_id, {"achieved_goal": 2, "desired_goal": 2, "observation": size}, monkeypatch, tmp_path)
    raw = read_minari("test/maze-v0", infos=True)
    vectors = np.concatenate([parts[part] for part in order], axis=1)
    np.testing.assert_array_equal(raw.observations, vectors[:-1].astype(np.float32))
    np.testing.assert_array_equal(raw.infos["desired_goal"], parts["desired_goal"][:-1])
    cell = {"AntMaze_UMaze-v4": 4.0, "PointMaze_Open-v3": 1.0}[env_id]
    assert raw.metadata["goal_range"] == pytest.approx(np.ptp(parts["desired_goal"], axis=0).max() / cell)
    convert("minari:test/maze-v0", str(tmp_path / "a.hdf5"))
    assert_equal_buffers(read_arrays(tmp_path / "a.hdf5"), raw)
    convert(str(tmp_path / "a.hdf5"), "minari:test/again-v0")
    assert_equal_datasets("test/maze-v0", "test/again-v0")


def test_other_dictionaries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maze("FrankaKitchen-v1", {"observation": 5}, monkeypatch, tmp_path)
    with pytest.raises(DataError, match="the observation space is Dict"):
        convert("minari:test/maze-v0", str(tmp_path / "a.hdf5"))
    assert not (tmp_path / "a.hdf5").exists()


def test_memory_is_bounded_by_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, files = 12_000, [tmp_path / "small.hdf5", tmp_path / "large.hdf5"]
    for path, count in zip(files, (500, rows), strict=True):
        timeouts = np.arange(count) % 200 == 199
        wide = np.random.default_rng(0).normal(size=(count, 40)).astype(np.float32)
        arrays = RawArrays(wide, wide[:, :2].clip(-1, 1), wide[:, 0], ~timeouts & timeouts, timeouts, infos={"a": wide})
        write_arrays(path, arrays, compress=False)
    monkeypatch.setattr(minari_episodes, "BLOCK_ROWS", 500)
    monkeypatch.setattr(convert_module, "BLOCK_ROWS", 500)
    peaks = {}
    for path in files:  # the small one first, to get lazy imports out of the way
        tracemalloc.start()
        convert(str(path), f"minari:test/{path.stem}-v0", tmp_path)
        convert(f"minari:test/{path.stem}-v0", str(tmp_path / f"back-{path.stem}.hdf5"), tmp_path)
        peaks[path.stem] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks["large"] < 0.3 * files[1].stat().st_size
