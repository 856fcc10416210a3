"""The processes of a run: started once, shared by all stages."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed
from lightning.fabric import Fabric
from torch import Tensor

from cepdiff.errors import CepdiffError, ConfigError, LostProcessError, one_line
from cepdiff.ranges import Processors

PARENT = "CEPDIFF_PARENT"  # environment variable: id of the process that launched the others on this machine
GRACE = 5.0  # seconds that the processes have to end by themselves
T = TypeVar("T")
SHARED = ("accelerator", "devices", "num_nodes", "strategy", "precision")  # arguments of a Fabric and of a Trainer


@dataclass
class TrainerSettings:
    """Arguments of Lightning's Trainer, the same in every stage.

    Args:
        accelerator: "auto", "cpu", "gpu", ...
        devices: processes (GPUs) per node.
        num_nodes: machines.
        strategy: "auto", "ddp", ...
        precision: Lightning's, e.g. "32-true" or "bf16-mixed".
        matmul_precision: torch's float32 matrix products: "highest", "high" (TF32 on GPUs) or "medium". Convolutions
            on a GPU are in TF32 unless it is "highest".
        num_threads: CPU threads per process; null is OMP_NUM_THREADS, or what is fastest, see `runs.threads`.
        deterministic: refuse operations that have no deterministic form.
        profiler: "simple", "advanced" or null.
        progress_bar: show progress bars.
    """

    accelerator: str = "auto"
    devices: Processors = 1
    num_nodes: Processors = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    num_threads: Processors | None = None
    deterministic: bool = False
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    progress_bar: bool = True


class Processes:
    """Rank, device and collectives; every process of a multi-device run executes the whole command.

    Launching once, before the first stage, lets stages without a Trainer (support, evaluation) use all devices, even
    if every trained stage was finished by an earlier command.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        torch.set_float32_matmul_precision(settings.matmul_precision)
        torch.backends.cudnn.allow_tf32 = settings.matmul_precision != "highest"
        torch.backends.cudnn.deterministic = True  # a resumed stage ends with the same weights
        self.settings = settings
        quieten()
        try:
            self._fabric = Fabric(**{name: getattr(settings, name) for name in SHARED})
        except Exception as error:  # Lightning raises many kinds, all about these settings
            raise ConfigError(f"trainer: {one_line(error)}") from error
        lightnings = int(os.environ.get("LOCAL_RANK", 0)) > 0 and os.environ.get(PARENT) == str(os.getppid())
        self._parent = os.getppid() if lightnings else None
        if not lightnings:
            os.environ[PARENT] = str(os.getpid())
        self._fabric.launch()
        launched: list[subprocess.Popen[bytes]] = getattr(self._fabric.strategy.launcher, "procs", [])
        self._children = launched.copy()
        launched.clear()  # Lightning's observer would kill this process silently
        self._leaving = threading.Event()
        if self.world > 1:
            threading.Thread(target=self._watch, daemon=True).start()

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
        """True on the process that writes files and prints."""
        return self.rank == 0

    @property
    def shows_progress(self) -> bool:
        """True on the process that draws progress bars, if there are any."""
        return self.is_main and self.settings.progress_bar

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self._fabric.device

    def barrier(self) -> None:
        """Wait for all processes."""
        self._fabric.barrier()

    def autocast(self) -> AbstractContextManager[None]:
        """Context of `trainer.precision` for forward passes outside a Trainer."""
        return self._fabric.autocast()

    def on_main(self, function: Callable[[], T]) -> T:
        """Run `function` on the main process only; all processes get its result, or fail with it."""
        result: T | None = None
        failure: Exception | None = None
        if self.is_main:
            try:
                result = function()
            except Exception as error:  # of any kind: the other processes wait for the outcome
                failure = error
        if self.world > 1:
            message = None if failure is None else str(failure) or repr(failure)
            result, message = self._fabric.broadcast((result, message))
            if message is not None and failure is None:
                failure = CepdiffError(message)  # the main process raises the error itself, and prints it
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]

    def gather_rows(self, mine: Tensor, total: int) -> Tensor:
        """Rows (total, ...) of all processes in order; this one has rows rank, rank + world, ..."""
        if self.world == 1:
            return mine
        padded = torch.zeros(-(-total // self.world), *mine.shape[1:], dtype=mine.dtype, device=self.device)
        padded[: len(mine)] = mine.to(self.device)
        gathered: Tensor = self._fabric.all_gather(padded)  # type: ignore[assignment]
        return gathered.transpose(0, 1).flatten(0, 1)[:total]  # (world, M, ...) -> (M * world, ...)

    def trainer_arguments(self) -> dict[str, Any]:
        """Keyword arguments of every stage's Trainer."""
        return {name: getattr(self.settings, name) for name in (*SHARED, "deterministic", "profiler")}

    @contextmanager
    def together(self) -> Iterator[None]:
        """End together with the other processes: none continues, or waits for one that is gone.

        Afterwards torch has as many threads as before.

        Raises:
            LostProcessError: a collective failed because another process ended.
        """
        threads = torch.get_num_threads()
        try:
            yield
            self.close()
            self._leaving.set()
        except BaseException as error:
            self._leaving.set()
            end(self._children)
            if is_loss(error):
                raise LostProcessError(str(error)) from error
            if not self.is_main and isinstance(error, CepdiffError) and error.exit_code < 128:
                time.sleep(3 * GRACE)  # the main process, which may be busy, reports for all and ends this one
                print(f"cepdiff: process {self.rank}: {error}", file=sys.stderr)
            raise
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        """Leave together: a process that exits early would break another's last collective."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def _watch(self) -> None:
        """End this process if it has not noticed by itself that another one on its machine is gone."""
        while not self._leaving.wait(1.0):
            orphaned = self._parent is not None and os.getppid() != self._parent
            if (orphaned or any(child.poll() for child in self._children)) and not self._leaving.wait(GRACE):
                if self.is_main:
                    print(f"cepdiff: {LostProcessError()}", file=sys.stderr, flush=True)
                end(self._children)
                os._exit(LostProcessError.exit_code)


def is_loss(error: BaseException) -> bool:
    """True if a collective failed because another process ended."""
    signs = r"Connection (closed|reset|refused)|Broken pipe|[Tt]imed out|remote process exited|communicator was aborted"
    return isinstance(error, RuntimeError) and bool(re.search(signs, str(error)))


def end(children: list[subprocess.Popen[bytes]]) -> None:
    """End processes, by force if they take too long."""
    for act in (subprocess.Popen.terminate, subprocess.Popen.kill):
        until = time.monotonic() + GRACE
        for child in children:
            act(child)
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, until - time.monotonic()))


def quieten() -> None:
    """Hide Lightning's advice that does not apply here; everything else is shown."""
    for logger in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "pytorch.accelerators.cuda"):
        logging.getLogger(f"lightning.{logger}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`IterableDataset` has `__len__` defined.*",
        ".*You defined a `validation_step` but have no.*",
        ".*pre-optimization state.*",  # manual optimisation steps before Lightning looks
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # the loader starts at the right step
        ".*Starting from v.*tensorboardX.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # frozen targets and averages are meant to be
        ".*treespec, LeafSpec.*",  # torch's own deprecation, raised by Lightning
    ):
        warnings.filterwarnings("ignore", message=message)
