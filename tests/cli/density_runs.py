"""A density of points that trains in a second, and what the tests ask about its run folders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cepdiff.cli import main

TINY = """
data: {class_path: cepdiff.data.densities.datamodule.EnergyDataModule, dataset: rings, num_points: 1000, block_size: 5}
behavior: {net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8]}}, batch_size: 16}
guidance: {batch_size: 16, times_per_step: 2}
solver: {num_steps: 2}
stages:
  behavior: {max_steps: 20, checkpoint_every: 10}
  guidance: {max_steps: 20, checkpoint_every: 10}
evaluation: {num_samples: 64, floor_repeats: 2}
trainer: {progress_bar: false}
"""
OWN = """
def square(points): return points.square().sum(-1)
def nan(points): return points[:, 0].log()
"""
SKIPPED, RUNNING = "finished earlier, skipped", "running"
BETA, OBJECTIVE = "--guidance.objective.inverse_temperature", "--guidance.objective"
KIND = f"{OBJECTIVE}.class_path"


def fit(config: Path, run_dir: Path, *arguments: object) -> int:
    """The command in this process."""
    return main(["fit", "--config", str(config), "--run_dir", str(run_dir), *map(str, arguments)])


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must end with code 2; returns its one line on stderr."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cepdiff:")]
    assert len(lines) == 1, lines
    return lines[0]


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Stage -> the last command's message about it, apart from its threads and the opening lines."""
    opening = re.compile("(run|data|machine|stages|time)  +")
    shown = capsys.readouterr().err.splitlines()
    found = [line for line in shown if "CPU threads" not in line and not opening.match(line)]
    lines = (line.partition(": ") for line in found)
    return {stage: text.partition(",")[0] if RUNNING in text else text for stage, _, text in lines if text}


def weights(run_dir: Path, stage: str) -> Mapping[str, torch.Tensor]:
    """Weights of a finished stage, read with plain torch."""
    state: Mapping[str, torch.Tensor] = torch.load(run_dir / stage / "final.ckpt", weights_only=True)["state_dict"]
    return state


def same_weights(first: Path, second: Path, stage: str) -> bool:
    a, b = weights(first, stage), weights(second, stage)
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def contents(run_dir: Path) -> dict[str, bytes]:
    """Every file of a run."""
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def touched(run_dir: Path) -> dict[str, int]:
    """Modification time of each result of a run."""
    names = ("*/final.ckpt", "*/stage.json", "results.json", "samples.*")
    return {str(path.relative_to(run_dir)): path.stat().st_mtime_ns for name in names for path in run_dir.glob(name)}


def results(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "results.json").read_text())
    return found


def samples(run_dir: Path) -> dict[str, np.ndarray]:
    with np.load(run_dir / "samples.npz") as file:
        return {name: file[name] for name in file}


def write_density(folder: Path) -> Path:
    """A configuration of a few steps on the rings, with a module of energies beside it."""
    (folder / "density_energies.py").write_text(OWN)
    (folder / "tiny.yaml").write_text(TINY)
    return folder / "tiny.yaml"
