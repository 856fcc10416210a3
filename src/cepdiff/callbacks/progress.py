"""A progress bar in optimiser steps, with the time left."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from cepdiff.bars import progress


class StageProgress(ProgressBar):
    """A Trainer's progress bar that counts optimiser steps, not blocks, and shows the loss.

    `name` is that of the stage; the default is the module's own.
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self._name = name or ""
        self._enabled = True
        self._bar: tqdm[Any] | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._name = self._name or str(getattr(pl_module, "stage", "training"))
        enabled = self._enabled and trainer.is_global_zero
        self._bar = progress(trainer.max_steps, self._name, "step", initial=trainer.global_step, enabled=enabled)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None or self._bar.disable:
            return
        loss = trainer.callback_metrics.get(f"{self._name}/loss")
        if loss is not None:
            self._bar.set_postfix({"loss": f"{float(loss):.4g}"}, refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        tqdm.write(sep.join(map(str, args)), file=sys.stderr)
