"""Traceback depth of a user's code: few frames of this package between the command and a module's loss."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

import cepdiff
from cepdiff.cli import main

PACKAGE = Path(cepdiff.__file__).parent
MOST = 7  # frames, including `main` and the user's loss
OWN = """
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import BatchEnergyGuidance, EnergyGuidance


class Broken:
    def loss(self, batch, noise):
        raise ZeroDivisionError("a mistake of the user's")


class Behavior(Broken, BehaviorDiffusion):
    pass


class Critic(Broken, SoftmaxQCritic):
    pass


class Guidance(Broken, EnergyGuidance):
    pass


class BatchGuidance(Broken, BatchEnergyGuidance):
    pass
"""
POINTS = """
data: {class_path: cepdiff.EnergyDataModule, dataset: rings, num_points: 100, block_size: 2}
behavior: {net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8]}}, batch_size: 16}
stages: {behavior: {max_steps: 2}, guidance: {max_steps: 2}}
evaluation: {num_samples: 8, floor_repeats: 2}
trainer: {accelerator: cpu, progress_bar: false}
"""


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[str]:
    """The name of a module next to the configuration, with a class of each kind whose loss fails."""
    (tmp_path / "traceback_test_own.py").write_text(OWN)
    yield "traceback_test_own"
    sys.modules.pop("traceback_test_own", None)


def frames_to_the_loss(config: Path, run_dir: Path, *arguments: str) -> list[str]:
    """Runs a command whose loss fails; returns the frames of this package from `main` to the loss."""
    with pytest.raises(ZeroDivisionError) as caught:
        main(["fit", "--config", str(config), "--run_dir", str(run_dir), "--trainer.accelerator", "cpu", *arguments])
    frames = [(Path(frame.f_code.co_filename), frame.f_code.co_name) for frame, _ in traceback.walk_tb(caught.tb)]
    names = [name for _, name in frames]
    place = names.index("main")
    assert frames[-1] == (config.parent / "traceback_test_own.py", "loss")
    return [name for file, name in frames[place:-1] if PACKAGE in file.parents] + names[-1:]


@pytest.mark.parametrize("stage", ["behavior", "critic", "guidance"])
def test_few_frames_lie_between_the_command_and_a_loss(config: Path, tmp_path: Path, broken: str, stage: str) -> None:
    found = frames_to_the_loss(config, tmp_path / "run", f"--{stage}.class_path", f"{broken}.{stage.title()}")
    assert found[0] == "main"
    assert len(found) <= MOST, found


@pytest.mark.parametrize("stage", ["behavior", "guidance"])
def test_few_frames_on_a_density(tmp_path: Path, broken: str, stage: str) -> None:
    (tmp_path / "points.yaml").write_text(POINTS)
    name = {"behavior": "Behavior", "guidance": "BatchGuidance"}[stage]
    found = frames_to_the_loss(tmp_path / "points.yaml", tmp_path / "run", f"--{stage}.class_path", f"{broken}.{name}")
    assert len(found) <= MOST, found
