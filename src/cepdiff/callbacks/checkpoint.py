"""Checkpoints that survive kills: written aside and renamed, at intervals and when a signal asks to stop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from cepdiff.files import written_aside


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint aside, flushes it and renames it: a kill leaves the previous file."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        with written_aside(Path(path)) as file:
            torch.save(checkpoint, file)


class StageCheckpoint(Checkpoint):
    """Keeps `path` (last.ckpt) up to date, every `every_n_steps` optimiser steps and on SIGTERM or SIGINT.

    A signal on any rank stops all of them at the end of the block, after a save; `stopped_by` is its number.
    `elapsed` counts the seconds of training over all resumptions.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.stopped_by: int | None = None
        self.elapsed = 0.0
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._saved_at = 0
        self._clock = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After Lightning has set its own handlers in fit(): they would broadcast inside the handler.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._remember)
        self._saved_at = trainer.global_step
        self._clock = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stop = self._signal is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        finished = trainer.global_step >= trainer.max_steps >= 0
        due = trainer.global_step // self.every_n_steps > self._saved_at // self.every_n_steps
        if stop or (due and not finished):
            self._save(trainer)
        if stop and not finished:
            self.stopped_by = self._signal or signal.SIGTERM
            trainer.should_stop = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count()
        # Before Lightning removes its own handlers: restored later, they would swallow every later SIGTERM.
        self._restore_handlers()

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.elapsed = float(state_dict["elapsed"])

    def _save(self, trainer: Trainer) -> None:
        self._count()
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_at = trainer.global_step

    def _count(self) -> None:
        now = time.monotonic()
        self.elapsed += now - self._clock
        self._clock = now

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
