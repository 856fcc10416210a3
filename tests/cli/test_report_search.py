"""What `cepdiff report` finds below a folder, and which settings it tells apart."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_policy

from cepdiff.errors import RunError
from cepdiff.runs.results import Results
from cepdiff.runs.search import find_runs
from cepdiff.runs.settings import settings_of

TASK_KEYS = ("data.dataset",)


def write(folder: Path, config: dict[str, Any], *, task: str = "task-a", seed: int = 0) -> Path:
    """A finished run."""
    folder.mkdir(parents=True)
    return write_policy(folder, task, {1.0: 1.0}, 1.0, seed=seed, config=config)


def write_sweep(folder: Path, runs: Sequence[tuple[str, dict[str, Any], str]]) -> None:
    """A sweep's plan: (label, settings, status) of each run."""
    rows = [{"label": name, "folder": f"runs/{name}", "settings": s, "status": status} for name, s, status in runs]
    (folder / "sweep.json").write_text(json.dumps({"format": 1, "recipe": "x.yaml", "axes": {}, "runs": rows}))


def found_in(*folders: Path) -> list[Path]:
    """The finished runs."""
    return [run.folder for run in find_runs(folders).runs]


def test_runs_at_any_depth_each_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sharper = write(tmp_path / "runs/sharper", {})
    deep = write(tmp_path / "runs/task/0", {})
    (deep / "critic").mkdir()
    (deep / "critic/results.json").write_text("not ours")
    inside = write(deep / "shorter", {})
    (tmp_path / "runs/back").symlink_to(tmp_path / "runs")
    (tmp_path / "runs/again").symlink_to(sharper)
    (tmp_path / "runs/.hidden").mkdir()
    write(tmp_path / "runs/.hidden/0", {})
    (tmp_path / "runs/other").mkdir()
    (tmp_path / "runs/other/results.json").write_text("another program's")
    found = found_in(tmp_path / "runs", sharper, tmp_path / "runs/task")
    assert sorted(path.resolve() for path in found) == [sharper, deep, inside]
    assert capsys.readouterr().err == ""


def test_the_runs_of_the_readme_are_found_by_its_own_command(tmp_path: Path) -> None:
    """`cepdiff report runs`, for every folder of a run that the page names or makes by default."""
    page = (Path(__file__).parents[2] / "README.md").read_text()
    assert "cepdiff report runs " in page
    named = {name for name in re.findall(r"\bruns/[\w/-]+\w", page) if not name.endswith("/logs")}
    assert {"runs/reacher-replay/0", "runs/sharper", "runs/rings/0", "runs/rings-mse"} <= named
    for name in named:
        write(tmp_path / name, {})
    assert {str(path.relative_to(tmp_path)) for path in found_in(tmp_path / "runs")} == named


def test_a_folder_without_runs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty/below").mkdir(parents=True)
    assert found_in(tmp_path / "empty") == []
    assert f"no run folders, skipped: {tmp_path / 'empty'}" in capsys.readouterr().err


def test_a_configuration_above_runs_is_no_run(tmp_path: Path) -> None:
    write(tmp_path / "project/runs/0", {})
    (tmp_path / "project/config.yaml").write_text("mine: 1\n")
    found = find_runs([tmp_path / "project"])
    assert [run.folder for run in found.runs] == [tmp_path / "project/runs/0"]
    assert found.unfinished == {}


def test_runs_of_a_sweep_that_have_no_results_are_unfinished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "runs/a", {})
    (tmp_path / "runs/b").mkdir()
    (tmp_path / "runs/b/config.yaml").write_text("seed: 1\n")
    states = {"a": "running", "b": "failed", "c": "waiting", "d": "finished"}
    plan = [(name, {"seed": seed}, status) for seed, (name, status) in enumerate(states.items())]
    write_sweep(tmp_path, plan)
    found = find_runs([tmp_path])
    assert [run.folder.name for run in found.runs] == ["a"]  # it has finished since the plan was written
    status = {"b": "failed", "c": "waiting", "d": "results are missing"}
    assert found.unfinished == {tmp_path / "runs" / name: state for name, state in status.items()}
    assert "not finished, skipped (run the same `cepdiff sweep` again)" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 1, "runs": [{"folder": 3}]}'])
def test_a_damaged_sweep(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(RunError, match=r"sweep\.json is damaged"):
        find_runs([tmp_path])
    (tmp_path / "sweep.json").write_text('{"format": 9, "runs": []}')
    with pytest.raises(RunError, match="another version"):
        find_runs([tmp_path])


def results(folder: Path, configs: Sequence[tuple[str, int, dict[str, Any]]]) -> list[Results]:
    """Runs of (task, seed, configuration), read back."""
    places = [write(folder / str(i), c, task=task, seed=seed) for i, (task, seed, c) in enumerate(configs)]
    return [Results.read(place / "results.json") for place in places]


def critic(discount: float, name: str = "cepdiff.x.Critic", **more: Any) -> dict[str, Any]:
    """A configuration with a critic."""
    return {"critic": {"class_path": name, "init_args": {"discount": discount, **more}}}


def test_settings_are_what_differs_within_a_task(tmp_path: Path) -> None:
    runs = results(tmp_path, [
        ("task-a", 0, {**critic(0.99), "solver": {"steps": 15}, "trainer": {"devices": 1}}),
        ("task-a", 1, {**critic(0.99), "solver": {"steps": 15}, "trainer": {"devices": 2}}),
        ("task-a", 0, {**critic(0.9), "solver": {"steps": 15}}),
        ("task-b", 0, {**critic(0.9), "solver": {"steps": 20}}),
    ])  # fmt: skip
    found = settings_of(runs, TASK_KEYS)
    assert found.labels == ["discount 0.99", "discount 0.99", "discount 0.9", "discount 0.9"]
    assert found.order == ["discount 0.9", "discount 0.99"]
    assert found.values["discount 0.9"] == {"critic.discount": 0.9}
    assert found.between_tasks == ["solver.steps"]
    assert found.planned == [1, 1, 1, 1]


def test_labels_are_as_short_as_they_are_clear(tmp_path: Path) -> None:
    def config(name: str, steps: int, **more: int) -> dict[str, Any]:
        return {**critic(0.9, name, **more), "stages": {"critic": {"steps": steps}, "guidance": {"steps": 5}}}

    configs = [
        config("mine.First", 1, width=8), config("mine.Second", 1, depth=2), config("theirs.First", 1, width=8),
        config("mine.First", 2, width=8),
    ]  # fmt: skip
    runs = results(tmp_path, [("task-a", 0, config) for config in configs])
    # A class brings its own arguments; they are not named if the class tells the runs apart.
    assert settings_of(runs, TASK_KEYS).labels == [
        "critic First, critic.steps 1", "critic Second, critic.steps 1", "critic First, critic.steps 1 #2",
        "critic First, critic.steps 2",
    ]  # fmt: skip


def test_equal_runs_are_one_setting(tmp_path: Path) -> None:
    runs = results(tmp_path, [("task-a", 0, critic(1)), ("task-a", 1, critic(1.0))])
    assert settings_of(runs, TASK_KEYS).labels == ["CEP", "CEP"]


def test_settings_of_a_sweep_are_its_axes(tmp_path: Path) -> None:
    axes = [
        {"data.dataset": "task-a", "seed": 0, "critic.discount": 0.9},
        {"data.dataset": "task-b", "seed": 0, "critic.discount": 0.99},  # one value per task: still an axis
    ]
    for place, values in zip("ab", axes, strict=True):
        write(tmp_path / "runs" / place, {"other": place}, task=values["data.dataset"])
    plan = [("a", axes[0], "finished"), ("b", axes[1], "finished"), ("c", {**axes[1], "seed": 1}, "waiting")]
    write_sweep(tmp_path, plan)
    found = settings_of(find_runs([tmp_path]).runs, TASK_KEYS)
    assert found.labels == ["discount 0.9", "discount 0.99"]
    assert found.planned == [1, 2]
    assert found.between_tasks == []


def test_settings_of_a_sweep_of_several_parts(tmp_path: Path) -> None:
    axes = [{"seed": 0, "guidance.objective": "MSE"}, {"seed": 0, "guidance.objective.inverse_temperature": 3.0}]
    for place, values in zip("abc", [*axes, {"seed": 0}], strict=True):
        write(tmp_path / "runs" / place, {"seed": values["seed"]})
    write_sweep(tmp_path, [("a", axes[0], "finished"), ("b", axes[1], "finished"), ("c", {"seed": 0}, "finished")])
    found = settings_of(find_runs([tmp_path]).runs, TASK_KEYS)
    assert found.labels == ["objective MSE", "inverse_temperature 3", "default"]
    assert found.values["default"] == {}


def test_a_damaged_configuration(tmp_path: Path) -> None:
    runs = results(tmp_path, [("task-a", 0, {}), ("task-a", 1, {})])
    (tmp_path / "1/config.yaml").write_text("a: [\n")
    with pytest.raises(RunError, match=r"config\.yaml is damaged"):
        settings_of(runs, TASK_KEYS)
