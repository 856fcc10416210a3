"""From a name to a file, and the command line for it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from cepdiff.cli.data import add_parser
from cepdiff.data.checks.report import check, describe
from cepdiff.data.rl import mirrors, published, source
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.source import dataset_folder, load_dataset, resolve, task_path
from cepdiff.data.rl.tasks import TASKS, Task
from cepdiff.errors import ConfigError, DataError

MakeFile = Callable[..., Path]
TASK = "hopper-medium-v2"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "datasets"
    folder.mkdir()
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    return folder


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["data", *words])
    code: int = args.run(args)
    return code


def test_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataset_folder() == home
    assert dataset_folder("/other") == Path("/other")
    monkeypatch.delenv("D4RL_DATASET_DIR")
    assert dataset_folder() == Path.home() / ".d4rl" / "datasets"


def test_resolve(home: Path, make_file: MakeFile) -> None:
    path = make_file()
    assert resolve(str(path)) == path
    for name in ("mine.hdf5", "other.h5", "hopper_medium-v2.hdf5"):
        shutil.copy(path, home / name)
    assert resolve("mine") == resolve("mine.hdf5") == home / "mine.hdf5"
    assert resolve("other") == home / "other.h5"
    assert resolve(TASK) == task_path(TASKS[TASK]) == home / "hopper_medium-v2.hdf5"
    assert resolve("mine", home) == home / "mine.hdf5"


def test_names_that_are_nothing(home: Path, make_file: MakeFile, tmp_path: Path) -> None:
    shutil.copy(make_file(), home / "hopper-own.hdf5")
    with pytest.raises(ConfigError, match=r"unknown dataset 'hoper-own'.*Did you mean hopper-own"):
        resolve("hoper-own")
    with pytest.raises(ConfigError, match="Did you mean hopper-medium-v2"):
        resolve("hoper-medium-v2")
    with pytest.raises(DataError, match=r"hoper-own.hdf5: no such file.*Did you mean hopper-own.hdf5"):
        resolve("hoper-own.hdf5")
    with pytest.raises(DataError, match="is a folder"):
        resolve(str(tmp_path))
    with pytest.raises(DataError, match=f"not downloaded yet; run cepdiff data download {TASK}"):
        resolve(TASK, allow_download=False)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()

    def addresses(task: Task, own: Sequence[str]) -> list[str]:
        return [f"{folder.as_uri()}/{task_path(task).name}"]

    monkeypatch.setattr(mirrors, "addresses", addresses)
    return folder


def test_a_task_is_downloaded(
    home: Path, mirror: Path, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = make_file().read_bytes()
    facts = published.Published(len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(published, "_table", lambda: {"gym_mujoco_v2/hopper_medium-v2.hdf5": facts})
    served, stored = mirror / "hopper_medium-v2.hdf5", home / "hopper_medium-v2.hdf5"
    served.write_bytes(bytes([content[0] ^ 1]) + content[1:])  # one bit
    with pytest.raises(
        DataError, match=rf"received a file of 4,640 bytes with SHA-256 \w{{64}}; D4RL's .* {facts.sha256}\)"
    ):
        resolve(TASK)
    served.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"the server offers 4,639 bytes of .*; expected 4,640\)"):
        resolve(TASK)
    assert list(home.iterdir()) == []
    served.write_bytes(content)
    assert resolve(TASK) == stored
    assert load_dataset(TASK).metadata["env_id"] == "cepdiff/Hopper-v2"
    assert stored.read_bytes() == content


UNLISTED = "maze2d-umaze-v1"
NAN = np.full(10, np.nan)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "received an empty file; expected an HDF5 file"),
        (b"<HTML></HTML>", "received an HTML page of 13 bytes; expected"),
        (b"not found\n", "received the text 'not found' of 10 bytes; expected"),
        (b"\x1f\x8b\x08", "received a gzip file of 3 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "received a Git LFS pointer of 43 bytes"),
        (
            b"\x89HDF\r\n\x1a\n",
            "received an HDF5 file of 8 bytes that does not hold maze2d-umaze-v1: not an HDF5 file, or",
        ),
        ({}, "'observations' has 2 columns; cepdiff/maze2d-umaze-v1 has 4"),
        ({"observations": np.zeros((10, 4))}, "'actions' has 1 columns; cepdiff/maze2d-umaze-v1 has 2"),
        ({"rewards": None}, "the array 'rewards' is missing"),
        (
            {"observations": np.zeros((10, 4)), "actions": np.zeros((10, 2)), "rewards": NAN},
            "'rewards' is NaN or infinite",
        ),
    ],
)
def test_what_is_not_the_data_of_a_task_is_not_stored(
    home: Path, mirror: Path, make_file: MakeFile, content: bytes | dict[str, object], found: str
) -> None:
    body = content if isinstance(content, bytes) else make_file(**content).read_bytes()
    (mirror / "maze2d-umaze-sparse-v1.hdf5").write_bytes(body)
    with pytest.raises(DataError) as caught:
        resolve(UNLISTED)
    assert found in str(caught.value)
    assert list(home.iterdir()) == []


def test_data_of_an_unlisted_task_are_stored(home: Path, mirror: Path, make_file: MakeFile) -> None:
    sizes = {"observations": np.zeros((10, 4)), "actions": np.zeros((10, 2)), "timeouts": None}
    make_file(**sizes).rename(mirror / "maze2d-umaze-sparse-v1.hdf5")
    assert load_dataset(UNLISTED).observations.shape == (10, 4)
    assert [path.name for path in home.iterdir()] == ["maze2d-umaze-sparse-v1.hdf5"]


def test_published_files_are_those_of_tasks() -> None:
    known = {task.url: entry for task in TASKS.values() if (entry := published.published(task))}
    assert len(known) == len(published._table()) == 97
    assert all(re.fullmatch(r"[0-9a-f]{64}", entry.sha256) for entry in known.values())
    assert len({entry.sha256 for entry in known.values()}) == 97
    assert max(entry.size for entry in known.values()) < 10**9


def test_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "gone", replace(TASKS["reacher-replay"], name="gone", embedded="gone.hdf5"))
    assert task_path(TASKS["gone"]).parent == Path(source.__file__).parents[1] / "embedded"
    with pytest.raises(DataError, match="reinstall cepdiff"):
        resolve("gone")


def test_describe(make_raw: Callable[..., RawArrays]) -> None:
    observations = make_raw().observations.copy()
    observations[:, 1] = 3
    observations[5] = observations[4]
    actions = np.zeros((10, 1), np.float32)
    actions[9] = 2
    facts = describe(make_raw(observations=observations, actions=actions, metadata={"env_id": "Hopper-v4"}))
    counts = {"rows": 10, "episodes": 3, "complete_episodes": 2, "terminals": 1, "timeouts": 1}
    assert counts.items() <= facts.items()
    assert facts["returns"] == {"mean": 15.0, "p90": pytest.approx(22.8), "max": 24.0}
    assert facts["normalized_returns"]["max"] == pytest.approx(100 * (24 + 20.272305) / (3234.3 + 20.272305))
    assert facts["episode_length"] == {"min": 3, "mean": pytest.approx(10 / 3), "max": 4}
    assert (facts["unknown_successors"], facts["successor_jumps"], facts["duplicate_rows"]) == (2, 0, 1)
    assert (facts["constant_observations"], facts["rows_beyond_bounds"]) == ([1], 1)
    assert facts["horizon"] == 1000
    json.dumps(facts)
    following = np.roll(observations, -1, axis=0)
    following[0] += 1
    again = describe(make_raw(next_observations=following, metadata={"reference_min": 0, "reference_max": 48}))
    assert (again["unknown_successors"], again["normalized_returns"]["max"]) == (0, 50)


def test_successor_jumps_are_counted(make_raw: Callable[..., RawArrays]) -> None:
    following = np.roll(make_raw().observations, -1, axis=0)
    following[[0, 2, 4]] += 1  # row 2 ends an episode: no jump
    assert describe(make_raw(next_observations=following))["successor_jumps"] == 2


def test_check_warns(home: Path, make_file: MakeFile) -> None:
    none = np.zeros(10, bool)
    constant = np.ones((10, 2))
    path = make_file(terminals=none, timeouts=none, observations=constant, actions=np.zeros((10, 1)))
    with h5py.File(path, "a") as file:
        file["metadata/horizon"] = 5
        file["metadata/reward_rule"] = "none"  # there is only one episode
    warnings = {f.name: f.message for f in check(str(path)) if f.level == "warning"}
    assert set(warnings) == {"ends", "horizon", "duplicates", "observations", "actions", "environment"}
    assert warnings["duplicates"].startswith("9 rows")
    assert warnings["observations"] == "dimensions 0, 1 never change"


def test_command_line(home: Path, make_file: MakeFile, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(make_file())
    assert run("check", path) == 0
    assert "10 rows in 3 episodes, 2 complete" in capsys.readouterr().out
    assert run("check", path, "--json") == 0
    assert {f["level"] for f in json.loads(capsys.readouterr().out)} == {"info", "warning"}
    assert run("info", path) == 0
    assert "unknown_successors     2\n" in capsys.readouterr().out
    assert run("info", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["data"]["episodes"] == 3
    assert run("info", TASK) == 0
    assert f"cepdiff data download {TASK}" in capsys.readouterr().out
    assert run("info") == 0
    assert set(TASKS) == {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}
    assert run("download", path) == 0
    assert capsys.readouterr().out == f"{path}\n"
    with pytest.raises(DataError, match="outside"):
        run("check", str(make_file(actions=np.full((10, 1), 3.0))))


REAL = Path(os.environ.get("D4RL_DATASET_DIR", "/nonexistent"))


@pytest.mark.parametrize(
    ("name", "rows", "episodes", "terminals", "mean", "p90", "best"),
    [
        ("hopper-medium-replay-zoo", 200_000, 903, 833, 21.1, 60.9, 113.7),
        ("walker2d-medium-zoo", 200_000, 330, 276, 51.5, 87.6, 92.2),
        ("halfcheetah-medium-expert-zoo", 300_000, 300, 0, 69.8, 96.0, 98.3),
    ],
)
def test_real_buffers(
    name: str, rows: int, episodes: int, terminals: int, mean: float, p90: float, best: float
) -> None:
    if not (REAL / f"{name}.hdf5").exists():
        pytest.skip("set D4RL_DATASET_DIR to a folder which holds this file")
    raw = load_dataset(name, REAL)
    facts = describe(raw)
    assert (facts["rows"], facts["episodes"], facts["terminals"]) == (rows, episodes, terminals)
    scores = facts["normalized_returns"]
    assert (scores["mean"], scores["p90"], scores["max"]) == pytest.approx((mean, p90, best), abs=0.06)
    buffer = TransitionBuffer.from_arrays(raw)
    assert len(buffer) - len(buffer.transitions) == facts["unknown_successors"] <= facts["timeouts"]
    assert buffer.states.data_ptr() == raw.observations.ctypes.data
