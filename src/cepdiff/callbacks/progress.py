"""A progress bar in optimiser steps, with the time left; and the same for loops outside a Trainer."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

LINE = (
    "{desc} {percentage:.0f}%, {n_fmt} of {total_fmt} {unit}s, {elapsed} so far, {remaining} left, {rate_fmt}{postfix}"
)
LINE_EVERY = 30.0  # seconds


class Lines:
    """Stderr that is no terminal: what a bar would draw over itself becomes a line."""

    def write(self, text: str) -> None:
        """Print a state of the bar; line breaks and blanks alone, by which it is erased, are left out."""
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self) -> None:
        """Write what was printed so far."""
        sys.stderr.flush()


def progress(total: int, name: str, unit: str, *, initial: int = 0, enabled: bool = True) -> tqdm[Any]:
    """A bar on stderr. If that is not a terminal, it is a line every half minute, so that logs stay short."""
    drawn: dict[str, Any] = {"mininterval": 0.5, "dynamic_ncols": True, "file": sys.stderr}
    if not sys.stderr.isatty():
        # By the tiny delay there is no line before the first half minute.
        drawn = {"mininterval": LINE_EVERY, "miniters": 1, "bar_format": LINE, "delay": 1e-9, "file": Lines()}
    return tqdm(
        total=total,
        initial=initial,
        desc=f"{name:<10}",
        unit=unit,
        unit_scale=total >= 10_000,
        disable=not enabled,
        **drawn,
    )


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
