"""A finished stage whose `max_steps` is raised: trained on to the weights of a training of that length, or refused."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from density_runs import complaint, contents, fit, said, same_weights, write_density
from lightning.pytorch import Trainer

from cepdiff.callbacks.checkpoint import StageCheckpoint
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.networks.score import MLPScore
from cepdiff.runs.folder import StageFolder, read_checkpoint
from cepdiff.runs.longer import go_on, hash_with
from cepdiff.seals import save_sealed

LONGER = ("--stages.guidance.max_steps", 33)
LONGER_PRIOR = ("--stages.behavior.max_steps", 33)
WARM = ("--guidance.warmup_steps", 25)
COSINE = ("--guidance.lr_schedule", "cosine")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_density(tmp_path_factory.mktemp("density"))


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    """A finished run of 20 steps a stage, not to be changed."""
    assert fit(config, config.parent / "finished", *WARM) == 0
    return config.parent / "finished"


@pytest.fixture(scope="module")
def long(config: Path) -> Path:
    """A run with a guidance stage of 33 steps from the start."""
    assert fit(config, config.parent / "long", *WARM, *LONGER) == 0
    return config.parent / "long"


def longer(config: Path, run_dir: Path, *arguments: object) -> int:
    return fit(config, run_dir, *WARM, *arguments)


def test_the_last_trained_stage_goes_on_to_the_weights_of_a_long_training(
    config: Path, run: Path, long: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In other blocks (20, 25, ... against 0, 5, ... to 33), through a warm-up that ends at step 25."""
    short = (run / "results.json").read_bytes()
    capsys.readouterr()
    assert longer(config, run, *LONGER) == 0
    assert "guidance: going on from step 20 of 33" in capsys.readouterr().err
    assert same_weights(run, long, "guidance")
    last, expected = (torch.load(each / "guidance/last.ckpt", weights_only=True) for each in (run, long))
    assert last["optimizer_states"][0]["param_groups"] == expected["optimizer_states"][0]["param_groups"]
    assert (run / "results_earlier.json").read_bytes() == short
    assert rows(run) == rows(long)
    assert longer(config, run, *LONGER) == 0
    assert set(said(capsys).values()) >= {"finished earlier, skipped"}


def rows(run: Path) -> list[float]:
    """All numbers of the results."""
    return [row["value"] for row in json.loads((run / "results.json").read_text())["rows"]]


def test_a_killed_continuation_goes_on(config: Path, run: Path, long: Path) -> None:
    """Killed after the record was written, before the first checkpoint."""
    folder = StageFolder(run, "guidance")
    go_on(folder, {**(folder.made_from or {}), "max_steps": 33})
    assert not folder.done
    assert longer(config, run, *LONGER) == 0
    assert same_weights(run, long, "guidance")


@pytest.fixture
def stopped(config: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose guidance stage was stopped at step 15 of 20."""
    asked = StageCheckpoint._agreed

    def agreed(self: StageCheckpoint, trainer: Trainer, number: int, late: bool) -> tuple[int, bool]:
        return asked(self, trainer, signal.SIGTERM if trainer.global_step >= 15 else number, late)

    shutil.rmtree(run / "guidance")
    with monkeypatch.context() as patched:
        patched.setattr(StageCheckpoint, "_agreed", agreed)
        assert longer(config, run) == 128 + signal.SIGTERM
    assert not StageFolder(run, "guidance").done
    return run


@pytest.mark.parametrize("marked", ["now", "earlier"])
def test_a_stopped_stage_goes_on_to_more_steps(
    config: Path, stopped: Path, long: Path, marked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = StageFolder(stopped, "guidance")
    if marked == "earlier":  # with the length of its training
        content = read_checkpoint(folder.last)
        (state,) = (state for name, state in content["callbacks"].items() if "StageCheckpoint" in name)
        state["made_from"] = hash_with(folder, 20)
        save_sealed(folder.last, content)
    else:
        go_on(folder, {**(folder.made_from or {}), "max_steps": 33})  # killed before the next checkpoint
    capsys.readouterr()
    assert longer(config, stopped, *LONGER) == 0
    assert "guidance: going on from step 15 of 33" in capsys.readouterr().err
    assert same_weights(stopped, long, "guidance")


def test_a_stopped_stage_cannot_become_shorter_or_follow_another_cosine(
    config: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(stopped)
    shorter = ("--stages.guidance.max_steps", 18)
    for options, was in ((shorter, "max_steps was 20, now 18"), (COSINE, "lr_schedule was constant, now cosine")):
        line = complaint(capsys, "fit", "--config", config, "--run_dir", stopped, *WARM, *options)
        assert was in line
        assert "undo the change" in line
    assert contents(stopped) == before


def test_another_folder_goes_on_from_a_run_that_stays(
    config: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With stages made from it, a longer training in place would cost them."""
    before, new, whole = contents(run), tmp_path / "new", tmp_path / "whole"
    line = complaint(capsys, "fit", "--config", config, "--run_dir", run, *WARM, *LONGER_PRIOR)
    assert f"{run / 'behavior'} has 20 steps and cannot go on to 33, as guidance was made from it: " in line
    assert f"--reuse {run}, where it goes on from there and this run stays, or delete {run / 'guidance'}" in line
    assert contents(run) == before
    assert longer(config, new, *LONGER_PRIOR, "--reuse", run) == 0
    assert "behavior: going on from step 20 of 33" in capsys.readouterr().err
    assert contents(run) == before
    assert fit(config, whole, *WARM, *LONGER_PRIOR) == 0
    assert all(same_weights(new, whole, stage) for stage in ("behavior", "guidance"))


def test_one_that_is_only_needed_is_left_alone(config: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    line = complaint(capsys, "fit", "--config", config, "--run_dir", run, *WARM, *LONGER, "--stage", "evaluation")
    assert "--stage evaluation needs the guidance stage, which has not finished" in line
    assert contents(run) == before


def test_what_cannot_go_on_is_refused_and_stays(
    config: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cosine = tmp_path / "cosine"
    assert longer(config, cosine, *COSINE, "--reuse", run) == 0
    assert not (cosine / "guidance/last.ckpt").exists()  # of no use: nothing can go on from it
    last = run / "guidance/last.ckpt"
    last.write_bytes(last.read_bytes()[:100])
    for folder, options, why in (
        (cosine, COSINE, "has 20 steps and cannot go on to 33, as its learning rate depends on max_steps (lr_schedule"),
        (run, (), "last.ckpt cannot be read as a checkpoint"),
    ):
        before = {name: content for name, content in contents(folder).items() if name.startswith("guidance")}
        line = complaint(capsys, "fit", "--config", config, "--run_dir", folder, *WARM, *options, *LONGER)
        assert why in line
        assert {name: content for name, content in contents(folder).items() if name.startswith("guidance")} == before
        assert StageFolder(folder, "guidance").done
    last.unlink()
    line = complaint(capsys, "fit", "--config", config, "--run_dir", run, *WARM, *LONGER)
    assert "as last.ckpt was deleted, or never kept by an earlier version: train it anew in another --run_dir" in line
    line = complaint(capsys, "fit", "--config", config, "--run_dir", run, *WARM, "--stages.guidance.max_steps", 10)
    assert "was made from something else: max_steps was 20, now 10" in line


class Own(BehaviorDiffusion):
    """With a schedule of its own."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0 / self.trainer.max_steps)


def test_a_schedule_of_the_users_is_taken_to_depend_on_the_length() -> None:
    net = partial(MLPScore, hidden=(8,))
    assert Own(3, 2, net=net).depends_on_length
    assert BehaviorDiffusion(3, 2, net=net, lr_schedule="cosine").depends_on_length
    assert not BehaviorDiffusion(3, 2, net=net, warmup_steps=5).depends_on_length
