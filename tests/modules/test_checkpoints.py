"""Training that stops leaves the last good checkpoint, complete, and a message that names it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule

from cepdiff.callbacks.checkpoint import AtomicCheckpointIO, StageCheckpoint
from cepdiff.callbacks.stopping import ASKING, StopSignals
from cepdiff.errors import CepdiffError, DivergenceError, OutputError, RunError
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.networks.score import MLPScore
from cepdiff.runs.fit import in_one_line
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
    before = {number: signal.getsignal(number) for number in ASKING}
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


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_saves_and_the_next_run_ends_with_the_same_weights(
    run: RunFolder, number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # nohup would have it ignored
    request.addfinalizer(lambda: signal.signal(number, before))
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


def test_more_signals_change_nothing(run: RunFolder) -> None:
    def ask() -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)

    with pytest.raises(StoppedError, match="stopped by signal 15 at step 6 of the behavior stage"):
        train(run, At(6, ask))
    assert read_checkpoint(run.stage("behavior").last)["global_step"] == 6


class Stop(Callback):
    """Ends the training at a step, as EarlyStopping does."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 6


def test_a_callback_that_ends_the_training_keeps_its_state(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    expected = train(RunFolder(run.path.parent / "whole")).state_dict()
    with pytest.raises(RunError, match=r"ended the behavior stage at step 6 of 12; .* run the same command to go on"):
        train(run, Stop())
    assert "going on" not in capsys.readouterr().err
    resumed = train(run).state_dict()
    assert "behavior: going on from step 6 of 12\n" in capsys.readouterr().err
    assert all(torch.equal(value, expected[key]) for key, value in resumed.items())


def test_the_checkpoint_of_another_run_is_refused(run: RunFolder) -> None:
    """Here of other lengths; a seed or a dataset changes the record likewise."""
    other = RunFolder(run.path.parent / "other")
    for folder, steps in ((run, 12), (other, 16)):
        with pytest.raises(StoppedError):
            train(folder, At(6, lambda: os.kill(os.getpid(), signal.SIGTERM)), steps=steps)
    other.stage("behavior").last.replace(run.stage("behavior").last)
    with pytest.raises(RunError, match=r"last\.ckpt is the checkpoint of another run; delete it"):
        train(run)


def test_a_folder_that_was_deleted_is_not_made_again(run: RunFolder) -> None:
    with pytest.raises(CepdiffError, match="was deleted while"), in_one_line(run):
        train(run, At(6, lambda: shutil.rmtree(run.path)))
    assert not run.stage("behavior").path.exists()


def test_a_checkpoint_is_not_written_to_a_deleted_folder(run: RunFolder) -> None:
    folder = run.stage("behavior")
    with pytest.raises(OutputError, match="behavior was deleted while it was in use"):
        AtomicCheckpointIO(folder.record_file).save_checkpoint({}, folder.last)
    assert not folder.path.exists()


class Strategy:
    """Another rank's values in a reduction."""

    root_device = torch.device("cpu")

    def __init__(self, others: Sequence[int]) -> None:
        self.others = torch.tensor(others)

    def reduce(self, values: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        return torch.maximum(values, self.others)


class FakeTrainer:
    """The part of a Trainer that a checkpoint asks; `saved` are the steps of its saves."""

    def __init__(self, rank: int = 0, others: Sequence[int] = ()) -> None:
        self.global_rank, self.world_size = rank, 2 if others else 1
        self.strategy = Strategy(others)
        self.global_step, self.max_steps, self.should_stop = 0, 1000, False
        self.saved: list[int] = []

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        self.saved.append(self.global_step)


def saves(trainer: Any, seconds_per_step: float, every_n_steps: int = 500, blocks: int = 20) -> list[int]:
    """The steps at which a checkpoint saves in blocks of ten steps, by a clock of its own."""
    now = [0.0]
    checkpoint = StageCheckpoint(Path("last.ckpt"), every_n_steps, 5.0, "record", StopSignals(), clock=lambda: now[0])
    module: Any = None
    checkpoint.on_train_start(trainer, module)
    for block in range(blocks):
        trainer.global_step += 10
        now[0] += 10 * seconds_per_step
        checkpoint.on_train_batch_end(trainer, module, None, None, block)
    assert checkpoint.elapsed <= now[0]
    return list(trainer.saved)


def test_slow_steps_are_saved_by_the_clock() -> None:
    assert saves(FakeTrainer(), 12.0) == [30, 60, 90, 120, 150, 180]  # 120 s per block, 5 minutes at most
    assert saves(FakeTrainer(), 0.1) == []
    assert saves(FakeTrainer(), 0.1, every_n_steps=50) == [50, 100, 150, 200]
    assert saves(FakeTrainer(), 12.0, every_n_steps=50) == [30, 50, 80, 100, 130, 150, 180, 200]


def test_the_first_ranks_clock_decides_for_all() -> None:
    assert saves(FakeTrainer(rank=1, others=(0, 0)), 12.0) == []
    assert saves(FakeTrainer(rank=1, others=(0, 1)), 0.1, blocks=3) == [10, 20, 30]


def test_a_signal_of_another_rank_stops_this_one() -> None:
    trainer = FakeTrainer(others=(signal.SIGHUP, 0))
    assert saves(trainer, 0.1, blocks=1) == [10]
    assert trainer.should_stop


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
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"last\.ckpt cannot be read as a checkpoint, or was changed; delete .*behavior"):
        train(run)
    last.write_bytes(whole)
    torch.save({**torch.load(last, weights_only=True), "loops": None}, last)  # Lightning would start the loops anew
    with pytest.raises(RunError, match="or was changed"):
        train(run)
