"""`cepdiff export` as a user types it, on a run folder with a small policy."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cepdiff.cli import main
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.score import MLPScore
from cepdiff.policy.export.noise import noise_of_seed
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import Recipe, write_recipe
from cepdiff.types import DataSpec

SPEC = DataSpec(3, 2, (-1.0, 0.0), (1.0, 5.0))
RECIPE = Recipe(
    dataset="some-task",
    spec=SPEC.to_dict(),
    sampler={"class_path": "cepdiff.policy.sampler.GuidedSampler", "init_args": {}},
    networks={
        "behavior": {"class_path": "cepdiff.networks.score.MLPScore", "init_args": {"hidden": [8]}},
        "energy": {"class_path": "cepdiff.networks.energy.EnergyMLP", "init_args": {"hidden": [8]}},
    },
    schedule={"class_path": "cepdiff.diffusion.schedule.LinearVP", "init_args": {}},
    solver={"class_path": "cepdiff.diffusion.solver.DPMSolver", "init_args": {"num_steps": 2}},
    objective={"class_path": "cepdiff.energy.objectives.CEP", "init_args": {}},
    scales=[0.0, 1.0],
    sources=[],
)


def write_policy(folder: Path, recipe: Recipe = RECIPE) -> None:
    """A policy file of small networks."""
    write_recipe(folder / "policy.pt", recipe, {"behavior": MLPScore(3, 2, [8]), "energy": EnergyMLP(3, 2, [8])})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder with a policy of two solver steps."""
    write_policy(tmp_path / "run")
    return tmp_path / "run"


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must end with code 2; returns its one line on stderr."""
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_run_becomes_a_file(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run_dir), "--format", "torch", "--num_solver_steps", "1"]) == 0
    shown = capsys.readouterr().out
    assert "observations (B, 3) float32, guidance_scale (B) float32, seed () int64 -> actions (B, 2)" in shown
    assert "at scale 0," in shown
    assert "at scale 3" in shown
    assert [line.split()[0] for line in shown.splitlines()[-3:]] == ["1", "10", "256"]
    assert sorted(path.name for path in run_dir.iterdir()) == ["policy.pt", "policy.pt2"]
    files = {"cepdiff.json": ""}
    sampler = torch.export.load(run_dir / "policy.pt2", extra_files=files).module()
    about = json.loads(files["cepdiff.json"])
    assert (about["task"], about["num_solver_steps"], about["guidance_scales"]) == ("some-task", 1, [0.0, 1.0])
    observations, seed = torch.ones(3, 3), torch.tensor(-4)
    actions = sampler(observations=observations, guidance_scale=torch.ones(3), seed=seed)
    policy = GuidedPolicy.from_run(run_dir, num_solver_steps=1)
    expected = policy.act(observations, noise=noise_of_seed(seed, 3, 2))
    torch.testing.assert_close(actions, expected, rtol=0.0, atol=1e-5)


def test_a_file_that_is_there_is_kept(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run_dir.parent / "elsewhere" / "file.bin"
    output.parent.mkdir()
    output.write_text("precious")
    arguments = [run_dir, "--format", "torch", "--output", output, "--no-check", "--num_solver_steps", 1]
    assert "--overwrite" in complaint(capsys, *arguments)
    assert output.read_text() == "precious"
    assert main(["export", *map(str, arguments), "--overwrite", "--randomness", "noise"]) == 0
    assert "noise (B, 2) float32" in (shown := capsys.readouterr().out)
    assert "difference" not in shown
    assert [path.name for path in output.parent.iterdir()] == ["file.bin"]
    assert torch.export.load(output) is not None


def test_a_file_that_differs_is_not_written(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cepdiff.policy.export.check.TOLERANCE", -1.0)
    line = complaint(capsys, run_dir, "--format", "torch", "--num_solver_steps", 1)
    assert "nothing written" in line
    assert "at scale 3" in line
    assert [path.name for path in run_dir.iterdir()] == ["policy.pt"]


def test_what_cannot_be_exported(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no run folder" in complaint(capsys, run_dir.parent / "nowhere", "--format", "torch")
    assert "--opset belongs" in complaint(capsys, run_dir, "--format", "torch", "--opset", 18)
    assert "opset is 3; expected 18" in complaint(capsys, run_dir, "--format", "onnx", "--opset", 3)
    assert "opset is 999; expected 18 to " in complaint(capsys, run_dir, "--format", "onnx", "--opset", 999)
    assert "is a folder" in complaint(capsys, run_dir, "--format", "torch", "--output", run_dir)
    assert "num_steps is 0" in complaint(capsys, run_dir, "--format", "torch", "--num_solver_steps", 0)
    images = run_dir.parent / "images"
    write_policy(images, replace(RECIPE, image_shape=[2, 1, 1], head_names=["a"]))
    assert "is a run on images, which `cepdiff sample` draws" in complaint(capsys, images, "--format", "torch")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(
        "cepdiff.policy.export.graph.find_spec", lambda name: None if name == "onnxscript" else object()
    )
    assert "[onnx]" in complaint(capsys, run_dir, "--format", "onnx")
