"""Run folders of earlier versions: every command reports them in one line and leaves them unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cepdiff.cli import main
from cepdiff.runs.folder import FORMAT
from cepdiff.seals import read_sealed, write_sealed

ADVICE = "was made by another version of cepdiff, whose folders this one does not read: choose another --run_dir"


@pytest.fixture(params=["scores.json", "distances.json", "images.json"])
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A finished run as an earlier version left it: results, a record without a format, an older policy."""
    folder = tmp_path / "earlier"
    (folder / "behavior").mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / "config.yaml").write_text("seed: 0\n")
    record = {"done": True, "seconds": 3.0, "made_from": {"seed": 0, "max_steps": 20}}
    (folder / "behavior" / "stage.json").write_text(json.dumps(record))
    torch.save({"state_dict": {"net.weight": torch.zeros(2)}}, folder / "behavior" / "final.ckpt")
    (folder / request.param).write_text('{"seed": 0}')
    torch.save({"format": 1, "recipe": {"task": "some-task"}, "weights": {}}, folder / "policy.pt")
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification time of every file in a folder, but for locks."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }  # fmt: skip


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must end with code 2; returns its one line on stderr."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cepdiff:")]
    return line


@pytest.mark.parametrize("more", [[], ["--stage", "evaluation"], ["--seed", "1"]], ids=["all", "stage", "seed"])
def test_fit_refuses_it(config: Path, earlier: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(earlier)
    line = complaint(capsys, "fit", "--config", config, "--run_dir", earlier, *more)
    assert line.startswith(f"cepdiff: {earlier} {ADVICE}")
    assert contents(earlier) == before


def test_fit_refuses_an_unfinished_one(config: Path, earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no results yet, but its record has no format."""
    for name in ("scores.json", "distances.json", "images.json"):
        (earlier / name).unlink(missing_ok=True)
    before = contents(earlier)
    line = complaint(capsys, "fit", "--config", config, "--run_dir", earlier)
    assert line.startswith(f"cepdiff: {earlier / 'behavior'} {ADVICE}")
    assert contents(earlier) == before


def test_fit_takes_nothing_over_from_it(
    config: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(earlier)
    line = complaint(capsys, "fit", "--config", config, "--run_dir", tmp_path / "new", "--reuse", earlier)
    assert line.startswith(f"cepdiff: {earlier / 'behavior'} {ADVICE}")
    assert contents(earlier) == before
    assert not (tmp_path / "new" / "behavior").exists()


def test_evaluate_and_export_name_the_format_of_its_policy(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(earlier)
    expected = f"cepdiff: {earlier / 'policy.pt'} has format 1; this version of cepdiff reads 3"
    assert complaint(capsys, "evaluate", earlier) == expected
    assert complaint(capsys, "export", earlier, "--format", "torch") == expected
    assert complaint(capsys, "sample", earlier, "--output", earlier.parent / "a.png") == expected
    assert contents(earlier) == before


def test_report_leaves_it_out(config: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, output = tmp_path / "run", tmp_path / "report"
    assert main(["fit", "--config", str(config), "--run_dir", str(run)]) == 0
    before = contents(earlier)
    capsys.readouterr()
    assert main(["report", str(run), str(earlier), "--output", str(output)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"note: made by an earlier version of cepdiff, skipped (run `cepdiff fit` with another --run_dir): {earlier}"
    )
    assert [found["folder"] for found in json.loads((output / "report.json").read_text())["runs"]] == [str(run)]
    shutil.rmtree(output)
    assert main(["report", str(earlier), "--output", str(output)]) == 2
    skipped, failed = capsys.readouterr().err.splitlines()
    assert skipped == line
    assert "there is no finished run among these folders" in failed
    assert not output.exists()
    assert contents(earlier) == before


def test_an_option_that_is_new_since_the_run_is_no_difference_at_its_default(
    finished_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, finished = finished_run
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    path = run / "critic" / "stage.json"
    record = read_sealed(path, FORMAT)
    assert record is not None
    del record["made_from"]["critic"]["init_args"]["independent_targets"]
    write_sealed(path, record)
    arguments = ["fit", "--config", str(config), "--run_dir", str(run)]
    assert main(arguments) == 0
    assert "critic: finished earlier, skipped" in capsys.readouterr().err
    line = complaint(capsys, *arguments, "--critic.independent_targets", "true")
    assert "critic.independent_targets was None, now True" in line
