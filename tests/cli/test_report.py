"""`cepdiff report` as a user types it, on run folders with a few numbers in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from cepdiff.cli import main
from cepdiff.problems.density.samples import COLUMNS as DISTANCES
from cepdiff.problems.density.samples import EXACT, GUIDED, write_samples
from cepdiff.problems.offline.judge import COLUMNS as SCORES
from cepdiff.runs.results import Results, Row
from cepdiff.seals import content_hash

NUM_POINTS = 50


def write_density(
    folder: Path,
    dataset: str,
    method: str,
    multiple: float,
    *,
    beta: float = 3.0,
    seed: int = 0,
    scale: float = 1.0,
    seconds: Mapping[str, float] | None = None,
    made_from: Mapping[str, str] | None = None,
    num_points: int = NUM_POINTS,
) -> Path:
    """A finished run; sliced W2 is `multiple` floors of 0.5, energy distance twice as many floors of 0.25."""
    rows = [
        Row(scale, "sliced_wasserstein", 0.5 * multiple, floor=0.5, floor_error=0.1),
        Row(scale, "energy_distance", 0.5 * multiple, floor=0.25, floor_error=0.1),
    ]
    Results(
        problem="cepdiff.problems.density.points.PointDensity",
        dataset=dataset,
        seed=seed,
        title=f"{dataset}, {method}, beta {beta:g}, seed {seed}",
        rows=rows,
        columns=DISTANCES,
        method=method,
        inverse_temperature=beta,
        seconds=seconds or {"behavior": 10.0, "guidance": 5.0},
        made_from=made_from or {},
    ).write(folder / "results.json")
    points = torch.linspace(-1.0, 1.0, 2 * num_points).reshape(-1, 2)
    samples = {"data": points, EXACT.format(scale): points, GUIDED.format(scale): -points}
    write_samples(folder / "samples.npz", samples | {"energies": points[:, 0]})
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def write_policy(
    folder: Path,
    task: str,
    scores: Mapping[float, float],
    choice: float | None,
    *,
    seed: int = 0,
    normalized: bool = True,
    episodes: int = 10,
) -> Path:
    """A finished run of offline RL; returns are ten times the scores."""
    rows = []
    for scale, score in scores.items():
        if episodes:
            rows += [Row(scale, "episodes", episodes), Row(scale, "mean_return", 10 * score, error=1.0)]
        if episodes and normalized:
            rows.append(Row(scale, "normalized_score", score, error=0.1))
        if choice is not None:
            rows += [Row(scale, "offline_value", 1.0), Row(scale, "inside_support", 0.9)]
    Results(
        problem="cepdiff.problems.offline.problem.OfflineRL",
        dataset=task,
        seed=seed,
        title=f"{task}, seed {seed}",
        rows=rows,
        columns=SCORES,
        method="CEP",
        inverse_temperature=3.0,
        about={"offline_choice": choice},
        seconds={"behavior": 10.0, "support": 1.0, "critic": 5.0, "guidance": 5.0},
    ).write(folder / "results.json")
    return folder


def report(output: Path, *folders: Path) -> int:
    """The command in this process."""
    return main(["report", *map(str, folders), "--output", str(output)])


def read(output: Path) -> dict[str, Any]:
    """The report as plain Python objects."""
    content: dict[str, Any] = json.loads((output / "report.json").read_text())
    return content


def section(output: Path, title: str) -> dict[str, Any]:
    """The section with this title, as plain Python objects."""
    (found,) = [section for section in read(output)["sections"] if section["title"] == title]
    return dict(found)


def cells(line: str) -> list[str]:
    """The cells of a Markdown line."""
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def markdown_table(page: str, title: str) -> dict[str, list[str]]:
    """Lines of the table below `title`, header included, by their first cell."""
    rows = page.split(f"**{title}**\n\n")[1].split("\n\n")[0].splitlines()
    return {cells(row)[0]: cells(row)[1:] for row in rows if not row.startswith("| ---")}


@pytest.fixture
def densities(tmp_path: Path) -> list[Path]:
    """CEP, MSE and DPS on moons, rings and the user's data (DPS not on rings); CEP has two seeds on moons."""
    return [
        write_density(tmp_path / "1", "own-data", "CEP", 4.0),
        write_density(tmp_path / "2", "rings", "CEP", 2.0),
        write_density(tmp_path / "3", "moons", "CEP", 1.0, seed=1),
        write_density(tmp_path / "4", "moons", "CEP", 2.0, seed=0),
        write_density(tmp_path / "5", "own-data", "DPS", 3.0),
        write_density(tmp_path / "6", "moons", "DPS", 1.5),
        write_density(tmp_path / "7", "own-data", "MSE", 8.0),
        write_density(tmp_path / "8", "rings", "MSE", 5.0),
        write_density(tmp_path / "9", "moons", "MSE", 7.0),
    ]


def test_tables_of_densities(densities: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report"
    assert report(output, *densities) == 0
    spread = ", mean ± standard deviation over the seeds"
    page = (output / "report.md").read_text()
    table = markdown_table(page, f"beta 3, sliced W2 as a multiple of the noise floor{spread}")
    assert list(table) == ["method", "CEP", "MSE", "DPS"]  # the paper's order, not alphabetical
    assert table["method"] == ["Moons", "Rings", "own-data", "median"]
    # Standard deviation of (1, 2) with n - 1: sqrt(0.5). CEP and DPS tie on moons.
    assert table["CEP"] == ["1.50 ± 0.71 *", "2.00 *", "4.00", "2.00 *"]
    assert table["MSE"] == ["7.00", "5.00", "8.00", "7.00"]
    assert table["DPS"] == ["1.50 *", "-", "3.00 *", "2.25 (2 of 3)"]
    other = markdown_table(page, f"beta 3, energy distance as a multiple of the noise floor{spread}")
    assert other["DPS"] == ["3.00 *", "-", "6.00 *", "4.50 (2 of 3)"]
    assert page.count("CEP is at least as good as every baseline on 2 of 3 densities (67%).") == 2
    assert "9 runs of densities, 135 s of training" in page
    shown = capsys.readouterr().out
    for text in (
        "1.50 ± 0.71 *",
        "2.25 (2 of 3)",
        "2 of 3 densities (67%)",
        "135 s of training",
        "densities-beta3.png",
    ):
        assert text in shown


def test_json_of_densities(densities: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "report"
    assert report(output, *densities) == 0
    found = read(output)
    assert set(found) == {"cepdiff", "sections", "training_seconds", "runs"}
    table = section(output, "Densities, beta 3")["tables"][0]
    assert (table["beta"], table["distance"]) == (3.0, "sliced_wasserstein")
    cell = table["cells"]["CEP"]["moons"]
    assert cell == {"mean": 1.5, "std": pytest.approx(math.sqrt(0.5)), "values": {"0": 2.0, "1": 1.0}}
    assert table["cells"]["MSE"]["rings"] == {"mean": 5.0, "std": None, "values": {"0": 5.0}}
    assert "rings" not in table["cells"]["DPS"]
    assert table["median"] == {"CEP": 2.0, "MSE": 7.0, "DPS": 2.25}
    assert table["best"] == {"moons": ["CEP", "DPS"], "rings": ["CEP"], "own-data": ["DPS"], "median": ["CEP"]}
    assert table["cep_at_least_as_good"] == {"densities": 2, "of": 3, "share": pytest.approx(2 / 3)}
    assert found["training_seconds"] == 135.0
    run = next(run for run in found["runs"] if run["folder"] == str(densities[1]))
    assert (run["dataset"], run["method"], run["inverse_temperature"], run["seed"]) == ("rings", "CEP", 3.0, 0)
    assert (run["problem"], run["seconds"]) == (
        "cepdiff.problems.density.points.PointDensity", {"behavior": 10.0, "guidance": 5.0}
    )  # fmt: skip
    (row,) = [row for row in run["rows"] if row["metric"] == "energy_distance"]
    assert row == {
        "scale": 1.0, "metric": "energy_distance", "value": 1.0, "head": "", "error": None, "floor": 0.25,
        "floor_error": 0.1, "multiple": 4.0,
    }  # fmt: skip


def test_each_beta_has_its_figure(densities: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "report"
    other = write_density(tmp_path / "other", "rings", "CEP", 2.0, beta=0.5)
    assert report(output, *densities, other) == 0
    assert {path.name for path in output.iterdir()} == {
        "report.json", "report.md", "densities-beta3.png", "densities-beta0.5.png",
    }  # fmt: skip
    page = (output / "report.md").read_text()
    assert page.index("(densities-beta0.5.png)") < page.index("(densities-beta3.png)")
    # A single method is not marked as best, and has no baseline to match.
    assert "| CEP | 2.00 | 2.00 |" in page
    assert page.count("CEP is at least") == 2
    image = imread(output / "densities-beta3.png")[..., :3]
    alone = imread(output / "densities-beta0.5.png")[..., :3]
    assert image.std() > 0.05
    assert image.shape[0] > 1.5 * alone.shape[0]  # five rows against three
    assert image.shape[1] > 1.5 * alone.shape[1]  # three columns against one


def test_a_missing_run_leaves_an_empty_cell(densities: list[Path], tmp_path: Path) -> None:
    def empty_share(folders: list[Path]) -> float:
        output = tmp_path / f"report{len(folders)}"
        assert report(output, *folders) == 0
        image = imread(output / "densities-beta3.png")[..., :3]
        return float((abs(image - 0.97) < 0.005).all(-1).mean())

    assert empty_share(densities) > 0.03  # one of fifteen cells is grey
    assert empty_share([*densities, write_density(tmp_path / "whole", "rings", "DPS", 1.0)]) < 0.003


def test_a_stage_that_runs_share_is_trained_once(tmp_path: Path) -> None:
    for method in ("CEP", "MSE"):
        made_from = {"behavior_checkpoint": "one", "guidance_checkpoint": method}
        write_density(tmp_path / method, "moons", method, 1.0, made_from=made_from)
    assert report(tmp_path / "report", tmp_path / "CEP", tmp_path / "MSE") == 0
    assert read(tmp_path / "report")["training_seconds"] == 20.0


def test_a_floor_of_zero_is_infinitely_far(tmp_path: Path) -> None:
    run = write_density(tmp_path / "run", "moons", "CEP", 1.0)
    content = json.loads((run / "results.json").read_text())
    for row in content["rows"]:
        row["floor"] = 0.0
    del content["hash"]
    (run / "results.json").write_text(json.dumps({**content, "hash": content_hash(content)}))
    assert report(tmp_path / "report", run, write_density(tmp_path / "b", "moons", "CEP", 1.0, seed=1)) == 0
    cell = section(tmp_path / "report", "Densities, beta 3")["tables"][0]["cells"]["CEP"]["moons"]
    assert cell == {"mean": None, "std": None, "values": {"0": None, "1": 1.0}}
    assert "| CEP | inf | inf |" in (tmp_path / "report" / "report.md").read_text()


@pytest.fixture
def policies(tmp_path: Path) -> list[Path]:
    """Regrets: 0, 4, 6, 5 for the offline choice; 20, 10, 6, 0 for scale 0; 8, 4, 0, 5 for scale 1."""
    return [
        write_policy(tmp_path / "p1", "walker2d-medium-v2", {0.0: 40.0, 1.0: 52.0, 2.0: 60.0}, 2.0, seed=1),
        write_policy(tmp_path / "p2", "walker2d-medium-v2", {0.0: 40.0, 1.0: 46.0, 2.0: 50.0}, 1.0),
        write_policy(tmp_path / "p3", "hopper-medium-v2", {0.0: 44.0, 1.0: 50.0}, 0.0),
        write_policy(tmp_path / "p4", "my-task", {0.0: 25.0, 1.0: 20.0}, 1.0),
    ]


LINE = (
    "The offline choice is within 5 points of the best scale in 3 of 4 runs; "
    "mean regret 3.8 points (always scale 0: 9.0, always scale 1: 4.2)."
)
POLICY_TITLE = "normalised score by guidance scale (scale 0 is the behavior policy)"


def test_table_of_policies(policies: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report"
    assert report(output, *policies) == 0
    page = (output / "report.md").read_text()
    rows = page.split(f"**{POLICY_TITLE}**\n\n")[1].split("\n\n")[0].splitlines()
    assert [cells(row) for row in rows[2:]] == [
        # the registry's order, then seeds, then the user's tasks
        ["hopper-medium-v2", "0", "44.0", "50.0", "1", "50.0", "0", "44.0", "6.0"],
        ["walker2d-medium-v2", "0", "40.0", "46.0", "2", "50.0", "1", "46.0", "4.0"],
        ["walker2d-medium-v2", "1", "40.0", "52.0", "2", "60.0", "2", "60.0", "0.0"],
        ["my-task", "0", "25.0", "20.0", "0", "25.0", "1", "20.0", "5.0"],
    ]
    assert LINE in page
    assert LINE in capsys.readouterr().out
    found = section(output, "Offline RL")
    assert found["summary"] == {
        "runs": 4, "of": 4, "within": 3, "regret": 3.75, "behavior_regret": 9.0, "exact_regret": 4.25,
    }  # fmt: skip
    assert found["rows"][0]["regret"] == 6.0
    run = next(run for run in read(output)["runs"] if run["folder"] == str(policies[0]))
    rows_at_1 = {row["metric"]: (row["value"], row["error"]) for row in run["rows"] if row["scale"] == 1.0}
    assert rows_at_1 == {
        "episodes": (10, None), "mean_return": (520.0, 1.0), "normalized_score": (52.0, 0.1),
        "offline_value": (1.0, None), "inside_support": (0.9, None),
    }  # fmt: skip
    image = imread(output / "scores.png")
    orange = (image[..., 0] > 0.9) & (image[..., 2] < 0.2)
    assert orange.sum() > 4 * 32  # four stars and the one in the legend
    assert image[..., :3].std() > 0.05


def test_runs_that_cannot_be_summarised_are_shown(policies: list[Path], tmp_path: Path) -> None:
    odd = [
        write_policy(tmp_path / "returns", "a-returns", {0.0: 1.0, 1.0: 3.0}, 0.0, normalized=False),
        write_policy(tmp_path / "no-choice", "b-no-choice", {0.0: 1.0, 1.0: 3.0}, None),
        write_policy(tmp_path / "no-one", "c-no-one", {0.0: 1.0, 2.0: 3.0}, 0.0),
        write_policy(tmp_path / "no-episodes", "d-no-episodes", {0.0: 0.0, 1.0: 0.0}, 1.0, episodes=0),
        write_policy(tmp_path / "no-rows", "e-no-rows", {}, None),
    ]
    output = tmp_path / "report"
    assert report(output, *policies, *odd) == 0
    page = (output / "report.md").read_text()
    assert "| a-returns (return) | 0 | 10.0 | 30.0 | 1 | 30.0 | 0 | 10.0 | 20.0 |" in page
    assert "| b-no-choice | 0 | 1.0 | 3.0 | 1 | 3.0 | - | - | - |" in page
    assert "| c-no-one | 0 | 1.0 | - | 2 | 3.0 | 0 | 1.0 | 2.0 |" in page
    assert "| d-no-episodes | 0 | - | - | - | - | 1 | - | - |" in page
    assert "| e-no-rows | 0 | - | - | - | - | - | - | - |" in page
    assert f"{LINE} Not counted: 5 without" in page


def test_runs_without_episodes_have_a_table_and_no_figure(tmp_path: Path) -> None:
    run = write_policy(tmp_path / "run", "my-task", {0.0: 0.0, 1.0: 0.0}, 1.0, episodes=0)
    assert report(tmp_path / "report", run) == 0
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "report.md"}
    assert section(tmp_path / "report", "Offline RL")["summary"] is None
    assert "The offline choice" not in (tmp_path / "report" / "report.md").read_text()


def test_both_kinds_and_what_a_glob_brings(
    densities: list[Path], policies: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = [*densities[0].iterdir(), *densities[1].iterdir()]
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").touch()
    elsewhere = write_density(tmp_path / "elsewhere", "rings", "CEP", 1.0, scale=2.0, seed=5)
    output = tmp_path / "report"
    # The same folder under two names is one run.
    twice = policies[0].parent / "x" / ".." / policies[0].name
    (tmp_path / "x").mkdir()
    assert report(output, *densities, *policies, *foreign, unfinished, elsewhere, twice) == 0
    assert {path.name for path in output.iterdir()} == {"report.json", "report.md", "densities-beta3.png", "scores.png"}
    problems = [run["problem"].rpartition(".")[2] for run in read(output)["runs"]]
    assert (problems.count("PointDensity"), problems.count("OfflineRL")) == (10, 4)
    assert len(section(output, "Offline RL")["rows"]) == 4
    cells_of_cep = section(output, "Densities, beta 3")["tables"][0]["cells"]["CEP"]
    assert "5" not in cells_of_cep["rings"]["values"]  # not compared at scale 1
    assert [found["title"] for found in read(output)["sections"]] == ["Densities, beta 3", "Offline RL"]
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("note: no run folders, skipped: ")
    assert first.endswith(" and 1 more")
    assert "not finished" in second
    assert second.endswith(str(unfinished))
    assert "not compared at guidance scale 1" in third
    assert third.endswith(str(elsewhere))


def test_unequal_numbers_of_samples_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_density(tmp_path / "a", "moons", "CEP", 1.0)
    b = write_density(tmp_path / "b", "moons", "MSE", 1.0, num_points=60)
    assert report(tmp_path / "report", a, b) == 0
    assert "runs with 50, 60 samples side by side" in capsys.readouterr().err


def test_the_default_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_policy(tmp_path / "run", "my-task", {0.0: 1.0}, None)
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run)]) == 0
    assert (tmp_path / "report" / "report.md").is_file()


def refused(capsys: pytest.CaptureFixture[str], output: Path, *folders: Path) -> str:
    """The single line of a refusal with exit code 2; nothing is written."""
    assert report(output, *folders) == 2
    assert not output.is_dir()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return shown.err.splitlines()[-1]


def test_no_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    line = refused(capsys, tmp_path / "report", tmp_path / "empty")
    assert "no finished run" in line
    assert "results.json" in line
    assert "there is no run folder" in refused(capsys, tmp_path / "report", tmp_path / "nowhere")


def test_twins_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_density(tmp_path / name, "moons", "CEP", 1.0) for name in ("a", "b"))
    line = refused(capsys, tmp_path / "report", a, b)
    assert f"{a} and {b} are both moons, CEP, beta 3, seed 0" in line
    c, d = (write_policy(tmp_path / name, "my-task", {0.0: 1.0}, None) for name in ("c", "d"))
    assert f"{c} and {d} are both my-task, seed 0" in refused(capsys, tmp_path / "report", c, d)


DAMAGES = ["torn", "[]", "{}", "null", "seed", "columns", "inverse_temperature", "about", "text", "infinite", "no rows"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["points", "policy"])
def test_damaged_files(kind: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "policy":
        run = write_policy(tmp_path / "run", "my-task", {0.0: 1.0, 1.0: 2.0}, 1.0)
    else:
        run = write_density(tmp_path / "run", "moons", "CEP", 1.0)
    path = run / "results.json"
    text = path.read_text()
    content = json.loads(text)
    if damage == "torn":
        path.write_text(text[: len(text) // 2])
    elif damage in ("text", "infinite"):
        content["rows"][0]["value"] = "many" if damage == "text" else math.inf
        path.write_text(json.dumps(content))
    elif damage == "no rows":
        del content["rows"]
        path.write_text(json.dumps(content))
    elif damage in content:
        del content[damage]
        path.write_text(json.dumps(content))
    else:
        path.write_text(damage)
    assert f"{path} is damaged" in refused(capsys, tmp_path / "report", run)


@pytest.mark.parametrize("kind", ["points", "policy"])
def test_results_of_another_version(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "policy":
        run = write_policy(tmp_path / "run", "my-task", {0.0: 1.0, 1.0: 2.0}, 1.0)
    else:
        run = write_density(tmp_path / "run", "moons", "CEP", 1.0)
    path = run / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    assert f"{path} was written by another version of cepdiff" in refused(capsys, tmp_path / "report", run)


def test_damaged_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_density(tmp_path / "run", "moons", "CEP", 1.0)
    content = (run / "samples.npz").read_bytes()
    (run / "samples.npz").write_bytes(content[: len(content) // 2])
    assert "samples.npz cannot be read" in refused(capsys, tmp_path / "report", run)
    (run / "samples.npz").unlink()
    assert "samples.npz cannot be read" in refused(capsys, tmp_path / "report", run)
    write_samples(run / "samples.npz", {"data": torch.zeros(3, 2), "energies": torch.zeros(3)})
    assert "samples.npz lacks samples" in refused(capsys, tmp_path / "report", run)


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_policy(tmp_path / "run", "my-task", {0.0: 1.0}, None)
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"{output}/report.md: cannot be written (Not a directory)" in refused(capsys, output, run)
