"""Training data of every stage: blocks of minibatches, a pure function of (seed, stage, step)."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from cepdiff.errors import ConfigError, DataError
from cepdiff.randomness import stream_seed
from cepdiff.ranges import Count, check_arguments
from cepdiff.types import STEP_SEEDS, Batch, DataSpec


def check_shares(stage: str, batch_size: int, world: int) -> None:
    """Raise ConfigError unless `world` processes can share a batch equally."""
    if batch_size % world:
        raise ConfigError(f"{stage}.batch_size {batch_size} cannot be shared equally by {world} processes")


@dataclass(eq=False)
class BlockLoader:
    """Blocks of minibatches, a pure function of (seed, stage, step), from step `start` up to `stop`.

    Rows are drawn uniformly with replacement for the global batch; rank r takes entries r, r + world, ...

    Args:
        gather: row numbers (T, B) -> fields (T, B, ...).
        rows: the rows (R,) to draw from.
        batch_size: size of the global batch; must be a multiple of `world`.
        block_size: T, minibatches per block.
        stop: None for no end.
    """

    gather: Callable[[Tensor], Batch]
    rows: Tensor
    _: KW_ONLY
    batch_size: int
    block_size: int
    seed: int
    stage: str
    start: int = 0
    stop: int | None = None
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise DataError(f"no row of the buffer can serve the {self.stage} stage")
        check_shares(self.stage, self.batch_size, self.world)

    def __iter__(self) -> Iterator[Batch]:
        draw = torch.Generator()
        stop = sys.maxsize if self.stop is None else self.stop
        for first in range(self.start, stop, self.block_size):
            steps = range(first, min(first + self.block_size, stop))
            seeds = [stream_seed(self.seed, self.stage, step) for step in steps]
            picks = torch.stack(
                [torch.randint(len(self.rows), (self.batch_size,), generator=draw.manual_seed(s)) for s in seeds]
            )
            rows = self.rows[picks[:, self.rank :: self.world].to(self.rows.device)]
            yield {**self.gather(rows), STEP_SEEDS: torch.tensor(seeds)}


class StageDataModule(LightningDataModule, ABC):
    """Base of the data modules: serves every stage from tensors on its device.

    Batches have the fields in the trained module's `batch_fields`; its `batch_size` is summed over all processes.
    Subclasses describe their data and gather its fields.

    Args:
        block_size: minibatches per `training_step`.
        seed: of the row order.
    """

    problem: ClassVar[str | None] = None
    """Class path of the problem that these data are for, unless a configuration names another."""
    supplied: ClassVar[frozenset[str]] = frozenset({"seed"})

    def __init__(self, block_size: Count = 50, seed: int = 0) -> None:
        super().__init__()
        check_arguments(StageDataModule, locals(), "data")
        self.block_size = block_size
        self.seed = seed

    @property
    @abstractmethod
    def dataset_name(self) -> str:
        """Short name of the data, for folders and tables."""

    @property
    @abstractmethod
    def content_hash(self) -> str:
        """Hash of the loaded data."""

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """Sizes, bounds and observation statistics."""

    def summary(self) -> str:
        """The size of the loaded data in a few words, printed when a run starts; may be empty."""
        return ""

    @property
    def sizes(self) -> tuple[int, int]:
        """(observation size S, action size A as networks see it), the first arguments of every module."""
        return self.spec.observation_size, self.spec.modeled_size

    @abstractmethod
    def rows(self, fields: Sequence[str]) -> Tensor:
        """Rows (R,) of the data that have all of `fields`."""

    @abstractmethod
    def gatherer(self, fields: Sequence[str], device: torch.device | str = "cpu") -> Callable[[Tensor], Batch]:
        """Return a function that gathers `fields` at row numbers of any shape (...), from tensors on `device`."""

    def train_dataloader(self) -> BlockLoader:
        """Blocks for the module that the Trainer is fitting, starting at its current step."""
        if self.trainer is None:
            raise DataError("train_dataloader() needs a Trainer: call trainer.fit(module, datamodule=...)")
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
