"""robomimic's and OGBench's layouts, by value, and what cannot be read."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import h5py
import numpy as np
import pytest

from cepdiff.data.checks.defects import findings_of
from cepdiff.data.minari.convert import convert
from cepdiff.data.rl.arrays import NOTES
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.source import load_dataset
from cepdiff.errors import DataError

MakeDemos = Callable[..., Path]


def demo(start: int, rewards: list[float], dones: list[int]) -> dict[str, Any]:
    """Rows numbered from `start`: "b_pos" holds the row, "a_vel" (row, -row)."""
    rows = start + np.arange(len(rewards) + 1, dtype=np.float32)
    keys = {"b_pos": rows, "a_vel": np.stack([rows, -rows], axis=1)}
    return {
        "actions": np.full((len(rewards), 1), start / 100),
        "rewards": np.array(rewards),
        "dones": np.array(dones),
        **{f"obs/{name}": value[:-1] for name, value in keys.items()},
        **{f"next_obs/{name}": value[1:] for name, value in keys.items()},
    }


@pytest.fixture
def make_demos(tmp_path: Path) -> MakeDemos:
    """Write demonstrations by name; `env_args` is the attribute of `data`, other keywords change demo_2."""

    def make(demos: dict[str, dict[str, Any]] | None = None, env_args: Any = None, **changes: Any) -> Path:
        demos = demos or {
            "demo_10": demo(20, [0, 0], [0, 1]),
            "demo_2": demo(10, [0, 1, 1], [0, 1, 1]) | changes,
        }
        path = tmp_path / "demos.hdf5"
        with h5py.File(path, "w") as file:
            for name, arrays in demos.items():
                for key, values in arrays.items():
                    if values is not None:
                        file[f"data/{name}/{key}"] = values
            if env_args is not None:
                file["data"].attrs["env_args"] = env_args
        return path

    return make


def test_robomimic(make_demos: MakeDemos) -> None:
    """Demonstrations in numeric order; vectors by name; the done of the unrewarded last step is a timeout."""
    raw = load_dataset(str(make_demos()))
    rows = np.array([10, 11, 12, 20, 21], np.float32)
    assert np.array_equal(raw.observations, np.stack([rows, -rows, rows], axis=1))
    assert raw.next_observations is not None
    assert np.array_equal(raw.next_observations[:, 0], rows + 1)
    assert raw.actions[:, 0].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.2])
    assert raw.rewards.tolist() == [0, 1, 1, 0, 0]
    assert raw.terminals.tolist() == [False, True, True, False, False]
    assert raw.timeouts.tolist() == [False, False, False, False, True]
    found = {(f.level, f.message) for f in findings_of(raw) if f.name == "layout"}
    assert found == {
        ("info", "observations are, in this order: a_vel, b_pos"),
        ("warning", "1 of 2 demonstrations end with done = 1 and reward 0: these ends are read as timeouts"),
    }


def test_dense_rewards_do_not_show_success(make_demos: MakeDemos) -> None:
    raw = load_dataset(str(make_demos({"demo_0": demo(0, [0.1, 0.3], [0, 1]), "demo_1": demo(9, [0.2], [1])})))
    assert raw.terminals.tolist() == [False, True, True]
    assert not raw.timeouts.any()
    assert "read as terminals: values are wrong if some were only cut" in raw.metadata[NOTES]


def test_a_demonstration_without_done_is_cut(make_demos: MakeDemos) -> None:
    arrays = {name: value for name, value in demo(0, [0, 0], [0, 0]).items() if not name.startswith("next_obs")}
    raw = load_dataset(str(make_demos({"demo_0": arrays, "demo_1": arrays})))
    assert raw.next_observations is None
    assert raw.timeouts.tolist() == [False, True, False, True]
    assert TransitionBuffer.from_arrays(raw).next_index.tolist() == [1, -1, 3, -1]


def test_next_observations_that_repeat_their_own_are_not_used(make_demos: MakeDemos) -> None:
    arrays = demo(0, [0, 0], [0, 0])
    repeated = {f"next_{name}": values for name, values in arrays.items() if name.startswith("obs/")}
    raw = load_dataset(str(make_demos({"demo_0": arrays | repeated})))
    assert raw.next_observations is None
    assert "'next_obs' only repeats 'obs'" in raw.metadata[NOTES]


def test_images_are_left_out_aloud(make_demos: MakeDemos) -> None:
    raw = load_dataset(str(make_demos(**{"obs/view": np.zeros((3, 4, 4, 3), np.uint8)})))
    assert raw.observations.shape == (5, 3)
    assert "the observations leave out view: only vectors are read" in raw.metadata[NOTES]


@pytest.mark.parametrize(
    ("env_args", "expected"),
    [
        ({"type": 2, "env_name": "Hopper-v4", "env_kwargs": {}}, {"env_id": "Hopper-v4"}),
        ({"type": 2, "env_name": "A-v0", "env_kwargs": {"a": 1}}, {"env_id": "A-v0", "env_kwargs": {"a": 1}}),
        ({"type": 1, "env_name": "Lift", "env_kwargs": {"a": 1}}, {}),
    ],
)
def test_only_gym_environments_are_named(
    make_demos: MakeDemos, env_args: dict[str, Any], expected: dict[str, Any]
) -> None:
    metadata = load_dataset(str(make_demos(env_args=json.dumps(env_args)))).metadata
    assert {name: value for name, value in metadata.items() if name.startswith("env")} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "'/data/demo_2/rewards' is missing; found actions, dones, next_obs, obs"),
        ({"rewards": np.zeros(4)}, r"'/data/demo_2/rewards' has shape \(4,\), but 'actions' \(3, 1\)"),
        ({"dones": np.array([0, 1, 2])}, "contains 2; expected only 0 and 1"),
        ({"obs/b_pos": None}, "'/data/demo_10/obs' holds a_vel, b_pos, but the first one a_vel"),
        (
            {"obs/b_pos": np.zeros((3, 2))},
            r"'observations' of demo_10 have shape \(2, 3\), but those of demo_2 \(3, 4\)",
        ),
        ({"next_obs/b_pos": np.zeros((3, 2))}, r"'next_observations' of demo_10 have shape \(2, 3\), but those"),
        ({"actions": np.zeros((3, 2))}, r"'actions' of demo_10 have shape \(2, 1\), but those of demo_2 \(3, 2\)"),
        ({"obs/b_pos": np.zeros(2)}, r"'/data/demo_2/obs/b_pos' has shape \(2,\); expected \(3, size\)"),
        ({"obs/a_vel": None, "obs/b_pos": None}, "'/data/demo_2/obs' holds nothing.*dataset_states_to_obs"),
        ({"obs/b_pos": np.array([b"a", b"b", b"c"])}, "expected numbers"),
        ({"rewards": h5py.Empty("f4")}, "'/data/demo_2/rewards' is empty; expected numbers"),
        ({"env_args": "[]"}, "'env_args' of 'data' is not a JSON object"),
    ],
)
def test_unusable_demonstrations(make_demos: MakeDemos, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(str(make_demos(**changes)))
    assert "\n" not in str(caught.value)


TRAJECTORIES = {  # two of 3 rows; the task succeeds in row 4
    "observations": np.arange(6, dtype=np.float32)[:, None],
    "actions": np.zeros((6, 1), np.float32),
    "terminals": np.array([0, 0, 1, 0, 0, 1]),
    "masks": np.array([1, 1, 1, 1, 0, 1]),
    "rewards": np.array([-1, -1, -1, -1, 0, -1]),
}


def saved(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, **{name: value for name, value in (TRAJECTORIES | changes).items() if value is not None})
    return str(path)


@pytest.mark.parametrize(
    "changes",
    [{}, {"terminals": [0, 1, 1, 0, 1, 1], "valids": [1, 1, 0, 1, 1, 0]}, {"masks": np.array([1.0, 1, 1, 1, 0, 1])}],
    ids=["regular", "compact", "float"],
)
def test_ogbench(tmp_path: Path, changes: dict[str, Any]) -> None:
    """`terminals` end a trajectory, whose last next state is unknown; only masks stop bootstrapping."""
    raw = load_dataset(saved(tmp_path, **changes))
    assert raw.rewards.tolist() == [-1, -1, -1, -1, 0, -1]
    assert raw.terminals.tolist() == [False, False, False, False, True, False]
    assert raw.timeouts.tolist() == [False, False, True, False, False, True]
    assert TransitionBuffer.from_arrays(raw).next_index.tolist() == [1, 2, -1, 4, 4, -1]
    assert NOTES not in raw.metadata


def test_ogbench_with_rewards_of_a_task(tmp_path: Path) -> None:
    following = np.arange(1, 7, dtype=np.float32)[:, None]
    raw = load_dataset(saved(tmp_path, rewards=np.arange(6.0), next_observations=following))
    assert raw.rewards.tolist() == [0, 1, 2, 3, 4, 5]
    assert raw.next_observations is not None
    assert NOTES not in raw.metadata


def test_masks_that_repeat_the_ends_are_named(tmp_path: Path) -> None:
    raw = load_dataset(saved(tmp_path, masks=np.array([1, 1, 0, 1, 1, 0])))
    assert "masks are 0 at the end of each trajectory only" in raw.metadata[NOTES]


def test_npz_with_the_names_of_d4rl(tmp_path: Path) -> None:
    changes = {"masks": None, "rewards": np.arange(6.0), "timeouts": np.array([0, 0, 0, 0, 1, 0])}
    raw = load_dataset(saved(tmp_path, **changes))
    assert raw.terminals.tolist() == [False, False, True, False, False, True]
    assert raw.timeouts.tolist() == [False, False, False, False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": None, "rewards": None}, "OGBench's files have no rewards of their own: name the task instead, such"),
        ({"rewards": None}, "found actions, masks, observations, terminals; OGBench's files have no rewards"),
        ({"masks": None, "rewards": np.zeros(6)}, r"add 'timeouts' \(D4RL's layout\) or 'masks' \(OGBench's\)"),
        ({"actions": None}, "found masks, observations, rewards, terminals; expected the arrays observations, actions"),
        ({"masks": np.full(6, 0.5)}, "'masks' has shape .* values from 0.5 to 0.5; expected only 0 and 1"),
        ({"masks": np.ones(5)}, r"'masks' has shape \(5,\) and .*of shape \(6,\)"),
        ({"masks": np.ones((6, 2))}, r"'masks' has shape \(6, 2\)"),
        ({"observations": np.full((6, 1), 1e300)}, "'observations' is NaN or infinite"),
        ({"actions": np.zeros((5, 1))}, "'actions' has 5 rows, but 'observations' has 6"),
        ({"observations": np.array(["a"] * 6)}, "'observations' has type <U1; expected numbers"),
        ({"observations": np.array([{}] * 6)}, "not an .npz archive of arrays"),
        ({"observations": np.full((6, 1), np.nan)}, "NaN or infinite"),
    ],
)
def test_unusable_npz(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(saved(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 3, 30, 300, 700])
def test_torn_npz(tmp_path: Path, size: int) -> None:
    path = Path(saved(tmp_path))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="archive of arrays, or truncated"):
        load_dataset(str(path))


def test_a_small_npz_that_declares_terabytes(tmp_path: Path) -> None:
    path = tmp_path / "huge.npz"
    with ZipFile(path, "w") as archive, archive.open("observations.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 4)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(DataError, match="archive of arrays, or truncated"):
        load_dataset(str(path))


def test_a_locked_file_is_named_as_such(make_demos: MakeDemos) -> None:
    path = make_demos()
    with path.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="is locked, because a program has it open for writing"):
            load_dataset(str(path))


@pytest.mark.parametrize("layout", ["robomimic", "ogbench"])
def test_converted_to_d4rl(make_demos: MakeDemos, tmp_path: Path, layout: str) -> None:
    """The same arrays, metadata and findings."""
    source = str(make_demos()) if layout == "robomimic" else saved(tmp_path)
    done = convert(source, str(tmp_path / "flat.hdf5"), env_id="Reacher-v5")
    raw, flat = load_dataset(source), load_dataset(done.target)
    assert {name: array.tolist() for name, array in flat.fields.items()} == {
        name: array.tolist() for name, array in raw.fields.items()
    }
    assert flat.metadata == raw.metadata | {"env_id": "Reacher-v5"}
    assert done.rows == len(raw)
