"""`cepdiff data replay` as a user types it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from cepdiff.cli.data_replay import add_parser
from cepdiff.collect.recorder import record
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.errors import CepdiffError
from cepdiff.rollout.envs import EnvSpec, make_env


def data(*args: object) -> int:
    parser = argparse.ArgumentParser()
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dataset_dir")
    shared.add_argument("--json", action="store_true")
    add_parser(parser.add_subparsers(), shared)
    parsed = parser.parse_args(["replay", *map(str, args)])
    code: int = parsed.run(parsed)
    return code


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows of Hopper-v4 with states, as `cepdiff collect --states` writes them."""
    env = make_env(EnvSpec("Hopper-v4", {"ctrl_cost_weight": 0.5}))
    rng = np.random.default_rng(0)
    arrays = record(env, lambda _: rng.uniform(-1, 1, 3).astype(np.float32), 200, seed=0, label="x", states=True)
    infos = {key.removeprefix("infos/"): value for key, value in arrays.items() if key.startswith("infos/")}
    fields = {key: value for key, value in arrays.items() if not key.startswith("infos/")}
    path = tmp_path_factory.mktemp("data") / "mine.hdf5"
    metadata = {"env_id": "Hopper-v4", "env_kwargs": {"ctrl_cost_weight": 0.5}}
    write_arrays(path, RawArrays(**fields, infos=infos), metadata)
    return path


def test_a_file_in_its_own_environment(hopper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, figure = tmp_path / "replay.json", tmp_path / "replay.png"
    assert data("mine", "--dataset_dir", hopper.parent, "--rows", 50, "--output", output, "--plot", figure) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "mine.hdf5 in Hopper-v4: 50 of 200 rows"
    assert [line.split()[0] for line in shown if line.endswith("  matches")] == ["positions", "velocities", "reward"]
    assert shown[-1] == "matches: equal within float32 rounding"
    written = json.loads(output.read_text())
    assert (written["verdict"], written["rows"], written["env_kwargs"]) == ("matches", 50, {"ctrl_cost_weight": 0.5})
    assert [group["maximum"] for group in written["deviations"]] == [0, 0, 0]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_another_environment_exits_with_one(hopper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = '{"ctrl_cost_weight": 1.0}'
    assert data(hopper, "--env_kwargs", other, "--json") == 1
    written = json.loads(capsys.readouterr().out)
    verdicts = {group["name"]: group["verdict"] for group in written["deviations"]}
    assert verdicts == {"positions": "matches", "velocities": "matches", "reward": "differs"}
    assert data(hopper, "--env_id", "Hopper-v4", "--env_kwargs", '{"ctrl_cost_weight": 0.5}') == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rows", "0"], "--rows is 0; expected at least 1"),
        (["--env_kwargs", "[1]"], "expected a JSON object"),
        (["--env_id", "Hoper-v4"], "Did you mean Hopper"),
        (["--env_id", "HalfCheetah-v4"], "Name the environment that made the file with --env_id"),
    ],
)
def test_bad_input_is_one_clear_line(hopper: Path, args: list[str], message: str) -> None:
    with pytest.raises(CepdiffError, match=message) as caught:
        data(hopper, *args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["--plot", "--output"])
def test_an_output_that_cannot_be_written_is_one_clear_line(hopper: Path, option: str) -> None:
    with pytest.raises(CepdiffError, match=r"mine.hdf5/x.png: cannot be written \("):
        data(hopper, "--rows", 5, "--env_id", "Hopper-v4", option, hopper / "x.png")


@pytest.mark.parametrize(("value", "message"), [(np.nan, "infos/qpos is NaN"), (1e300, "returns NaN or infinity")])
def test_states_that_are_none(hopper: Path, tmp_path: Path, value: float, message: str) -> None:
    torn = tmp_path / "torn.hdf5"
    torn.write_bytes(hopper.read_bytes())
    with h5py.File(torn, "a") as file:
        file["infos/qpos"][:] = value
    with pytest.raises(CepdiffError, match=message), np.errstate(all="ignore"):
        data(torn, "--rows", 5, "--env_id", "Hopper-v4")


def test_a_file_that_names_no_environment_and_a_missing_one(hopper: Path, tmp_path: Path) -> None:
    arrays = {"observations": np.zeros((3, 11)), "actions": np.zeros((3, 3)), "rewards": np.zeros(3)}
    flags = {"terminals": np.zeros(3, bool), "timeouts": np.zeros(3, bool)}
    write_arrays(tmp_path / "bare.hdf5", RawArrays(**arrays, **flags))
    with pytest.raises(CepdiffError, match=r"does not say which environment it is from: add --env_id ID$"):
        data(tmp_path / "bare.hdf5")
    with pytest.raises(CepdiffError, match="no such file"):
        data(tmp_path / "absent.hdf5")


def test_the_embedded_buffer_says_why_it_cannot_be_replayed() -> None:
    with pytest.raises(CepdiffError, match=r"holds no states .* collect with --states"):
        data("reacher-replay")
