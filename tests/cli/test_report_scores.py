"""Scores over seeds, tasks and settings in `cepdiff report`, against hand-computed numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_policy

from cepdiff.cli import main
from cepdiff.problems.offline import report as offline_report
from cepdiff.problems.offline import score_figures, score_report
from cepdiff.problems.offline.published import published

# Scores at scale 1 by setting (beta) and task, of seeds 0 to 2; the statistics of the two are in test_statistics.py.
SCORES = {
    1.0: {"task-a": [10.0, 20.0, 60.0], "task-b": [20.0, 30.0, 40.0], "task-c": [90.0, 100.0, 110.0]},
    3.0: {"task-a": [10.0, 20.0, 30.0], "task-b": [40.0, 50.0, 60.0], "task-c": [70.0, 80.0, 120.0]},
}
BETA_1, BETA_3 = "inverse_temperature 1", "inverse_temperature 3"


def configuration(task: str, beta: float = 3.0, **data: Any) -> dict[str, Any]:
    """The parts of a configuration that a report reads."""
    return {
        "data": {
            "class_path": "cepdiff.data.rl.datamodule.OfflineDataModule",
            "init_args": {"dataset": task, "env_id": None, "fraction": 1.0, "block_size": 50, **data},
        },
        "guidance": {
            "class_path": "cepdiff.modules.guidance.EnergyGuidance",
            "init_args": {
                "objective": {
                    "class_path": "cepdiff.energy.objectives.CEP",
                    "init_args": {"inverse_temperature": beta},
                }
            },
        },
        "trainer": {"accelerator": "cpu"},
    }


def write_runs(folder: Path) -> Path:
    """Both settings on all tasks, in folders of unequal depth; scale 0 scores 5, and 2 scores 1 more than 1."""
    for beta, tasks in SCORES.items():
        for task, scores in tasks.items():
            for seed, score in enumerate(scores):
                place = folder / task / f"beta{beta:g}" / str(seed) if beta == 1 else folder / f"{task}-{seed}"
                place.mkdir(parents=True)
                curve = {0.0: 5.0, 1.0: score, 2.0: score + 1.0}
                write_policy(place, task, curve, float(seed), seed=seed, config=configuration(task, beta))
    return folder


@pytest.fixture
def drawn_runs(tmp_path: Path) -> Path:
    """`write_runs`, whose report has figures."""
    return write_runs(tmp_path / "runs")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not drawn, which would take most of the time."""
    monkeypatch.setattr(offline_report, "plot_scores", lambda *arguments: None)
    for name in ("plot_statistics", "plot_profiles"):
        monkeypatch.setattr(score_report, name, lambda *arguments: None)


@pytest.fixture
def runs(no_figures: None, tmp_path: Path) -> Path:
    """`write_runs`."""
    return write_runs(tmp_path / "runs")


def report(folder: Path, *arguments: str) -> int:
    """The command in this process, with the report beside the runs."""
    return main(["report", str(folder), "--output", str(folder.parent / "report"), *arguments])


def section(folder: Path, title: str) -> dict[str, Any]:
    """The section whose title begins so."""
    content = json.loads((folder.parent / "report/report.json").read_text())
    (found,) = [section for section in content["sections"] if section["title"].startswith(title)]
    return dict(found)


def scores_by(found: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """(task, setting) -> row."""
    return {(row["task"], row["setting"]): row for row in found["scores"]}


def test_every_statistic_of_three_tasks_three_seeds_and_two_settings(runs: Path) -> None:
    assert report(runs, "--scale", "1") == 0
    found = section(runs, "Scores over seeds, scale 1")
    assert (found["scale"], found["seeds"]) == ("scale 1", 3)
    assert found["settings"] == {
        BETA_1: {"guidance.objective.inverse_temperature": 1.0},
        BETA_3: {"guidance.objective.inverse_temperature": 3.0},
    }
    rows = scores_by(found)
    means = {"task-a": (30.0, 20.0), "task-b": (30.0, 50.0), "task-c": (100.0, 90.0)}
    deviations = {"task-a": (math.sqrt(700), 10.0), "task-b": (10.0, 10.0), "task-c": (10.0, math.sqrt(700))}
    for task in means:
        for label, mean, deviation in zip((BETA_1, BETA_3), means[task], deviations[task], strict=True):
            row = rows[task, label]
            assert (row["mean"], row["standard_error"]) == pytest.approx((mean, deviation / math.sqrt(3)))
            assert (row["seeds"], row["unit"]) == (3, "points")
    assert rows["task-c", BETA_3]["by_seed"]["2"] == {"score": 120.0, "scale": 1.0}
    values = {label: {n: e["value"] for n, e in here.items()} for label, here in found["statistics"].items()}
    assert values[BETA_1] == pytest.approx({
        "interquartile mean": 48.0, "median": 30.0, "mean": 160 / 3, "optimality gap": 430 / 9,
    })  # fmt: skip
    assert values[BETA_3] == pytest.approx({
        "interquartile mean": 50.0, "median": 50.0, "mean": 160 / 3, "optimality gap": 440 / 9,
    })  # fmt: skip
    (pair,) = found["improvement"]
    assert (pair["x"], pair["y"], pair["value"]) == (BETA_1, BETA_3, pytest.approx(1 - 15.5 / 27))
    assert 0.0 <= pair["low"] < pair["value"] < pair["high"] <= 1.0
    assert found["thresholds"][0] == 0.0
    assert found["thresholds"][-1] == 120.0
    at_60 = found["thresholds"].index(pytest.approx(60.0))
    assert [found["profiles"][label][at_60]["value"] for label in (BETA_1, BETA_3)] == pytest.approx([1 / 3, 1 / 3])
    assert found["bootstrap"] == {"resamples": 10_000, "of_profiles": 2_000, "seed": 0, "confidence": 0.95}
    for here in found["statistics"].values():
        assert all(e["low"] <= e["value"] <= e["high"] for e in here.values())


def test_the_tables(drawn_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = drawn_runs
    assert report(runs, "--scale", "1") == 0
    shown = capsys.readouterr().out
    assert (
        "normalised score, mean ± standard error over n seeds\n"
        "task             inverse_temperature 1, scale 1  n  inverse_temperature 3, scale 1  n\n"
        "task-a                              30.0 ± 15.3  3                      20.0 ± 5.8  3\n"
        "task-b                               30.0 ± 5.8  3                      50.0 ± 5.8  3\n"
        "task-c                              100.0 ± 5.8  3                     90.0 ± 15.3  3\n"
        "mean of 3 tasks                            53.3                               53.3\n"
    ) in shown
    assert "Intervals of 95%: stratified bootstrap over the seeds of each task, 10,000 resamples, seed 0" in shown
    assert "missing" not in shown
    (line,) = [line for line in shown.splitlines() if line.startswith(f"{BETA_1}  {BETA_3}")]
    assert line.split()[4] == "0.43"
    assert "task-b  inverse_temperature 3  1" in shown  # the table of single runs names the setting
    page = (runs.parent / "report/report.md").read_text()
    assert "| task-b | 30.0 ± 5.8 | 3 | 50.0 ± 5.8 | 3 |" in page
    for figure in ("scores.png", "statistics.png", "profiles.png"):
        assert f"]({figure})" in page
        assert (runs.parent / "report" / figure).stat().st_size > 10_000
        assert figure in shown


@pytest.mark.parametrize("form", ["csv", "latex", "markdown"])
def test_forms_are_the_tables_alone(form: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(runs, "--scale", "1", "--format", form) == 0
    shown = capsys.readouterr()
    lines = {
        "csv": "task-a,30.0,15.3,3,20.0,5.8,3",
        "latex": r"task-a & 30.0 $\pm$ 15.3 & 3 & 20.0 $\pm$ 5.8 & 3 \\",
        "markdown": "| task-a | 30.0 ± 15.3 | 3 | 20.0 ± 5.8 | 3 |",
    }
    assert lines[form] in shown.out.splitlines()
    assert "report.json" not in shown.out
    assert "report.json" in shown.err


def test_the_same_runs_give_the_same_report(runs: Path) -> None:
    contents = []
    for _ in range(2):
        assert report(runs) == 0
        contents.append((runs.parent / "report/report.json").read_bytes())
    assert contents[0] == contents[1]


def test_the_offline_choice_is_the_default(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(runs) == 0
    assert "inverse_temperature 3, offline choice" in capsys.readouterr().out
    row = scores_by(section(runs, "Scores over seeds, offline choice"))["task-b", BETA_3]
    scores = {seed: (here["score"], here["scale"]) for seed, here in row["by_seed"].items()}
    assert scores == {"0": (5.0, 0.0), "1": (50.0, 1.0), "2": (61.0, 2.0)}  # the seed is the choice


def test_best_in_hindsight_is_one_scale_per_task_and_marked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(runs, "--scale", "best") == 0
    shown = capsys.readouterr().out
    assert "inverse_temperature 3, best in hindsight" in shown
    assert "Best in hindsight: " in shown
    row = scores_by(section(runs, "Scores over seeds, best in hindsight"))["task-b", BETA_3]
    assert {here["scale"] for here in row["by_seed"].values()} == {2.0}
    assert row["mean"] == 51.0


@pytest.mark.parametrize("scale", ["-1", "nan", "inf", "worst"])
def test_a_scale_that_is_none(scale: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(runs, f"--scale={scale}") == 2
    line = f"--scale is {scale}; expected a guidance scale of 0 or more, 'offline' or 'best'"
    assert line in capsys.readouterr().err
    assert not (runs.parent / "report").exists()


def test_a_scale_that_no_run_has(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(runs, "--scale", "7") == 0
    assert "No run has a score at the scale 7; choose another by --scale" in capsys.readouterr().out


def test_missing_seeds_are_marked_and_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "task-b-2" / "results.json").unlink()
    assert report(runs, "--scale", "1") == 0
    shown = capsys.readouterr()
    assert "task-b                               30.0 ± 5.8  3                      45.0 ± 5.0  2 of 3" in shown.out
    assert "Where n is less than 3, seeds are missing, and the mean is over fewer." in shown.out
    assert "Tasks have 2 to 3 seeds" in shown.out
    assert f"{runs / 'task-b-2'}  not finished" in shown.out
    assert f"not finished, skipped (run the same `cepdiff fit` again): {runs / 'task-b-2'}" in shown.err
    assert section(runs, "Not finished")["runs"] == {str(runs / "task-b-2"): "not finished"}


def test_a_run_without_the_scale_is_missing_too(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_policy(runs / "task-b-2", "task-b", {0.0: 1.0}, None, seed=2, config=configuration("task-b"))
    assert report(runs, "--scale", "1") == 0
    shown = capsys.readouterr().out
    assert "45.0 ± 5.0  2 of 3" in shown
    assert f"Not counted, without a score at the scale 1: 1 runs ({runs / 'task-b-2'})." in shown


def test_a_task_that_a_setting_lacks_is_in_no_statistic(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        (runs / f"task-c-{seed}" / "results.json").unlink()
    assert report(runs, "--scale", "1") == 0
    shown = capsys.readouterr().out
    assert "task-c                              100.0 ± 5.8  3                               -  0 of 3" in shown
    assert "mean of 2 tasks                            30.0                               35.0" in shown
    assert "Not counted, as not every setting has a normalised score there: task-c." in shown
    assert section(runs, "Scores over seeds")["tasks"] == ["task-a", "task-b"]


def test_one_seed_has_neither_error_nor_interval(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [runs / "task-a/beta1/0", runs / "task-b/beta1/0", runs / "task-a-0", runs / "task-b-0"]
    assert main(["report", *map(str, folders), "--output", str(runs.parent / "report"), "--scale", "1"]) == 0
    shown = capsys.readouterr().out
    assert "10.0 ± –  1" in shown
    assert "One seed has no standard error over seeds." in shown
    assert "No intervals: a task has one seed, which says nothing about the spread over seeds." in shown
    assert "15.0 [-, -]" in shown
    assert "95%" not in shown
    assert section(runs, "Scores over seeds")["statistics"][BETA_1]["mean"] == {
        "value": 15.0,
        "low": None,
        "high": None,
    }


def test_a_single_run_has_no_statistics(runs: Path) -> None:
    assert report(runs / "task-a-0") == 0
    content = json.loads((runs / "report/report.json").read_text())
    assert [section["title"] for section in content["sections"]] == ["Offline RL"]


def test_many_settings_are_compared_with_the_best(no_figures: None, tmp_path: Path) -> None:
    for beta in range(1, 8):
        for seed in range(2):
            place = tmp_path / "runs" / f"{beta}-{seed}"
            place.mkdir(parents=True)
            curve = {1.0: 10.0 * beta * (beta < 7) + seed}
            write_policy(place, "task-a", curve, 1.0, seed=seed, config=configuration("task-a", beta))
    assert report(tmp_path / "runs") == 0
    found = section(tmp_path / "runs", "Scores over seeds")
    assert [pair["x"] for pair in found["improvement"]] == ["inverse_temperature 6"] * 6
    assert [pair["value"] for pair in found["improvement"]] == [1.0] * 6


def test_axes_and_lines_of_the_figures_are_named(drawn_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(offline_report, "plot_scores", lambda *arguments: None)
    monkeypatch.setattr(score_figures, "save_figure", lambda figure, path: drawn.update({path.stem: figure}))
    assert report(drawn_runs, "--scale", "1") == 0
    assert [axes.get_title() for axes in drawn["statistics"].axes] == [
        "interquartile mean ↑", "median ↑", "mean ↑", "optimality gap ↓",
    ]  # fmt: skip
    first = drawn["statistics"].axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == [BETA_1, BETA_3]
    points = [line.get_xdata() for line in first.lines if line.get_marker() == "o"]
    assert [float(point[0]) for point in points] == [48.0, 50.0]
    (axes,) = drawn["profiles"].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("normalised score τ", "share of runs with a score above τ")
    assert [text.get_text() for text in drawn["profiles"].legends[0].get_texts()] == [BETA_1, BETA_3]


def test_published_scores_stand_beside_runs_on_the_same_dataset_of_d4rl(
    no_figures: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, task = tmp_path / "runs", "hopper-medium-v2"
    for seed in range(2):
        (runs / str(seed)).mkdir(parents=True)
        write_policy(runs / str(seed), task, {1.0: 90.0 + seed}, 1.0, seed=seed, config=configuration(task))
    assert report(runs) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith(task) and "98.0" in line]
    assert line.split() == [task, "90.5", "±", "0.5", "2", "98.0", "74.3", "66.3", "59.3", "58.5"]
    assert "QGPO: Lu et al. 2023, arXiv 2304.12824" in shown
    assert "in hindsight" in shown


@pytest.mark.parametrize(
    "data", [{"dataset": "mine/hopper-medium-v2.hdf5"}, {"fraction": 0.1}, {"env_id": "Hopper-v5"}, None]
)
def test_published_scores_never_stand_beside_other_data(
    data: dict[str, Any] | None, no_figures: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = "hopper-medium-v2"
    config = configuration(task, **(data or {}))
    if data is None:
        config["data"]["class_path"] = "my_data.MyHopper"
    for seed in range(2):
        place = tmp_path / "runs" / str(seed)
        place.mkdir(parents=True)
        write_policy(place, task, {1.0: 90.0}, 1.0, seed=seed, config=config)
    assert report(tmp_path / "runs") == 0
    assert "QGPO" not in capsys.readouterr().out


def test_published_averages() -> None:
    """The sums that the publications print under their tables."""
    tables = {table.method: table.scores for table in published()}
    locomotion = [task for task in tables["QGPO"] if task.startswith(("halfcheetah", "hopper", "walker2d"))]
    assert len(locomotion) == 9
    assert sum(tables["QGPO"].values()) / 9 == pytest.approx(86.6, abs=0.05)
    assert sum(tables["TD3+BC"][task] for task in locomotion) == pytest.approx(677.4, abs=0.05)
    assert sum(tables["CQL"][task] for task in locomotion) == pytest.approx(698.5, abs=0.05)
