"""Distances of guided samples from exact ones: rows, their table and file, the figure, and what a multiple means."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cepdiff.errors import DataError, RunError
from cepdiff.problems.density.samples import (
    DISTANCES,
    SHOWN_POINTS,
    DistanceRow,
    compare_samples,
    format_distances,
    plot_samples,
    read_distances,
    read_samples,
    write_distances,
    write_samples,
)

N = 1000


def gaussian(seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """A sample (N, 2) of N((shift, 0), scale²)."""
    draws = torch.randn(N, 2, generator=torch.Generator().manual_seed(seed))
    return scale * draws + torch.tensor([shift, 0.0])


def rows(scales: tuple[float, ...] = (0.0, 1.0)) -> list[DistanceRow]:
    """Made-up rows of the shape that `compare_samples` gives."""
    return [DistanceRow(scale, name, 0.3 + scale, 0.15, 0.01) for scale in scales for name in DISTANCES]


class TestCompareSamples:
    def test_an_exact_sample_is_about_one_floor_away(self) -> None:
        found = compare_samples(gaussian(99), gaussian, 1.0, 8)
        assert [row.distance for row in found] == list(DISTANCES)
        for row in found:
            assert row.guidance_scale == 1.0
            assert abs(row.value - row.floor) < 3 * row.floor_std
            assert row.multiple == pytest.approx(1.0, abs=0.35)

    @pytest.mark.parametrize("wrong", [gaussian(99, shift=0.5), gaussian(99, scale=1.5)], ids=["shifted", "wide"])
    def test_a_wrong_sample_is_far_above_it(self, wrong: torch.Tensor) -> None:
        for row in compare_samples(wrong, gaussian, 1.0, 4):
            assert row.multiple > 3.0
            assert row.value > row.floor + 5 * row.floor_std

    def test_a_shift_is_as_far_as_it_should_be(self) -> None:
        """Sliced W2 of a shift v is |v| / √2 in two dimensions; the floor does not know the sample."""
        far, near = (compare_samples(gaussian(99, shift), gaussian, 1.0, 4)[0] for shift in (4.0, 0.0))
        assert far.value == pytest.approx(4.0 / math.sqrt(2), rel=0.06)
        assert (far.floor, far.floor_std) == (near.floor, near.floor_std)

    def test_a_sample_that_diverged_has_no_distance(self) -> None:
        broken = gaussian(99)
        broken[7, 0] = math.nan
        with pytest.raises(DataError, match="1 rows of the first sample hold NaN"):
            compare_samples(broken, gaussian, 1.0, 2)


def test_a_multiple_is_in_units_of_the_floor() -> None:
    assert DistanceRow(1.0, "energy_distance", 0.3, 0.15, 0.01).multiple == pytest.approx(2.0)
    assert DistanceRow(1.0, "energy_distance", 0.3, 0.0, 0.0).multiple == math.inf  # all exact draws are one point


def test_the_table_has_a_line_a_scale_in_aligned_columns() -> None:
    lines = format_distances(rows((0.0, 0.5, 12.0))).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0", "0.5", "12"]
    assert len({len(line) for line in lines}) == 1
    for title in ("guidance scale", "sliced W2", "energy distance"):
        assert lines[0].count(title) == 1
    assert lines[0].count("multiple") == lines[0].count("noise floor") == 2
    assert lines[2].split()[1:] == ["0.8000", "0.1500", "±", "0.0100", "5.33"] * 2
    assert "inf" in format_distances([DistanceRow(1.0, name, 0.3, 0.0, 0.0) for name in DISTANCES])


class TestFileOfDistances:
    def test_rows_and_the_rest_come_back(self, tmp_path: Path) -> None:
        path = tmp_path / "distances.json"
        write_distances(path, rows(), {"dataset": "rings", "made_from": {"seed": 3}})
        found, about = read_distances(path)
        assert found == rows()
        assert about == {"dataset": "rings", "made_from": {"seed": 3}}
        assert json.loads(path.read_text())["distances"][0]["multiple"] == pytest.approx(2.0)

    def test_an_infinite_multiple_is_null(self, tmp_path: Path) -> None:
        path = tmp_path / "distances.json"
        infinite = [DistanceRow(1.0, "energy_distance", 0.3, 0.0, 0.0)]
        write_distances(path, infinite, {})
        assert json.loads(path.read_text())["distances"][0]["multiple"] is None
        assert read_distances(path)[0] == infinite

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "null", "{}", '{"distances": 3}', '{"distances": [{"value": 1.0}]}', '{"distances": [3]}'],
    )
    def test_a_damaged_file_says_what_to_do(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "distances.json"
        path.write_text(text)
        with pytest.raises(RunError, match=r"distances\.json is damaged; delete it and run the same command again"):
            read_distances(path)

    def test_a_missing_file_is_no_traceback(self, tmp_path: Path) -> None:
        with pytest.raises(RunError):
            read_distances(tmp_path / "distances.json")


class TestFileOfSamples:
    def test_samples_come_back(self, tmp_path: Path) -> None:
        samples = {"data": gaussian(0), "energies": gaussian(1)[:, 0], "guided, scale 0.5": gaussian(2)}
        write_samples(tmp_path / "samples.npz", samples)
        found = read_samples(tmp_path / "samples.npz")
        assert list(found) == list(samples)
        for name, values in samples.items():
            np.testing.assert_array_equal(found[name], values.numpy())

    @pytest.mark.parametrize("kept", [0, 50, 3000])
    def test_a_torn_or_missing_file_says_what_to_do(self, tmp_path: Path, kept: int) -> None:
        path = tmp_path / "samples.npz"
        with pytest.raises(RunError, match=r"cannot be read; run the same `cepdiff fit` again"):
            read_samples(path)
        write_samples(path, {"data": gaussian(0)})
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(RunError, match=r"cannot be read; run the same `cepdiff fit` again"):
            read_samples(path)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_figure_has_a_panel_a_sample(tmp_path: Path, size: int) -> None:
    def make(n: int) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(n, size)).astype(np.float32)

    samples = {"data": make(SHOWN_POINTS + 5), "energies": make(SHOWN_POINTS + 5)[:, 0], "exact": make(30)}
    widths = []
    for names in (("data", "energies"), ("data", "energies", "exact")):
        plot_samples({name: samples[name] for name in names}, tmp_path / "samples.png", "rings, CEP, beta 3")
        image = imread(tmp_path / "samples.png")
        assert np.unique(image.reshape(-1, image.shape[-1]), axis=0).shape[0] > 20  # something is drawn
        widths.append(image.shape[1])
    assert widths[1] == 2 * widths[0]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]
