"""Conversions that are refused or fail: nothing is overwritten, nothing is left, and one line says why."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
from conversions import contents, native, random_file

from cepdiff.cli import data_convert
from cepdiff.data.minari.convert import convert
from cepdiff.data.minari.read import LAYOUT_FILE, read_minari
from cepdiff.data.minari.write import bare_environment
from cepdiff.errors import CepdiffError, ConfigError, DataError

minari = pytest.importorskip("minari")
from minari.data_collector import EpisodeBuffer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


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
