"""Samples of points compared with exact ones: rows, their table and files, the figure, and what a multiple means."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cepdiff.problems.density.samples as samples_module
from cepdiff.errors import DataError, RunError
from cepdiff.problems.density.samples import (
    COLUMNS,
    DISTANCES,
    EXACT,
    GUIDED,
    SHOWN_POINTS,
    compare_samples,
    plot_samples,
    read_samples,
    write_samples,
)
from cepdiff.runs.results import Results, Row

N = 1000


def gaussian(seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """A sample (N, 2) of N((shift, 0), scale²)."""
    draws = torch.randn(N, 2, generator=torch.Generator().manual_seed(seed))
    return scale * draws + torch.tensor([shift, 0.0])


def results(*rows: Row) -> Results:
    """Results of a run with these rows."""
    return Results(
        problem="cepdiff.problems.density.points.PointDensity",
        dataset="rings",
        seed=3,
        title="rings, CEP, beta 3, seed 3",
        rows=rows,
        columns=COLUMNS,
        method="CEP",
        inverse_temperature=3.0,
        seconds={"behavior": 1.0},
        made_from={"seed": 3},
        sources=["my_folder"],
    )


def some_rows(scales: tuple[float, ...] = (0.0, 1.0)) -> list[Row]:
    """Rows in the shape that `compare_samples` returns."""
    return [Row(scale, name, 0.3 + scale, floor=0.15, floor_error=0.01) for scale in scales for name in DISTANCES]


class TestCompareSamples:
    def test_an_exact_sample_is_about_one_floor_away(self) -> None:
        found = compare_samples(gaussian(99), gaussian, 1.0, 8)
        assert [row.metric for row in found] == list(DISTANCES) == list(COLUMNS)
        for row in found:
            assert (row.scale, row.head, row.error) == (1.0, "", None)
            assert row.floor is not None
            assert row.floor_error is not None
            assert abs(row.value - row.floor) < 3 * row.floor_error
            assert row.multiple == pytest.approx(1.0, abs=0.35)

    @pytest.mark.parametrize("wrong", [gaussian(99, shift=0.5), gaussian(99, scale=1.5)], ids=["shifted", "wide"])
    def test_a_wrong_sample_is_far_above_it(self, wrong: torch.Tensor) -> None:
        for row in compare_samples(wrong, gaussian, 1.0, 4):
            assert row.floor is not None
            assert row.floor_error is not None
            assert row.multiple is not None
            assert row.multiple > 3.0
            assert row.value > row.floor + 5 * row.floor_error

    def test_a_shift_is_as_far_as_it_should_be(self) -> None:
        """Sliced W2 of a shift v is |v| / √2 in two dimensions; the floor does not depend on the sample."""
        far, near = (compare_samples(gaussian(99, shift), gaussian, 1.0, 4)[0] for shift in (4.0, 0.0))
        assert far.value == pytest.approx(4.0 / math.sqrt(2), rel=0.06)
        assert (far.floor, far.floor_error) == (near.floor, near.floor_error)

    def test_a_sample_that_diverged_has_no_distance(self) -> None:
        broken = gaussian(99)
        broken[7, 0] = math.nan
        with pytest.raises(DataError, match="1 rows of the first sample hold NaN"):
            compare_samples(broken, gaussian, 1.0, 2)


def test_a_multiple_is_in_units_of_the_floor() -> None:
    assert Row(1.0, "energy_distance", 0.3, floor=0.15, floor_error=0.01).multiple == pytest.approx(2.0)
    assert Row(1.0, "energy_distance", 0.3, floor=0.0).multiple == math.inf  # all exact samples are the same point
    assert Row(1.0, "energy_distance", 0.3).multiple is None


def test_the_table_has_a_line_a_scale_in_aligned_columns() -> None:
    title, *lines = results(*some_rows((0.0, 0.5, 12.0))).table().text().splitlines()
    assert title == "rings, CEP, beta 3, seed 3"
    assert [line.split()[0] for line in lines[1:]] == ["0", "0.5", "12"]
    assert len({len(line) for line in lines}) == 1
    for title in ("guidance scale", "sliced W2", "energy distance"):
        assert lines[0].count(title) == 1
    assert lines[0].count("multiple") == lines[0].count("noise floor") == 2
    assert lines[2].split()[1:] == ["0.8000", "0.1500", "±", "0.0100", "5.33"] * 2
    assert results(*(Row(1.0, name, 0.3, floor=0.0) for name in DISTANCES)).table().text().count(" inf") == 2


class TestFileOfResults:
    def test_everything_comes_back(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        written = results(*some_rows())
        written.write(path)
        found = Results.read(path)
        assert found == replace(written, rows=some_rows(), folder=tmp_path, file=path)
        assert found.scales == [0.0, 1.0]
        assert found.values("energy_distance") == {0.0: 0.3, 1.0: 1.3}
        content = json.loads(path.read_text())
        assert content["format"] == 3
        assert content["rows"][0]["multiple"] == pytest.approx(2.0)
        assert "folder" not in content

    def test_an_infinite_multiple_is_null(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        infinite = Row(1.0, "energy_distance", 0.3, floor=0.0, floor_error=0.0)
        results(infinite).write(path)
        assert json.loads(path.read_text())["rows"][0]["multiple"] is None
        assert Results.read(path).rows == [infinite]

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "null", "{}", '{"format": 3}', '{"format": 3, "rows": 3}', "ROWS[3]", 'ROWS[{"value": 1.0}]'],
    )
    def test_a_damaged_file_says_what_to_do(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "results.json"
        results(*some_rows()).write(path)
        content = json.loads(path.read_text())
        if text.startswith("ROWS"):
            text = json.dumps({**content, "rows": json.loads(text.removeprefix("ROWS"))})
        path.write_text(text)
        with pytest.raises(RunError, match=r"results\.json is damaged.*; delete it and run the same `cepdiff"):
            Results.read(path)

    def test_a_missing_file_is_no_traceback(self, tmp_path: Path) -> None:
        with pytest.raises(RunError):
            Results.read(tmp_path / "results.json")

    def test_a_file_of_another_version_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        results(*some_rows()).write(path)
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
        with pytest.raises(RunError, match=r"results\.json was written by another version of cepdiff"):
            Results.read(path)


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
def test_the_figure_has_a_column_per_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    def make(n: int) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(n, size)).astype(np.float32)

    figures: list[Any] = []
    monkeypatch.setattr(samples_module, "save_figure", lambda figure, path: figures.append(figure))
    samples = {"data": make(SHOWN_POINTS + 5), "energies": make(SHOWN_POINTS + 5)[:, 0]}
    for scale in (0.0, 0.5):
        samples |= {EXACT.format(scale): make(30), GUIDED.format(scale): make(20)}
        plot_samples(samples, tmp_path / "samples.png", "rings, CEP, beta 3")
    for figure, titles in zip(figures, (["0"], ["0", "0.5"]), strict=True):
        panels = np.array(figure.axes).reshape(2, -1)
        assert [axes.get_title() for axes in panels[0]] == ["data", *(f"guidance scale {title}" for title in titles)]
        assert [axes.get_ylabel() for axes in panels[:, 1]] == ["exact samples", "guided samples"]
        shown = [[len(points.get_offsets()) for axes in row for points in axes.collections] for row in panels]
        assert shown == [[SHOWN_POINTS, *[30] * len(titles)], [20] * len(titles)]
        assert panels[1, 0].child_axes[0].get_xlabel() == "energy"
