"""Files in D4RL's layout: what is read, and one clear line for each error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cepdiff.data.rl.arrays import BLOCK_ROWS, RawArrays
from cepdiff.data.rl.hdf5 import read_arrays, read_header, timeouts_at, write_arrays
from cepdiff.errors import DataError, OutputError

Make = Callable[..., RawArrays]
MakeFile = Callable[..., Path]


@pytest.mark.parametrize("compress", [True, False])
def test_round_trip(make_raw: Make, tmp_path: Path, compress: bool) -> None:
    raw = make_raw(next_observations=np.ones((10, 2), np.float32), infos={"qpos": np.ones((10, 3))})
    path = tmp_path / "new" / "a.hdf5"
    facts = {"env_id": "Hopper-v4", "action_low": (-2.0,), "env_kwargs": {"x": 1}, "seed": 3, "recipe": None}
    write_arrays(path, raw, facts, compress=compress)
    back = read_arrays(path)
    for name, array in raw.fields.items():
        np.testing.assert_array_equal(back.fields[name], array)
        assert back.fields[name].dtype == array.dtype
    assert back.metadata == {k: v for k, v in facts.items() if v is not None}
    assert [p.name for p in path.parent.iterdir()] == ["a.hdf5"]
    with h5py.File(path) as file:
        assert file["infos/qpos"].shape == (10, 3)
    assert read_header(path) == (10, back.metadata)


def test_a_failed_write_leaves_the_old_file(make_raw: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    write_arrays(path, make_raw())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_arrays(path, make_raw(), {"bad": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="cannot be written"):
        write_arrays(path / "below" / "b.hdf5", make_raw())


def test_other_types_and_shapes_are_converted(make_raw: Make, make_file: MakeFile) -> None:
    raw = make_raw()
    path = make_file(
        observations=raw.observations.astype(np.float64),
        rewards=raw.rewards.astype(np.float64)[:, None],
        terminals=raw.terminals.astype(np.uint8),
        timeouts=raw.timeouts.astype(np.float32)[:, None],
    )
    back = read_arrays(path)
    for name, array in raw.fields.items():
        np.testing.assert_array_equal(back.fields[name], array)
        assert back.fields[name].dtype == array.dtype


@pytest.mark.parametrize(("name", "value"), [("env_id", 3), ("env_kwargs", "[1]"), ("env_kwargs", '{"a":')])
def test_an_environment_that_is_none_is_named(make_file: MakeFile, name: str, value: object) -> None:
    path = make_file()
    with h5py.File(path, "a") as file:
        file[f"metadata/{name}"] = value
    with pytest.raises(DataError, match=f"metadata '{name}' is .*; expected "):
        read_header(path)


def test_metadata_from_attributes_and_without_weights(make_file: MakeFile) -> None:
    path = make_file()
    with h5py.File(path, "a") as file:
        file.attrs["env_id"] = "Walker2d-v4"
        file["metadata/algorithm"] = "SAC"
        file["metadata/iteration"] = np.int64(7)
        file["metadata/policy/fc0/weight"] = np.ones((256, 256))
        file["metadata/bias"] = np.ones(1000)
    assert read_arrays(path).metadata == {"env_id": "Walker2d-v4", "algorithm": "SAC", "iteration": 7}


def nan_rows(*rows: int) -> np.ndarray:
    array = np.zeros((10, 2), np.float32)
    array[list(rows), 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"timeouts": None}, r"'timeouts' is missing.*found actions, observations, rewards, terminals$"),
        ({"actions": None}, r"'actions' is missing; found observations"),
        ({"rewards": np.zeros(9)}, r"'rewards' has 9 rows, but 'observations' has 10"),
        ({"next_observations": np.zeros((9, 2))}, r"'next_observations' has 9 rows"),
        ({"next_observations": np.zeros((10, 3))}, r"shape \(10, 3\), but 'observations' \(10, 2\)"),
        ({"observations": np.zeros(10)}, r"'observations' has shape \(10,\); expected \(rows, size\)"),
        ({"actions": np.zeros((10, 0))}, r"'actions' has shape \(10, 0\)"),
        ({"rewards": np.zeros((10, 2))}, r"'rewards' has shape \(10, 2\); expected \(rows,\)"),
        ({"observations": 3.0}, r"'observations' has shape \(\)"),
        ({"observations": nan_rows(4)}, r"'observations' is NaN or infinite in 1 row: 4;"),
        ({"observations": nan_rows(1, 2, 3, 5, 7, 9)}, r"NaN or infinite in 6 rows: 1, 2, 3, 5, 7, \.\.\.;"),
        ({"rewards": np.where(np.arange(10) == 8, np.inf, 0)}, r"'rewards' is NaN or infinite in 1 row: 8"),
        ({"rewards": np.full(10, 1e300)}, r"'rewards' is NaN or infinite in 10 rows"),  # beyond float32
        ({"terminals": np.arange(10)}, r"'terminals' contains 2; expected only 0 and 1"),
        ({"actions": np.full((10, 1), b"x")}, r"'actions' has type \|S1; expected numbers"),
    ],
)
def test_unusable_arrays(make_file: MakeFile, overrides: dict[str, object], message: str) -> None:
    path = make_file(**overrides)
    with pytest.raises(DataError, match=message) as caught:
        read_arrays(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("item", [h5py.SoftLink("/nowhere"), None])
def test_an_array_that_is_a_group_or_a_dangling_link(make_file: MakeFile, item: object) -> None:
    path = make_file()
    with h5py.File(path, "a") as file:
        if item is None:
            file.create_group("next_observations")
        else:
            file["next_observations"] = item
    with pytest.raises(DataError, match="'next_observations' is a group, or a link that leads nowhere"):
        read_arrays(path)


def test_bad_rows_are_numbered_across_blocks(make_raw: Make) -> None:
    rows = BLOCK_ROWS + 10
    rewards = np.zeros(rows, np.float32)
    rewards[[3, BLOCK_ROWS + 5]] = np.nan
    raw = RawArrays(np.zeros((rows, 1)), np.zeros((rows, 1)), rewards, np.zeros(rows), np.zeros(rows))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"in 2 rows: 3, {BLOCK_ROWS + 5};"):
        raw.validate()


def test_no_rows(make_file: MakeFile) -> None:
    empty = np.zeros(0)
    path = make_file(
        observations=np.zeros((0, 2)),
        actions=np.zeros((0, 1)),
        rewards=empty,
        terminals=empty,
        timeouts=empty,
    )
    with pytest.raises(DataError, match="has no rows"):
        read_arrays(path)


def test_files_which_are_no_hdf5(make_raw: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_arrays(tmp_path / "absent.hdf5")
    with pytest.raises(DataError, match="is a folder"):
        read_arrays(tmp_path)
    text = tmp_path / "text.hdf5"
    text.write_text("<html>not found</html>")
    with pytest.raises(DataError, match="not an HDF5 file, or truncated"):
        read_arrays(text)
    torn = tmp_path / "torn.hdf5"
    write_arrays(torn, make_raw())
    whole = torn.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1):
        torn.write_bytes(whole[:size])
        with pytest.raises(DataError, match="not an HDF5 file, or truncated"):
            read_arrays(torn)


def test_torn_bytes_inside_a_file(make_raw: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    write_arrays(path, make_raw())
    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="truncated"):
        read_arrays(path)


def test_a_file_without_timeouts_is_cut_at_the_horizon(make_raw: Make, tmp_path: Path) -> None:
    """D4RL's rule for its oldest files: a timeout after that many steps without a terminal."""
    path = tmp_path / "old.hdf5"
    write_arrays(path, make_raw(terminals=np.arange(10) == 4))
    with h5py.File(path, "a") as file:
        del file["timeouts"]
    with pytest.raises(DataError, match="'timeouts' is missing"):
        read_arrays(path)
    raw = read_arrays(path, horizon=3)
    np.testing.assert_array_equal(np.flatnonzero(raw.timeouts), [2, 7])  # rows 0-2, 3-4 (terminal), 5-7, 8-9
    assert raw.metadata["timeouts_from_horizon"] == 3


@pytest.mark.parametrize("horizon", [1, 2, 5, 100])
def test_timeouts_at_a_horizon_count_as_a_loop_does(horizon: int) -> None:
    terminals = np.random.default_rng(0).random(200) < 0.1
    expected, steps = [], 0
    for terminal in terminals:
        steps += 1
        expected.append(steps == horizon and not terminal)
        if terminal or steps == horizon:
            steps = 0
    np.testing.assert_array_equal(timeouts_at(horizon, terminals), expected)
