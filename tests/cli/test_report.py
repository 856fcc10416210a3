"""`cepdiff report` as a user types it, on run folders with a few numbers in them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from matplotlib.image import imread
from report_runs import cells, markdown_table, read, report, section, write_density, write_policy

from cepdiff.cli import main
from cepdiff.seals import content_hash


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
    # Standard deviation of (1, 2) with n - 1: sqrt(0.5). CEP and DPS tie on moons. A seed's noise is 0.1 / 0.5 floors.
    assert table["CEP"] == ["1.50 ± 0.71", "2.00 *", "4.00", "2.00"]
    assert table["MSE"] == ["7.00", "5.00", "8.00", "7.00"]
    assert table["DPS"] == ["1.50", "-", "3.00 *", "2.25 (2 of 3)"]
    other = markdown_table(page, f"beta 3, energy distance as a multiple of the noise floor{spread}")
    assert other["DPS"] == ["3.00", "-", "6.00 *", "4.50 (2 of 3)"]
    assert page.count("CEP is at least as good as every baseline on 2 of 3 densities (67%).") == 2
    assert "9 runs of densities, 135 s of training" in page
    shown = capsys.readouterr().out
    for text in (
        "1.50 ± 0.71  ",
        "3.00 *",
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
    assert table["best"] == {"moons": None, "rings": "CEP", "own-data": "DPS"}
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
        "floor_error": 0.1, "count": None, "multiple": 4.0,
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
        ["hopper-medium-v2", "0", "44.0", "50.0", "1", "50.0 *", "0", "44.0", "6.0"],
        ["walker2d-medium-v2", "0", "40.0", "46.0", "2", "50.0 *", "1", "46.0", "4.0"],
        ["walker2d-medium-v2", "1", "40.0", "52.0", "2", "60.0 *", "2", "60.0", "0.0"],
        ["my-task", "0", "25.0", "20.0", "0", "25.0 *", "1", "20.0", "5.0"],
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
    assert "| a-returns (return) | 0 | 10.0 | 30.0 | 1 | 30.0 * | 0 | 10.0 | 20.0 |" in page
    assert "| b-no-choice | 0 | 1.0 | 3.0 | 1 | 3.0 * | - | - | - |" in page
    assert "| c-no-one | 0 | 1.0 | - | 2 | 3.0 * | 0 | 1.0 | 2.0 |" in page
    assert "| d-no-episodes | 0 | - | - | - | - | 1 | - | - |" in page
    assert "| e-no-rows | 0 | - | - | - | - | - | - | - |" in page
    assert f"{LINE} Not counted: 5 without" in page


def test_the_highest_score_within_the_noise_is_not_marked(tmp_path: Path) -> None:
    """Ten episodes, standard errors of 0.1: t is 2.3 for nine degrees of freedom, and 2.3 √2 0.1 = 0.325."""
    near = write_policy(tmp_path / "near", "my-task", {0.0: 40.0, 1.0: 40.32}, None)
    far = write_policy(tmp_path / "far", "other-task", {0.0: 40.0, 1.0: 40.33}, None)
    assert report(tmp_path / "report", near, far) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| my-task | 0 | 40.0 | 40.3 | 1 | 40.3 | - | - | - |" in page
    assert "| other-task | 0 | 40.0 | 40.3 | 1 | 40.3 * | - | - | - |" in page
    assert page.count("* the best: above every other scale of the run by more than the noise") == 1
    leads = {row["task"]: row["leads"] for row in section(tmp_path / "report", "Offline RL")["rows"]}
    assert leads == {"my-task": False, "other-task": True}


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
    figures = {"densities-beta3.png", "scores.png", "statistics.png", "profiles.png"}
    assert {path.name for path in output.iterdir()} == {"report.json", "report.md", *figures}
    problems = [run["problem"].rpartition(".")[2] for run in read(output)["runs"]]
    assert (problems.count("PointDensity"), problems.count("OfflineRL")) == (10, 4)
    assert len(section(output, "Offline RL")["rows"]) == 4
    cells_of_cep = section(output, "Densities, beta 3")["tables"][0]["cells"]["CEP"]
    assert "5" not in cells_of_cep["rings"]["values"]  # not compared at scale 1
    titles = [found["title"] for found in read(output)["sections"]]
    assert titles == ["Densities, beta 3", "Offline RL", "Scores over seeds, offline choice", "Not finished"]
    assert section(output, "Not finished")["runs"] == {str(unfinished): "not finished"}
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
