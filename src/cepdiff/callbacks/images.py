"""Grids of samples while a stage trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from cepdiff.policy.images import ImageSampler, tiled

MAX_HEADS = 10


class ImageGridCallback(Callback):
    """Shows a grid of samples in TensorBoard at an interval: one row per head, up to ten.

    All ranks share the samples. Each starts from the same noise in every grid.

    Args:
        sampler_of: makes the sampler of the module in training; without an energy network it shows the prior.
        every_n_steps: optimiser steps between grids.
        scale: guidance scale.
        columns: images per head.
        seed: of the noise.
        batch_size: images sampled at a time on a process.
    """

    def __init__(
        self,
        sampler_of: Callable[[LightningModule], ImageSampler],
        every_n_steps: int,
        scale: float = 1.0,
        columns: int = 8,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        self.sampler_of = sampler_of
        self.every_n_steps = every_n_steps
        self.scale = scale
        self.columns = columns
        self.seed = seed
        self.batch_size = batch_size
        self._shown_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps
        if trainer.global_step // every > self._shown_at // every:
            self._shown_at = trainer.global_step
            self._show(trainer, pl_module)

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        modes = [(module, module.training) for module in pl_module.modules()]  # a sampler puts networks in eval mode
        sampler = self.sampler_of(pl_module)
        scale = self.scale if sampler.sampler.has_energy else 0.0
        rows = min(MAX_HEADS, len(sampler.head_names))
        total, world = rows * self.columns, trainer.world_size
        # The same number on each rank, some twice: gathered tensors must have one shape.
        mine = torch.arange(trainer.global_rank, -(-total // world) * world, world) % total
        batches = sampler.batches(mine // self.columns, mine % self.columns, scale, self.seed, self.batch_size)
        with trainer.precision_plugin.forward_context():
            images = torch.cat(list(batches))
        for module, training in modes:
            module.training = training
        if world > 1:
            gathered = pl_module.all_gather(images)  # (world, M, C, H, W)
            assert isinstance(gathered, torch.Tensor)
            images = gathered.transpose(0, 1).flatten(0, 1)[:total]
        grid = tiled(images.reshape(rows, self.columns, *images.shape[1:]).cpu())
        for logger in trainer.loggers:
            if trainer.is_global_zero and isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"samples/s={scale:g}", grid, trainer.global_step)
