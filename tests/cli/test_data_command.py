"""`cepdiff data list`, `info` and `check` as a user types them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cepdiff.cli import main
from cepdiff.data.rl.tasks import FAMILIES, TASKS

Capture = pytest.CaptureFixture[str]


def out(capsys: Capture, *words: str) -> str:
    assert main(["data", *words]) == 0
    return capsys.readouterr().out


@pytest.fixture
def home(tmp_path: Path, make_buffer: Callable[..., Path]) -> Path:
    """A dataset folder with a file for hopper-medium-v2 and a truncated one for hopper-expert-v2."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    shutil.copy(make_buffer(tmp_path / "own.hdf5"), folder / "hopper_medium-v2.hdf5")
    (folder / "hopper_expert-v2.hdf5").write_bytes(b"torn")
    return folder


def test_list(home: Path, capsys: Capture) -> None:
    header, *lines = out(capsys, "list", "--dataset_dir", str(home)).splitlines()
    assert header.split()[:4] == ["task", "environment", "rows", "horizon"]
    assert [line.split()[0] for line in lines] == list(TASKS)
    rows = {line.split()[0]: line.split() for line in lines}
    assert rows["hopper-medium-v2"][1:6] == ["cepdiff/Hopper-v2", "100", "1000", "-20.2723", "3234.3"]
    assert rows["hopper-medium-v2"][-1] == "yes"
    assert rows["hopper-expert-v2"][-1] == "unreadable"
    assert " ".join(rows["antmaze-umaze-v2"][2:]) == "- 700 0 1 minus_one 32 0 1 1.5 2 2.5 3 4 100 -"
    assert rows["reacher-replay"][2] == "20,000"
    assert out(capsys, "info", "--dataset_dir", str(home)).splitlines() == [header, *lines]


@pytest.mark.parametrize("family", FAMILIES)
def test_list_of_a_family(home: Path, capsys: Capture, family: str) -> None:
    tasks = json.loads(out(capsys, "list", "--family", family, "--json", "--dataset_dir", str(home)))
    assert [task["name"] for task in tasks] == [task.name for task in TASKS.values() if task.family == family]
    for task in tasks:
        assert task["file"].endswith((task["url"] or task["embedded"]).rsplit("/", 1)[-1])
        assert task["file_present"] == (task["name"] in ("hopper-medium-v2", "hopper-expert-v2", "reacher-replay"))


def test_unknown_family(capsys: Capture) -> None:
    assert main(["data", "list", "--family", "ant-maze"]) == 2
    error = capsys.readouterr().err
    assert "unknown family 'ant-maze'; expected locomotion, antmaze" in error
    assert "Did you mean antmaze?" in error


def test_info_of_one_task(home: Path, capsys: Capture) -> None:
    shown = out(capsys, "info", "hopper-medium-v0", "--dataset_dir", str(home))
    assert "deprecated by D4RL: use hopper-medium-v2" in shown
    assert "gym_mujoco/hopper_medium.hdf5" in shown
    assert "cepdiff data download hopper-medium-v0" in shown
    facts = json.loads(out(capsys, "info", "hopper-medium-v2", "--json", "--dataset_dir", str(home)))
    assert (facts["task"]["rows"], facts["data"]["rows"], facts["data"]["horizon"]) == (100, 100, 1000)


def test_check_says_how_each_finding_is_handled(
    make_buffer: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    actions = np.linspace(-1, 1, 100)[:, None]
    path = str(make_buffer(tmp_path / "own.hdf5", actions=actions))
    shown = out(capsys, "check", path).splitlines()
    place = next(i for i, line in enumerate(shown) if line.startswith("info     float64"))
    assert shown[place].endswith("actions are stored as float64")
    assert shown[place + 1].strip().startswith("-> read as float32")
    assert shown[-1] == "usable"
    found = json.loads(out(capsys, "check", path, "--json"))
    (environment,) = (finding for finding in found if finding["name"] == "environment")
    assert environment["level"] == "warning"
    assert "--data.env_id" in environment["handling"]


def test_check_draws(make_buffer: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    path = make_buffer(tmp_path / "own.hdf5", actions=np.zeros((100, 1)))
    figure = tmp_path / "figure.png"
    assert out(capsys, "check", str(path), "--plot", str(figure)).endswith(f"usable; plotted in {figure}\n")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_check_of_a_torn_file(home: Path, capsys: Capture) -> None:
    assert main(["data", "check", "hopper-expert-v2", "--dataset_dir", str(home)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "hopper_expert-v2.hdf5: not an HDF5 file, or truncated" in error
