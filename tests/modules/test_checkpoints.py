"""Training that stops leaves the last good checkpoint, complete, and a message that names it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule

from cepdiff.errors import DivergenceError, RunError
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.networks.score import MLPScore
from cepdiff.runs.folder import RunFolder, read_checkpoint
from cepdiff.runs.processes import Processes, TrainerSettings
from cepdiff.runs.run import Run
from cepdiff.runs.stage import StageSettings, StoppedError, TrainedStage
from cepdiff.types import STEP_SEEDS, Batch

BLOCK = 2


class Blocks(LightningDataModule):
    """Blocks of two minibatches, a function of the step; at step `poison` the actions are NaN."""

    def __init__(self, poison: int | None = None) -> None:
        super().__init__()
        self.poison = poison

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return map(self.block, range(self.trainer.global_step, self.trainer.max_steps, BLOCK))

    def block(self, first: int) -> Batch:
        numbers = torch.Generator().manual_seed(first)
        actions = torch.rand(BLOCK, 4, 2, generator=numbers)
        if self.poison is not None and first <= self.poison < first + BLOCK:
            actions[self.poison - first] = torch.nan
        seeds = torch.arange(first, first + BLOCK)
        return {"observations": torch.randn(BLOCK, 4, 3, generator=numbers), "actions": actions, STEP_SEEDS: seeds}


class At(Callback):
    """Runs an action once a step is reached."""

    def __init__(self, step: int, action: Any) -> None:
        self.step = step
        self.action = action

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.action()


def train(run: RunFolder, *callbacks: Callback, poison: int | None = None, steps: int = 12) -> BehaviorDiffusion:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = BehaviorDiffusion(3, 2, net=partial(MLPScore, hidden=(8, 8)), ema_decay=0.9, lr_schedule="cosine")
    processes = Processes(TrainerSettings(accelerator="cpu", progress_bar=False))
    settings = StageSettings(steps, checkpoint_every=4)
    stage = TrainedStage(Run(run, processes), module, lambda: Blocks(poison), settings, dict, callbacks)
    assert not stage.claim([])
    stage.run()
    stage.load()
    return module


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, Any]]:
    """The signal handlers before the test, restored afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_finished_stage_leaves_its_weights_and_its_mark(run: RunFolder) -> None:
    module = train(run)
    folder = run.stage("behavior")
    assert folder.done
    assert not folder.last.exists()
    saved = torch.load(folder.final, weights_only=True)
    assert saved["global_step"] == 12
    assert all(torch.equal(value, saved["state_dict"][key]) for key, value in module.state_dict().items())
    assert "optimizer_states" not in saved


def test_divergence_keeps_the_last_good_checkpoint_and_names_both(run: RunFolder) -> None:
    folder = run.stage("behavior")
    with pytest.raises(DivergenceError) as stopped:
        train(run, poison=7)
    assert "at step 7" in str(stopped.value)
    assert str(folder.last) in str(stopped.value)
    saved = read_checkpoint(folder.last)
    assert saved["global_step"] == 4
    assert all(bool(value.isfinite().all()) for value in saved["state_dict"].values())
    assert not folder.final.exists()
    assert not folder.done


def test_divergence_before_the_first_checkpoint_says_so(run: RunFolder) -> None:
    with pytest.raises(DivergenceError, match=r"at step 1.*no checkpoint was written yet"):
        train(run, poison=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_run_ends_with_the_same_weights(run: RunFolder, number: signal.Signals) -> None:
    expected = train(RunFolder(run.path.parent / "whole")).state_dict()
    with pytest.raises(StoppedError, match="at step 6 of the behavior stage") as stopped:
        train(run, At(6, lambda: os.kill(os.getpid(), number)))
    assert stopped.value.exit_code == 128 + number
    assert read_checkpoint(run.stage("behavior").last)["global_step"] == 6
    resumed = train(run).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.items())


def test_a_failure_leaves_a_checkpoint_to_resume_from_bit_for_bit(run: RunFolder) -> None:
    """As after a kill: the last regular checkpoint, at step 8, without the steps trained since."""

    def fail() -> None:
        raise KeyError("killed")

    expected = train(RunFolder(run.path.parent / "whole")).state_dict()
    with pytest.raises(KeyError, match="killed"):
        train(run, At(10, fail))
    assert read_checkpoint(run.stage("behavior").last)["global_step"] == 8
    resumed = train(run).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.items())


@pytest.mark.parametrize("how", ["finished", "stopped", "diverged"])
def test_signals_work_again_after_a_stage(run: RunFolder, handlers: dict[int, Any], how: str) -> None:
    """Otherwise SIGTERM would be swallowed in the stages without a Trainer: support and evaluation."""
    if how == "finished":
        train(run)
    elif how == "stopped":
        with pytest.raises(StoppedError):
            train(run, At(6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    else:
        with pytest.raises(DivergenceError):
            train(run, poison=7)
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_a_torn_checkpoint_is_refused_with_what_to_do(run: RunFolder) -> None:
    with pytest.raises(DivergenceError):
        train(run, poison=7)
    last = run.stage("behavior").last
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with pytest.raises(RunError, match=r"last\.ckpt cannot be read as a checkpoint; delete .*behavior"):
        train(run)
