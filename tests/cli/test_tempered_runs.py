"""`cepdiff fit` and `evaluate` with an energy network that takes the guidance scale, and with inverse temperatures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cepdiff.cli import main

TEMPERED = Path(__file__).parents[2] / "configs" / "tempered.yaml"
POINTS = """
data: {class_path: cepdiff.data.densities.datamodule.EnergyDataModule, dataset: rings, num_points: 500, block_size: 5}
behavior: {net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8]}}, batch_size: 16}
guidance:
  class_path: cepdiff.modules.tempered.TemperedBatchGuidance
  net: {width: 8, position_features: 4}
  batch_size: 16
  highest_scale: 4
solver: {num_steps: 2}
stages: {behavior: {max_steps: 5}, guidance: {max_steps: 5}}
evaluation: {num_samples: 32, floor_repeats: 2, scales: [0, 1, 4]}
trainer: {progress_bar: false}
"""


def rows(path: Path, metric: str) -> list[tuple[float, float]]:
    found = json.loads(path.read_text())["rows"]
    return [(row["scale"], row["value"]) for row in found if row["metric"] == metric]


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that ends with code 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines: list[str] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cepdiff")]
    assert len(lines) == 1
    return lines[0]


def test_offline_rl_at_every_temperature(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    fit = ["fit", "--config", config, "--config", TEMPERED, "--run_dir", run]
    said = complaint(capsys, *fit, "--evaluation.inverse_temperatures", "[0, 61]")
    assert "guidance scale 20.3333 is above 20, the highest that this energy network was trained at" in said
    guided = ("--sampler", "cepdiff.policy.resampling.Resampled", "--sampler.candidate_scale", "21")
    assert "guidance scale 21 is above 20" in complaint(capsys, *fit, *guided)
    assert not (run / "behavior").exists()

    assert main([*map(str, fit), "--evaluation.inverse_temperatures", "[0, 3, 20]"]) == 0
    shown = capsys.readouterr().out
    assert "inverse temperature" in shown
    assert rows(run / "results.json", "inverse_temperature") == [(0, 0), (1, 3), (20 / 3, 20)]
    values = (run / "config.yaml").read_text()
    assert "highest_scale: 20.0" in values

    again = ["evaluate", run, "--episodes", "1"]
    assert main([*map(str, again), "--inverse_temperatures", "0", "30"]) == 0
    assert "inverse temperature" in capsys.readouterr().out
    assert rows(run / "evaluation.json", "inverse_temperature") == [(0, 0), (10, 30)]
    assert "guidance scale 21 is above 20" in complaint(capsys, *again, "--scales", "21")
    assert "give only one of them" in complaint(capsys, *again, "--scales", "1", "--inverse_temperatures", "3")
    assert "--inverse_temperatures [-1.0]: expected numbers of 0 or more" in complaint(
        capsys, *again, "--inverse_temperatures", "-1"
    )


def test_points_at_every_temperature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = tmp_path / "points.yaml", tmp_path / "run"
    config.write_text(POINTS)
    assert "guidance scale 5 is above 4" in complaint(
        capsys, "fit", "--config", config, "--run_dir", run, "--evaluation.scales", "[1, 5]"
    )
    assert "evaluation.inverse_temperatures is []" in complaint(
        capsys, "fit", "--config", config, "--run_dir", run, "--evaluation.inverse_temperatures", "[]"
    )
    assert main(["fit", "--config", str(config), "--run_dir", str(run)]) == 0
    assert rows(run / "results.json", "inverse_temperature") == [(0, 0), (1, 3), (4, 12)]
    again = ["fit", "--config", str(config), "--run_dir", str(run), "--evaluation.inverse_temperatures", "[0, 3, 12]"]
    capsys.readouterr()
    assert main(again) == 0  # the same scales, said in another way
    assert capsys.readouterr().err.count("finished earlier, skipped") >= 3
