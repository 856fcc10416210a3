"""What every stage trains on: blocks of minibatches, a pure function of (seed, stage, step)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from cepdiff.errors import ConfigError, DataError
from cepdiff.randomness import stream_seed
from cepdiff.types import STEP_SEEDS, Batch, DataSpec


class BlockLoader:
    """Blocks of minibatches, a pure function of (seed, stage, step), from step `start` until step `stop`.

    Rows are drawn uniformly with replacement for the global batch; rank r takes entries r, r + world, ...

    Args:
        gather: (T, B) row numbers -> fields (T, B, ...).
        rows: (R,) the rows to draw from.
        batch_size: of the global batch; must be a multiple of `world`.
        block_size: T, minibatches a block.
        stop: None never ends.
    """

    def __init__(
        self,
        gather: Callable[[Tensor], Batch],
        rows: Tensor,
        *,
        batch_size: int,
        block_size: int,
        seed: int,
        stage: str,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(rows) == 0:
            raise DataError(f"no row of the buffer can serve the {stage} stage")
        if batch_size % world:
            raise ConfigError(f"{stage}.batch_size {batch_size} cannot be shared equally by {world} processes")
        self._gather = gather
        self._rows = rows
        self._batch_size = batch_size
        self._block_size = block_size
        self._seed = seed
        self._stage = stage
        self._start = start
        self._stop = stop
        self._rank = rank
        self._world = world

    def __iter__(self) -> Iterator[Batch]:
        draw = torch.Generator()
        first = self._start
        while self._stop is None or first < self._stop:
            last = first + self._block_size if self._stop is None else min(first + self._block_size, self._stop)
            seeds = [stream_seed(self._seed, self._stage, step) for step in range(first, last)]
            picks = torch.stack(
                [torch.randint(len(self._rows), (self._batch_size,), generator=draw.manual_seed(s)) for s in seeds]
            )
            rows = self._rows[picks[:, self._rank :: self._world].to(self._rows.device)]
            yield {**self._gather(rows), STEP_SEEDS: torch.tensor(seeds)}
            first = last


class StageDataModule(LightningDataModule, ABC):
    """Base of the data modules: serves every stage from tensors on its device.

    What a batch holds is what the trained module names in its `batch_fields`; its `batch_size` counts over all
    processes. A subclass says what data it holds, and how its fields are gathered.

    Args:
        block_size: minibatches handed to one `training_step`.
        seed: of the order of rows.
    """

    def __init__(self, block_size: int = 50, seed: int = 0) -> None:
        super().__init__()
        if block_size < 1:
            raise ConfigError(f"data.block_size is {block_size}; expected at least 1")
        self.block_size = block_size
        self.seed = seed

    @property
    @abstractmethod
    def dataset_name(self) -> str:
        """Short name of the data, for folders and tables."""

    @property
    @abstractmethod
    def content_hash(self) -> str:
        """Names the loaded data."""

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """Sizes, bounds and observation statistics."""

    @property
    def sizes(self) -> tuple[int, int]:
        """(observation size S, action size A), which every module's constructor asks for first."""
        return self.spec.observation_size, self.spec.action_size

    @abstractmethod
    def rows(self, fields: Sequence[str]) -> Tensor:
        """Rows (R,) of the data that can give all of `fields`."""

    @abstractmethod
    def gatherer(self, fields: Sequence[str], device: torch.device | str = "cpu") -> Callable[[Tensor], Batch]:
        """A function that gathers `fields` at row numbers of any shape (...), from tensors held on `device`."""

    def train_dataloader(self) -> BlockLoader:
        """Blocks for the module that the Trainer is fitting, from the step that it has reached."""
        if self.trainer is None:
            raise DataError("train_dataloader() needs a Trainer: call trainer.fit(module, datamodule=this)")
        module: Any = self.trainer.lightning_module
        return BlockLoader(
            self.gatherer(module.batch_fields, self.trainer.strategy.root_device),
            self.rows(module.batch_fields).to(self.trainer.strategy.root_device),
            batch_size=module.batch_size,
            block_size=self.block_size,
            seed=self.seed,
            stage=module.stage,
            start=self.trainer.global_step,
            stop=self.trainer.max_steps if self.trainer.max_steps >= 0 else None,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
