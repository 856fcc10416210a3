"""`cepdiff report` on what is no finished run, or a damaged one: one line, and no report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from report_runs import report, write_density, write_policy

from cepdiff.problems.density.samples import write_samples


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
