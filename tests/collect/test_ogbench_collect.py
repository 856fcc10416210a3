"""Recording OGBench's datasets: deterministic by seed, its layout, and oracles that do their tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cepdiff.cli import main
from cepdiff.collect.ogbench import recipe_of, record_ogbench, write_ogbench
from cepdiff.data.rl.ogbench import OGBenchName, parse_name
from cepdiff.errors import ConfigError

pytest.importorskip("ogbench")


def name_of(text: str) -> OGBenchName:
    name = parse_name(text)
    assert name is not None
    return name


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("pointmaze-medium-navigate-v0", 1_001_000),
        ("pointmaze-giant-navigate-v0", 1_000_500),
        ("pointmaze-giant-stitch-v0", 1_005_000),
        ("cube-single-play-singletask-task2-v0", 1_001_000),
        ("puzzle-4x5-noisy-v0", 3_003_000),
    ],
)
def test_rows_of_the_originals(text: str, rows: int) -> None:
    assert recipe_of(name_of(text)).rows == rows


@pytest.mark.parametrize("text", ["antmaze-medium-navigate-v0", "scene-play-v0", "pointmaze-medium-explore-v0"])
def test_what_needs_a_trained_policy_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}' cannot be collected: expected pointmaze"):
        recipe_of(name_of(text))


def test_point_maze() -> None:
    """An episode depends on (seed, index) only; noisy steps along shortest paths, from goal to goal."""
    name, seen = name_of("pointmaze-medium-navigate-v0"), []
    arrays = record_ogbench(name, 2100, seed=3, on_progress=seen.append)
    assert seen == [1000, 2000, 2100]
    assert {key: (array.shape, array.dtype.str) for key, array in arrays.items()} == {
        "observations": ((2100, 2), "<f4"),
        "actions": ((2100, 2), "<f4"),
        "terminals": ((2100,), "|b1"),
        "qpos": ((2100, 2), "<f4"),
        "qvel": ((2100, 2), "<f4"),
    }
    assert np.flatnonzero(arrays["terminals"]).tolist() == [1000, 2001, 2099]
    again = record_ogbench(name, 1001, seed=3)
    assert all(np.array_equal(again[key], arrays[key][:1001]) for key in arrays)
    assert not np.array_equal(record_ogbench(name, 5, seed=4)["observations"], arrays["observations"][:5])
    assert np.array_equal(arrays["observations"], arrays["qpos"])
    moves = np.diff(arrays["qpos"][:1001], axis=0)
    free = np.abs(moves - 0.2 * arrays["actions"][:1000]).max(axis=1) < 1e-4  # a step adds a fifth of the action
    assert free.mean() > 0.8  # walls stop the others
    cells = {tuple(cell) for cell in np.rint(arrays["qpos"] / 4).astype(int).tolist()}
    assert len(cells) > 12  # of 26 free ones
    assert np.abs(arrays["actions"]).max() == 1.0


def test_stitched_paths_are_four_cells_long() -> None:
    arrays = record_ogbench(name_of("pointmaze-large-stitch-v0"), 402, seed=0)
    assert np.flatnonzero(arrays["terminals"]).tolist() == [200, 401]
    for first, last in ((0, 200), (201, 401)):
        start, end = np.rint(arrays["qpos"][[first, last]] / 4)
        assert 2 <= np.abs(end - start).sum() <= 4  # the shortest way may have corners


@pytest.mark.parametrize(("kind", "rows", "height"), [("play", 70, 0.05), ("noisy", 15, 0.0)])
def test_the_arm_moves_the_cube(kind: str, rows: int, height: float) -> None:
    """A plan takes about 80 steps, and half of them carry the cube, which lies at a height of 0.02 at first."""
    arrays = record_ogbench(name_of(f"cube-single-{kind}-v0"), rows, seed=1)
    assert (arrays["observations"].shape, arrays["qpos"].shape) == ((rows, 28), (rows, 21))
    assert arrays["qpos"][:, 16].max() > height
    assert np.abs(arrays["actions"]).max() <= 1.0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["collect", "pointmaze-medium-stitch-singletask-v0", "--steps", "250", "--output", str(tmp_path)]
    assert main(command) == 0
    path = tmp_path / "pointmaze-medium-stitch-v0.npz"
    assert capsys.readouterr().out == f"{path}: 250 rows in 2 trajectories\n"
    with np.load(path) as file:
        assert sorted(file.files) == ["actions", "observations", "qpos", "qvel", "terminals"]
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--kind", "navigate"]) == 2
    assert "--kind does not apply to pointmaze-medium-stitch-v0" in capsys.readouterr().err
    assert main(["collect", "antmaze-large-navigate-v0"]) == 2
    assert "cannot be collected" in capsys.readouterr().err


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_ogbench(tmp_path / "a.npz", {"observations": np.array([{}])})
    assert list(tmp_path.iterdir()) == []
