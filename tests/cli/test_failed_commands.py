"""Commands that fail: quickly, in JSON if asked for, and without leaving anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from cepdiff.cli import main
from cepdiff.data.rl.mirrors import fetch_first
from cepdiff.errors import DataError, OutputError
from cepdiff.files import made, path_aside
from cepdiff.runs.folder import held

Capture = pytest.CaptureFixture[str]

QUICK = [
    ["--version"],
    ["fit", "--config", "nothing"],
    ["fit", "--config", "quickstart", "--data.dataset", "nothing.hdf5"],
    ["fit", "--config", "quickstart", "--data.dataset", "nothing"],
    ["fit", "--config", "quickstart", "--reuse", "nothing"],
    ["fit", "--config", "quickstart", "--seed"],
    ["evaluate", "nothing"],
    ["sample", "nothing", "--output", "a/images.png"],
    ["export", "nothing", "--format", "torch", "--output", "a/policy.pt2"],
    ["report", "nothing", "--output", "a"],
    ["data", "check", "nothing.hdf5", "--plot", "a/plot.png"],
    ["data", "info", "nothing"],
    ["data", "download", "nothing", "--dataset_dir", "a"],
    ["data", "replay", "nothing.hdf5", "--output", "a/replay.json"],
    ["data", "convert", "nothing.hdf5", "a/b.hdf5"],
    ["collect", "Hopper-v4", "--kind", "nothing", "--output", "a"],
    ["sweep", "nothing", "--folder", "a"],
    ["config", "copy", "nothing", "--output", "a/b.yaml"],
]
LIGHT = """
import json, sys
from cepdiff.cli import main
for command in json.loads(sys.argv[1]):
    try:
        code = main(command)
    except SystemExit as stopped:
        code = stopped.code
    heavy = {"torch", "lightning", "gymnasium", "mujoco", "matplotlib"} & set(sys.modules)
    assert not heavy, (command, heavy)
    assert code == (0 if command == ["--version"] else 2), (command, code)
"""


def test_what_needs_nothing_heavy_loads_nothing_heavy_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIGHT, json.dumps(QUICK)]
    environment = {**os.environ, "D4RL_DATASET_DIR": str(tmp_path / "absent")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("cepdiff: ")]) == len(QUICK) - 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["check", "nothing.hdf5"], ["check"], ["list", "--family", "nothing"]])
def test_an_error_in_json(arguments: list[str], capsys: Capture) -> None:
    try:
        code = main(["data", *arguments, "--json"])
    except SystemExit as stopped:  # argparse's own complaints
        code = stopped.code
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (code, found["exit_code"], shown.err) == (2, 2, "")
    assert main(["data", "list", "--family", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("cepdiff: unknown family 'nothing'")
    assert "\n" not in found["error"]


def test_check_takes_the_options_that_its_messages_name(
    make_buffer: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    path = str(make_buffer(tmp_path / "own.hdf5"))  # actions in [-3, 3]
    assert main(["data", "check", path]) == 2
    assert "--data.action_low and --data.action_high" in capsys.readouterr().err
    bounds = ["--data.action_low", "-3", "--data.action_high", "[3]"]
    assert main(["data", "check", path, *bounds, "--data.env_id", "Hopper-v4", "--json"]) == 0
    found = {finding["name"]: finding["message"] for finding in json.loads(capsys.readouterr().out)}
    assert "environment" not in found
    assert "Hopper-v4 (--data.env_id)" in found["reward rule"]
    assert main(["data", "check", path, *bounds, "--data.reward_rule", "none"]) == 0
    assert "given as --reward_rule" in capsys.readouterr().out


def test_a_check_with_bounds_of_the_wrong_number(make_buffer: Callable[..., Path], tmp_path: Path) -> None:
    path = str(make_buffer(tmp_path / "own.hdf5", actions=np.zeros((100, 1))))
    assert main(["data", "check", path, "--action_low", "[-1, -2]"]) == 2


# --- nothing is left --------------------------------------------------------------------------------------------------


def test_a_stage_that_cannot_start_leaves_no_folder(config: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "runs" / "deep" / "run"
    assert main(["fit", "--config", str(config), "--run_dir", str(run), "--stage", "critic"]) == 2
    assert "--stage critic needs the behavior stage" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_malformed_minari_id_leaves_no_folder(tmp_path: Path) -> None:
    pytest.importorskip("minari")
    assert main(["data", "convert", "reacher-replay", "minari:no-id", "--dataset_dir", str(tmp_path / "a" / "b")]) == 2
    assert not (tmp_path / "a").exists()


def test_a_failed_download_leaves_no_folder(tmp_path: Path) -> None:
    nowhere = [(tmp_path / "nowhere").as_uri()]
    with pytest.raises(DataError, match="not at any address"):
        fetch_first(nowhere, tmp_path / "a" / "b" / "c.hdf5", check=lambda part: None, other_ways=lambda: "")
    assert not (tmp_path / "a").exists()


def fail_in(context: AbstractContextManager[None], act: Callable[[], object] = lambda: None) -> None:
    with context:
        act()
        raise ValueError("stop")


def test_made_keeps_what_was_there_and_what_holds_files(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="stop"):
        fail_in(made(tmp_path / "old" / "new" / "deep"))
    with pytest.raises(ValueError, match="stop"):
        fail_in(made(tmp_path / "full" / "deep"), (tmp_path / "full" / "file").touch)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == ["full", "full/file", "old"]


def test_a_writer_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError), path_aside(tmp_path / "a" / "b.json"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_held_folder_goes_with_a_failure_but_not_one_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("new/deep", "old"):
        with pytest.raises(ValueError, match="stop"):
            fail_in(held(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
