"""Checkpoints that survive kills: written aside and renamed, at intervals and when a signal asks to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from cepdiff.callbacks.stopping import StopSignals
from cepdiff.errors import OutputError, RunError
from cepdiff.seals import save_sealed


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint with its hash to a temporary file, then rename it: a kill leaves the previous file.

    `record` is a file of the stage's folder. If it is gone, the folder was deleted; it is not made again.
    """

    def __init__(self, record: Path) -> None:
        self.record = record

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        if not self.record.is_file():
            raise OutputError(f"{self.record.parent} was deleted while it was in use; run the command again")
        save_sealed(Path(path), checkpoint)


class StageCheckpoint(Checkpoint):
    """Keeps `path` (last.ckpt) up to date, and writes it when a signal asks to stop.

    A signal on any rank stops all of them at the end of the block, after a save; `stopped_by` is its number.
    `elapsed` counts the seconds of training over all resumptions.

    Args:
        path: the checkpoint file.
        every_n_steps: optimiser steps between saves.
        minutes: longest time between saves, by the first rank's clock.
        made_from: hash of the stage's inputs, kept in the checkpoint.
        signals: the signals that ask to stop.
        at_end: also save after the last step, so that a longer training can go on from there.
        clock: returns seconds.
    """

    def __init__(
        self,
        path: Path,
        every_n_steps: int,
        minutes: float,
        made_from: str,
        signals: StopSignals,
        at_end: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.minutes = minutes
        self.made_from = made_from
        self.signals = signals
        self.at_end = at_end
        self.clock = clock
        self.stopped_by: int | None = None
        self.elapsed = 0.0
        self._counted = 0.0  # the clock when `elapsed` was last counted
        self._saved_at = (0, 0.0)  # step and clock of the last save

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counted = self.clock()
        self._saved_at = trainer.global_step, self._counted

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, (saved_step, saved_time) = trainer.global_step, self._saved_at
        late = trainer.global_rank == 0 and self.clock() - saved_time >= 60.0 * self.minutes
        asked, late = self._agreed(trainer, self.signals.number or 0, late)
        finished = step >= trainer.max_steps >= 0
        due = late or step // self.every_n_steps > saved_step // self.every_n_steps
        if asked or (self.at_end if finished else due):
            self._save(trainer)
        if asked and not finished:
            self.stopped_by = asked
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step < trainer.max_steps and self.stopped_by is None:  # another callback ends the training
            self._save(trainer)
        self._count()

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed, "made_from": self.made_from}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.elapsed = float(state_dict["elapsed"])

    def step_of(self, checkpoint: dict[str, Any], others: Callable[[int], Collection[str]] = lambda _: ()) -> int:
        """The step of a loaded checkpoint; raises RunError if another stage, run or seed wrote it.

        `others` gives, for its step, values of `made_from` that serve too.
        """
        step, state = int(checkpoint["global_step"]), checkpoint.get("callbacks", {}).get(self.state_key, {})
        if state.get("made_from") not in (self.made_from, *others(step)):
            raise RunError(f"{self.path} is the checkpoint of another run; delete it to train from the first step")
        return step

    def _agreed(self, trainer: Trainer, number: int, late: bool) -> tuple[int, bool]:
        """Agree over all ranks on the signal that reached any of them, 0 for none, and if the first rank is late."""
        if trainer.world_size == 1:
            return number, late
        values = torch.tensor([number, int(late)], device=trainer.strategy.root_device)
        highest, any_late = torch.as_tensor(trainer.strategy.reduce(values, reduce_op="max")).tolist()
        return highest, bool(any_late)

    def _save(self, trainer: Trainer) -> None:
        self._count()
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_at = trainer.global_step, self.clock()

    def _count(self) -> None:
        now = self.clock()
        self.elapsed += now - self._counted
        self._counted = now
