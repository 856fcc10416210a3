"""The scripts in `benchmarks/`, run as a user would but with few steps: their output and their files."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from matplotlib.image import imread

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NUMBER = r"\d+\.?\d*(?:e[-+]\d+)?"


def load(name: str) -> ModuleType:
    """Import a script as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def exactness() -> ModuleType:
    return load("exactness")


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """Restore the settings that the scripts change for their own process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def run(script: ModuleType, output: Path, *arguments: object) -> dict[str, Any]:
    """Runs one part of the exactness benchmark and returns its JSON."""
    script.main([*map(str, arguments), "--output", str(output)])
    found: dict[str, Any] = json.loads((output / f"exactness-{arguments[0]}.json").read_text())
    return found


@pytest.mark.slow
def test_error_of_the_solver(exactness: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error falls with NFE at every order, and faster at higher ones."""
    nfe = [15, 30, 60]
    found = run(exactness, tmp_path, "solver", "--dims", 2, "--betas", 3, "--samples", 500, "--nfe", *nfe)
    assert found["settings"] | {"part": "solver", "dims": [2], "betas": [3.0], "nfe": nfe} == found["settings"]
    records = {(record["method"], record["order"]): record for record in found["records"]}
    assert set(records) == {(method, order) for method in ("multistep", "singlestep") for order in (1, 2, 3)}
    for (method, order), record in records.items():
        assert (record["size"], record["nfe"]) == (2, nfe)
        errors = record["error"]
        assert errors == sorted(errors, reverse=True)
        if method == "multistep" and order > 1:
            assert errors[-1] < records[method, order - 1]["error"][-1] / 2
        assert list(record["multiples"]) == ["15"]
    assert records["multistep", 1]["error"][-1] > 3e-3  # first order has not converged yet
    assert records["multistep", 3]["error"][-1] < 3e-3
    assert records["multistep", 3]["multiples"]["15"] < 2.0

    lines = capsys.readouterr().out.splitlines()
    errors_of_line = "  ".join(rf"{steps}: {NUMBER}" for steps in nfe)
    for line, (method, order) in zip(lines, records, strict=False):
        assert re.fullmatch(
            rf"  2-D  {method:10} order {order}  error at NFE {errors_of_line}  \| {NUMBER} x floor", line
        )
    assert lines[-1] == f"written {tmp_path / 'exactness-solver.json'} and {tmp_path / 'exactness-solver.png'}"
    assert imread(tmp_path / "exactness-solver.png").ndim == 3


def test_distance_with_few_steps(exactness: ModuleType, tmp_path: Path) -> None:
    """Ten steps with mixed spacing are more exact than with the default, and these than steps equal in time."""
    found = run(exactness, tmp_path, "steps", "--dims", 2, "--samples", 2000, "--nfe", 10)
    multiples = {(record["order"], record["spacing"]): record["multiples"] for record in found["records"]}
    assert len(multiples) == 8
    assert multiples[2, "mixed"][0] < multiples[2, "logsnr"][0] < multiples[2, "time_uniform"][0] / 2


@pytest.mark.slow
def test_error_of_learned_guidance(exactness: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--dims", 2, "--betas", 3, "--steps", 20, "--samples", 200, "--num_solver_steps", 6, "--batch_size", 16]
    found = run(exactness, tmp_path, "guidance", *few)
    methods = [*exactness.OBJECTIVES, "DPS"]
    assert [record["method"] for record in found["records"]] == methods
    assert found["settings"]["samples"] == 200
    for record in found["records"]:
        errors = record["gradient_error"]
        assert (record["size"], record["beta"]) == (2, 3.0)
        assert len(errors["times"]) == len(errors["relative"]) == exactness.GRID
        assert errors["times"] == sorted(errors["times"], reverse=True)
        assert all(value > 0.0 for value in errors["relative"])
        assert min(errors["relative"]) <= errors["weighted"] <= max(errors["relative"])
        assert record["multiple"] > 0.5
        assert (record["seconds"] > 0.0) == (record["method"] != "DPS")
    learned = [record["gradient_error"]["weighted"] for record in found["records"][:-1]]
    assert len(set(learned)) == len(learned)  # no two methods give the same errors

    *lines, last = capsys.readouterr().out.splitlines()
    for line, record in zip(lines, found["records"], strict=True):
        error = record["gradient_error"]["weighted"]
        assert line.startswith(f"  2-D  beta    3  {record['method']:22}  gradient error {error:7.1%}  sliced W2 ")
        assert re.search(rf"  sliced W2 {NUMBER} \({NUMBER} x floor\)  +\d+ s$", line)
    assert last.startswith("written ")
    assert imread(tmp_path / "exactness-guidance.png").ndim == 3


def test_dps_trains_nothing(exactness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "MixtureData", None)  # saves a million unused points
    few = ["--dims", 2, "--betas", 3, "--samples", 200, "--num_solver_steps", 6]
    (record,) = run(exactness, tmp_path, "guidance", *few, "--methods", "DPS")["records"]
    assert record["gradient_error"]["weighted"] > 0.1


@pytest.mark.parametrize("size", [1, 2, 8])
def test_exact_guidance_has_no_error_and_that_of_dps_is_no_matter_of_training(exactness: ModuleType, size: int) -> None:
    exact = exactness.problem(size, beta=3.0)
    assert exactness.gradient_errors(exact, exact.logits)["weighted"] < 1e-10
    dps, _ = exactness.train(exact, None, "DPS", None)
    errors = exactness.gradient_errors(exact, dps)
    assert errors["weighted"] > 0.1
    assert errors["relative"][-1] < 0.01  # at t_min the clean sample is known, so DPS is right


def test_problem_has_energies_from_zero_to_about_one(exactness: ModuleType) -> None:
    exact = exactness.problem(2, beta=3.0)
    energies = exactness.MixtureData(exact, 0).fields["energies"]
    assert -1e-3 < float(energies.min()) < 1e-2
    assert math.isclose(float(energies[:100_000].quantile(0.95)), 1.0, abs_tol=0.05)


def test_solver_takes_one_beta(exactness: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        exactness.main(["solver", "--betas", "3", "10", "--output", str(tmp_path)])
    assert "the solver part takes one beta" in capsys.readouterr().err


def test_temperatures_compare_two_networks_at_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["closed_form", "--dims", "1", "--betas", "3", "6", "--steps", "3", "--samples", "50"]
    load("temperatures").main([*arguments, "--num_solver_steps", "3", "--output", str(tmp_path)])
    records = json.loads((tmp_path / "temperatures-closed_form.json").read_text())["records"]
    cells = [(record["method"], record["beta"]) for record in records]
    assert cells == [("multiplied", 3.0), ("multiplied", 6.0), ("tempered", 3.0), ("tempered", 6.0)]
    shown = capsys.readouterr().out
    for record in records:
        assert math.isfinite(record["gradient_error"])
        assert record["multiple"] > 0
        line = rf"1-D +{record['method']} +beta +{record['beta']:g} +gradient error +{NUMBER}% +sliced W2 +{NUMBER}"
        assert re.search(line, shown)


@pytest.mark.slow
def test_densities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Two methods on one density: they share the first one's prior, and the report has both."""
    runs, output = tmp_path / "runs", tmp_path / "report"
    arguments = ["--densities", "rings", "--methods", "DPS", "CEP", "--betas", "3", "--workers", "1"]
    arguments += ["--runs", str(runs), "--output", str(output), "--data.num_points", "500"]
    arguments += ["--stages.behavior.max_steps", "3", "--stages.guidance.max_steps", "3", "--solver.num_steps", "3"]
    arguments += ["--evaluation.num_samples", "32", "--evaluation.floor_repeats", "2"]
    monkeypatch.setattr(sys, "argv", ["densities.py", *arguments])
    with pytest.raises(SystemExit) as end:
        load("densities").main()
    assert end.value.code == 0

    folders = [runs / f"rings-{method}-beta3-seed0" for method in ("DPS", "CEP")]
    assert sorted(runs.iterdir()) == sorted(folders)
    assert len({(folder / "behavior" / "final.ckpt").read_bytes() for folder in folders}) == 1
    assert not (folders[1] / "logs" / "behavior").exists()
    shown = capfd.readouterr().out
    for folder in folders:
        assert re.search(rf"^{folder.name}: \d+ s$", shown, re.MULTILINE)
    assert re.search(r"^wall clock \d+ s with 1 workers, training \d+ s of one core$", shown, re.MULTILINE)
    for method in ("CEP", "DPS"):
        assert re.search(rf"^{method} +{NUMBER}", shown, re.MULTILINE)
    assert str(output / "report.md") in shown
    found = json.loads((output / "report.json").read_text())
    (section,) = found["sections"]
    assert section["title"] == "Densities, beta 3"
    assert len(section["tables"]) == 2  # one per distance
    assert all(set(table["cells"]) == {"CEP", "DPS"} for table in section["tables"])
    assert imread(output / "densities-beta3.png").ndim == 3
