"""The processes of a run: started once, shared by all stages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed
from lightning.fabric import Fabric
from torch import Tensor

from cepdiff.errors import CepdiffError, ConfigError
from cepdiff.stages.settings import TrainerSettings

T = TypeVar("T")


class Processes:
    """Rank, device and collectives; every process of a multi-device run executes the whole command.

    Launching once, before the first stage, lets stages without a Trainer (support, evaluation) use all devices, also
    when every trained stage has been finished by an earlier run.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        torch.set_float32_matmul_precision(settings.matmul_precision)
        self.settings = settings
        try:
            self._fabric = Fabric(
                accelerator=settings.accelerator,
                devices=settings.devices,
                num_nodes=settings.num_nodes,
                strategy=settings.strategy,
                precision=settings.precision,  # type: ignore[arg-type]
            )
        except Exception as error:  # Lightning raises many kinds, all about these settings
            raise ConfigError(f"trainer: {error}") from error
        self._fabric.launch()

    @property
    def rank(self) -> int:
        """Global rank."""
        return self._fabric.global_rank

    @property
    def world(self) -> int:
        """Number of processes."""
        return self._fabric.world_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._fabric.device

    def barrier(self) -> None:
        """Waits for all processes."""
        self._fabric.barrier()

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of `trainer.precision` for forward passes outside a Trainer."""
        return self._fabric.autocast()

    def on_main(self, function: Callable[[], T]) -> T:
        """Runs `function` on the main process alone; its result reaches all of them, and so does a CepdiffError."""
        result: T | None = None
        failure: CepdiffError | None = None
        if self.is_main:
            try:
                result = function()
            except CepdiffError as error:
                failure = error
        if self.world > 1:
            result, message = self._fabric.broadcast((result, None if failure is None else str(failure)))
            if message is not None and failure is None:
                failure = CepdiffError(message)  # the main process raises the error itself, and prints it
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]

    def gather_rows(self, mine: Tensor, total: int) -> Tensor:
        """Rows (total, ...) of all processes in their order, of which this one holds rank, rank + world, ..."""
        if self.world == 1:
            return mine
        padded = torch.zeros(-(-total // self.world), *mine.shape[1:], dtype=mine.dtype, device=self.device)
        padded[: len(mine)] = mine.to(self.device)
        gathered: Tensor = self._fabric.all_gather(padded)  # type: ignore[assignment]
        return gathered.transpose(0, 1).flatten(0, 1)[:total]  # (world, M, ...) -> (M * world, ...)

    def trainer_arguments(self) -> dict[str, Any]:
        """Keyword arguments of every stage's Trainer."""
        settings = self.settings
        return {
            "accelerator": settings.accelerator,
            "devices": settings.devices,
            "num_nodes": settings.num_nodes,
            "strategy": settings.strategy,
            "precision": settings.precision,
            "deterministic": settings.deterministic,
            "profiler": settings.profiler,
        }

    def close(self) -> None:
        """Leaves together: a process that exits early would break another's last collective."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
