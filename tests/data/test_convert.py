"""Files in D4RL's layout and Minari datasets, both ways: bit for bit, with all metadata, overwriting nothing."""

from __future__ import annotations

import argparse
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cepdiff.cli import data_convert
from cepdiff.data.minari import convert as convert_module
from cepdiff.data.minari import episodes as minari_episodes
from cepdiff.data.minari.convert import convert
from cepdiff.data.minari.read import LAYOUT_FILE, MARK, read_minari
from cepdiff.data.minari.write import bare_environment
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.hdf5 import read_arrays, write_arrays
from cepdiff.errors import CepdiffError, ConfigError, DataError

minari = pytest.importorskip("minari")
from gymnasium import spaces  # noqa: E402
from minari.data_collector import EpisodeBuffer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


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


def native(root: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """`test/native-v0` as written by Minari's own tools: float64, T + 1 infos, seeds, options, an open episode."""
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


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_existing_targets_are_kept(tmp_path: Path) -> None:
    source = str(random_file(tmp_path / "a.hdf5", 1))
    convert(source, "minari:test/a-v0", tmp_path)
    (tmp_path / "test" / "own-v0").mkdir()
    (tmp_path / "test" / "own-v0" / "diary.txt").write_text("dear")
    before = snapshot(tmp_path)
    for arguments, message in [
        ((source, "minari:test/a-v0"), "already exists; choose another name or version, or add --overwrite"),
        (("minari:test/a-v0", source), "already exists; choose another name, or add --overwrite"),
    ]:
        with pytest.raises(DataError, match=message):
            convert(*arguments, tmp_path)
    for overwrite in (False, True):
        with pytest.raises(DataError, match="exists but is not a Minari dataset"):
            convert(source, "minari:test/own-v0", tmp_path, overwrite=overwrite)
    assert snapshot(tmp_path) == before
    other = random_file(tmp_path / "other.hdf5", 2)
    convert(str(other), "minari:test/a-v0", tmp_path, overwrite=True)
    convert("minari:test/a-v0", source, tmp_path, overwrite=True)
    assert contents(Path(source)) == contents(other)
    assert list(tmp_path.rglob(".*")) == []


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


def torn_copy(source: Path, name: str) -> None:
    """Corrupts one array inside a file; the file still opens."""
    with h5py.File(source, "a") as file:
        values = file[name][()]
        del file[name]
        file.create_dataset(name, data=values, compression="gzip")
    with h5py.File(source) as file:
        chunk = file[name].id.get_chunk_info(0)
    content = bytearray(source.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    source.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["observations", "terminals", "infos/qpos"])
def test_torn_files_leave_nothing(tmp_path: Path, name: str) -> None:
    source = random_file(tmp_path / "a.hdf5", 1)
    torn_copy(source, name)
    with pytest.raises(DataError, match=r"a\.hdf5: not an HDF5 file, or truncated"):
        convert(str(source), "minari:test/a-v0", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.hdf5"]


def test_torn_datasets_leave_nothing(tmp_path: Path) -> None:
    convert(str(random_file(tmp_path / "a.hdf5", 1)), "minari:test/a-v0", tmp_path)
    data = tmp_path / "test" / "a-v0" / "data"
    (data / LAYOUT_FILE).rename(data / "elsewhere")
    for read in (lambda: read_minari("test/a-v0", tmp_path), lambda: to_file(tmp_path)):
        with pytest.raises(DataError, match=r"the file d4rl_layout\.hdf5 is missing"):
            read()
    (data / "elsewhere").rename(data / LAYOUT_FILE)
    torn_copy(data / "main_data.hdf5", "episode_0/actions")
    with pytest.raises(DataError, match=r"minari:test/a-v0: cannot be read \(OSError"):
        to_file(tmp_path)
    (data / "main_data.hdf5").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"minari:test/a-v0: cannot be read \(OSError"):
        to_file(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5", "test"]


def to_file(root: Path) -> None:
    convert("minari:test/a-v0", str(root / "b.hdf5"), root)


def test_a_dataset_changed_after_its_conversion_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    convert(str(random_file(tmp_path / "a.hdf5", 0)), "minari:test/a-v0")
    dataset = minari.load_dataset("test/a-v0")
    first = vars(dataset[0])
    dataset.update_dataset_from_buffer([EpisodeBuffer(**{k: v for k, v in first.items() if k != "id"})])
    with pytest.raises(DataError, match=r"changed since it was converted \(\d+ steps then, \d+ now\)"):
        read_minari("test/a-v0")


def test_rows_changed_under_the_group_of_episodes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native(tmp_path, monkeypatch)
    path = tmp_path / "a.hdf5"
    convert("minari:test/native-v0", str(path))
    with h5py.File(path, "a") as file:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations"):
            values = file[name][:-1]
            del file[name]
            file[name] = values
    with pytest.raises(DataError, match="have 8 rows, its arrays 7; delete the group"):
        convert(str(path), "minari:test/a-v0")


@pytest.mark.parametrize(
    ("source", "target", "error", "message"),
    [
        ("a.hdf5", "a.hdf5", DataError, "already exists"),
        ("a.hdf5,a.hdf5", "minari:test/a-v0", ConfigError, "not one file in D4RL's layout"),
        ("minari:a/a-v0", "minari:test/a-v0", ConfigError, "both Minari datasets; one of them must be a .hdf5 file"),
        ("minari:test/a-v0", "a.csv", ConfigError, "expected a .hdf5 or .h5 file"),
        ("a.hdf5", "minari:test/a", DataError, "not a Minari id"),
        ("absent.hdf5", "minari:test/a-v0", DataError, "no such file"),
        ("reacher-repla", "minari:test/a-v0", ConfigError, "Did you mean reacher-replay"),
        ("minari:test/absent-v0", "b.hdf5", DataError, "cannot be downloaded"),
    ],
)
def test_names_that_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, error: type, message: str
) -> None:
    def refuse(dataset_id: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(minari, "download_dataset", refuse)
    monkeypatch.chdir(tmp_path)
    random_file(tmp_path / "a.hdf5", 1)
    with pytest.raises(error, match=message) as caught:
        convert(source, target, tmp_path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.hdf5"]


def test_actions_beyond_unknown_bounds(tmp_path: Path) -> None:
    source = random_file(tmp_path / "a.hdf5", 0)
    with h5py.File(source, "a") as file:
        file["actions"][3] = 1.75
    with pytest.raises(DataError, match=r"actions exceed \[-1, 1\].*--env_id"):
        convert(str(source), "minari:test/a-v0", tmp_path)
    environment = replace(bare_environment("Pendulum-v1", {}, None), action_low=(-2.0, -2.0), action_high=(2.0, 2.0))
    convert(str(source), "minari:test/a-v0", tmp_path, env_id="Pendulum-v1", describe=lambda *_: environment)
    metadata = read_minari("test/a-v0", tmp_path).metadata
    assert (metadata["action_high"], metadata["env_id"]) == ((2.0, 2.0), "Pendulum-v1")


@pytest.mark.parametrize("given", [{"env_id": "Pendulum-v1"}, {"env_kwargs": {"x": 1}}])
def test_an_environment_beside_the_one_of_the_source(tmp_path: Path, given: dict[str, Any]) -> None:
    source = str(random_file(tmp_path / "a.hdf5", 0))
    with h5py.File(source, "a") as file:
        file["metadata/env_id"] = "Reacher-v5"
    with pytest.raises(ConfigError, match=r"a.hdf5 already names its environment 'Reacher-v5'"):
        convert(source, "minari:test/a-v0", tmp_path, **given)
    convert(source, "minari:test/a-v0", tmp_path, env_id="Reacher-v5")
    with pytest.raises(ConfigError, match=r"minari:test/a-v0 already names its environment 'Reacher-v5'"):
        convert("minari:test/a-v0", str(tmp_path / "b.hdf5"), tmp_path, **given)
    assert not (tmp_path / "b.hdf5").exists()


def command(*arguments: str) -> int:
    parser, shared = argparse.ArgumentParser(), argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dataset_dir")
    shared.add_argument("--json", action="store_true")
    data_convert.add_parser(parser.add_subparsers(), shared)
    args = parser.parse_args(["convert", *arguments])
    code: int = args.run(args)
    return code


def test_the_command_on_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, back = str(tmp_path), str(tmp_path / "b.hdf5")
    assert command("reacher-replay", "minari:test/reacher-v0", "--dataset_dir", folder) == 0
    printed = capsys.readouterr()
    assert "reacher-replay.hdf5 (1.29 MB) -> " in printed.out
    assert "20,000 rows in 400 episodes" in printed.out
    assert "20.0k" in printed.err
    assert command("minari:test/reacher-v0", back, "--dataset_dir", folder, "--json", "--no-compress") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["episodes"], facts["env_id"]) == (20000, 400, "Reacher-v5")
    assert facts["target_bytes"] == Path(back).stat().st_size
    dataset = minari.MinariDataset(tmp_path / "test" / "reacher-v0" / "data")
    assert dataset.env_spec.max_episode_steps == 50
    dataset.recover_environment().close()


def test_the_command_on_an_environment_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = str(random_file(tmp_path / "a.hdf5", 0)), str(tmp_path)
    assert command(source, "minari:test/a-v0", "--dataset_dir", folder) == 0
    assert "has no environment; name one with --env_id" in capsys.readouterr().out
    given = ("--env_id", "Nowhere-v3", "--env_kwargs", '{"x": 1}', "--overwrite")
    assert command(source, "minari:test/a-v0", "--dataset_dir", folder, *given) == 0
    assert "'Nowhere-v3' cannot be made here: Minari's recover_environment will fail" in capsys.readouterr().out
    metadata = read_minari("test/a-v0", tmp_path).metadata
    assert (metadata["env_id"], metadata["env_kwargs"]) == ("Nowhere-v3", {"x": 1})
    assert minari.MinariDataset(tmp_path / "test" / "a-v0" / "data").env_spec.id == "Nowhere-v3"
    with pytest.raises(CepdiffError, match="--env_kwargs is not JSON"):
        command(source, "minari:test/b-v0", "--env_kwargs", "{")
