"""Figures: one style, no wider than a page, everything named; pictures of the pages are used and can be made again."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

import cepdiff.problems.density.report as density_report
import cepdiff.problems.offline.report as offline_report
import cepdiff.rollout.mazes as mazes
from cepdiff.envs.layouts import Layout
from cepdiff.figures import PAGE, STYLE, legend_above, new_figure, new_panels, save_figure, styled
from cepdiff.problems.density.samples import EXACT, GUIDED
from cepdiff.runs.results import Results, Row

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "images"
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]


def drawn(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[Any]:
    """The figures that functions of `module` would save from now on."""
    figures: list[Any] = []
    monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def names(figure: Any) -> list[str]:
    """The entries of all legends."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_the_style_is_ours_and_the_users_stays(tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):

        @styled()
        def draw() -> tuple[float, str]:
            figure, _ = new_panels(9, 3, 5.0, 1.0)
            save_figure(figure, tmp_path / "a.png")
            return matplotlib.rcParams["font.size"], matplotlib.rcParams["axes.facecolor"]

        assert draw() == (10.0, "white")
        assert matplotlib.rcParams["font.size"] == 30
    picture = imread(tmp_path / "a.png")
    assert picture.shape[1] == PAGE * STYLE["savefig.dpi"]
    assert picture[0, 0].tolist() == [1.0, 1.0, 1.0, 1.0]  # not transparent
    assert new_figure(40.0, 90.0).get_size_inches().tolist() == [PAGE, 40.0]


def test_a_legend_names_the_lines_that_have_labels() -> None:
    figure, (axes,) = new_panels(1, 1, 3.0, 2.0)
    axes.plot([1, 2], [1, 2], label="critic")
    axes.plot([1, 2], [1, 1], "--")  # matplotlib calls it _child1
    legend_above(axes)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["critic"]


def test_every_figure_has_the_style() -> None:
    """Each function that makes a figure is decorated, in the package and in the benchmarks."""
    made = []
    for file in (*ROOT.glob("src/cepdiff/**/*.py"), *ROOT.glob("benchmarks/*.py")):
        text = file.read_text(encoding="utf-8")
        if file.name == "figures.py" or not re.search("new_figure|new_panels|import Figure", text):
            continue
        assert "import Figure" not in text, f"{file} makes figures without cepdiff.figures"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                calls = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
                if calls & {"new_figure", "new_panels"}:
                    assert [ast.unparse(each) for each in node.decorator_list] == ["styled()"], f"{file}: {node.name}"
                    made.append(node.name)
    assert len(made) > 12


def test_paths_name_starts_and_goals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = drawn(monkeypatch, mazes)
    path = np.array([[1.0, 1.0], [1.5, 1.0]])
    mazes.draw_paths(
        Layout(("####", "#..#", "####")), {0.0: [path], 1.0: [path]}, [np.array([2.0, 1.0])], tmp_path / "paths.png"
    )
    (figure,) = figures
    assert names(figure) == ["path of an episode", "start", "goal"]
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes] == [("x", "y")] * 2


def test_scores_name_their_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = drawn(monkeypatch, offline_report)
    rows = [Row(scale, "normalized_score", 50.0 + scale, error=1.0) for scale in (0.0, 1.0)]
    run = Results("p", "hopper", 0, "hopper, seed 0", rows, {}, about={"offline_choice": 1.0})
    offline_report.plot_scores([run], tmp_path / "scores.png")
    (figure,) = figures
    assert sorted(names(figure)) == [
        "behavior policy (scale 0)",
        "guided policy ± standard error",
        "offline choice",
    ]
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("guidance scale", "normalised score")


def test_densities_have_the_names_of_the_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = drawn(monkeypatch, density_report)
    points = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    samples = {"data": points, "energies": points[:, 0], EXACT.format(1.0): points, GUIDED.format(1.0): points}
    runs = [
        (Results("p", "rings", 0, method, [], {}, method=method, inverse_temperature=3.0), samples)
        for method in ("ExponentialMSE", "CEP")
    ]
    density_report.plot_densities(runs, tmp_path / "densities.png")
    (figure,) = figures
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels == ["data by energy", "exact samples", "CEP", "E-MSE"]


def test_every_picture_is_used_and_has_a_command() -> None:
    pictures = {path.name for path in PICTURES.glob("*.png")}
    used = {name for page in PAGES for name in re.findall(r"!\[[^\]]*\]\([^)]*images/(\w+\.png)\)", page.read_text())}
    rows = [line.split("|") for line in (PICTURES / "README.md").read_text().splitlines() if line.startswith("| `")]
    made = {name: row[2] for row in rows for name in re.findall(r"`(\w+\.png)`", row[1])}
    assert used == pictures == set(made)
    for name, command in made.items():
        files = re.findall(r"(?:configs|benchmarks|notebooks)/[\w/]+\.\w+", command)
        assert files or "cepdiff report" in command, name
        assert all((ROOT / file).is_file() for file in files), name
