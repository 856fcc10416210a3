"""The report of a file check: storage, arrays, and a figure of the arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from matplotlib.image import imread

from cepdiff.data.checks.plots import BINS, action_histogram, plot_data
from cepdiff.data.checks.report import check, file_findings
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.data.rl.tasks import TASKS, find_task
from cepdiff.errors import DataError

MakeFile = Callable[..., Path]
MakeRaw = Callable[..., RawArrays]


def test_wide_numbers_and_missing_checksums(make_file: MakeFile, make_raw: MakeRaw, tmp_path: Path) -> None:
    found = {f.name: f for f in file_findings(make_file(rewards=np.arange(10.0), timeouts=np.zeros(10, bool)))}
    assert found["float64"].message == "rewards are stored as float64"
    assert found["checksum"].message == "observations, actions, rewards, terminals, timeouts have no checksum"
    write_arrays(tmp_path / "packed.hdf5", make_raw())
    assert file_findings(tmp_path / "packed.hdf5") == []
    with h5py.File(tmp_path / "packed.hdf5", "a") as file:
        del file["rewards"]
        file.create_dataset("rewards", data=np.arange(10, dtype=np.float32), fletcher32=True)
    assert file_findings(tmp_path / "packed.hdf5") == []


def test_check_joins_both(make_file: MakeFile) -> None:
    found = check(str(make_file()))
    names = [f.name for f in found]
    assert names.index("rows") < names.index("environment") < names.index("checksum")
    assert json.loads(json.dumps([asdict(f) for f in found]))[0] == {
        "level": "info",
        "name": "rows",
        "message": "10 rows in 3 episodes, 2 complete",
        "handling": "",
    }


def test_check_knows_the_task(make_file: MakeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    task = find_task("antmaze-umaze-v0")
    monkeypatch.setitem(TASKS, task.name, task)
    path = make_file()
    assert task.url is not None
    path.rename(path.with_name(task.url.rsplit("/", 1)[1]))
    found = {f.name for f in check(task.name, path.parent) if f.level == "warning"}
    assert found == {"rewards"}  # 0 to 9, with the task's own environment


def flipped(path: Path, name: str) -> Path:
    """The same file with one bit flipped in the middle of the first stored chunk of `name`."""
    with h5py.File(path, "r") as file:
        chunk = file[name].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 16
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["observations", "rewards", "timeouts"])
@pytest.mark.parametrize("guard", [{"compression": "gzip"}, {"fletcher32": True}])
def test_a_flipped_bit_is_noticed(make_raw: MakeRaw, tmp_path: Path, name: str, guard: dict[str, object]) -> None:
    path = tmp_path / "flipped.hdf5"
    with h5py.File(path, "w") as file:
        for key, array in make_raw().fields.items():
            file.create_dataset(key, data=array, chunks=True, **guard)
    check(str(path))
    with pytest.raises(DataError, match=r"flipped.hdf5: not an HDF5 file, or truncated .*; download or write it again"):
        check(str(flipped(path, name)))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_truncated_file_is_noticed(make_raw: MakeRaw, tmp_path: Path, share: float) -> None:
    path = tmp_path / "short.hdf5"
    write_arrays(path, make_raw())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"short.hdf5: .*truncated"):
        check(str(path))


def test_action_histogram() -> None:
    actions = np.array([[-1, 0.5], [1, 0.5], [1, 0.5], [1, 0.5]], np.float32)
    shares, edges = action_histogram(actions)
    assert (shares.shape, edges[0], edges[-1]) == ((2, BINS), -1, 1)
    assert (shares[0, 0], shares[0, -1], shares.sum(axis=1).tolist()) == (0.25, 0.75, [1, 1])
    assert shares[1, np.searchsorted(edges, 0.5, side="right") - 1] == 1
    assert action_histogram(actions[:1, :1])[0].sum() == 1  # a single value has no range


@pytest.mark.parametrize("task", [None, find_task("hopper-medium-v2")])
def test_figure(make_raw: MakeRaw, tmp_path: Path, task: object) -> None:
    path = tmp_path / "new" / "figure.png"
    plot_data(make_raw(), path, task)  # type: ignore[arg-type]
    assert imread(path).std() > 0.1
    assert [f.name for f in path.parent.iterdir()] == ["figure.png"]
