"""CPU threads of a stage, chosen by measurement: on small networks more threads than help are slower."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cepdiff.modules.base import StageModule
from cepdiff.modules.noise import RandomStream
from cepdiff.precision import uncached_casts
from cepdiff.runs.folder import StageFolder
from cepdiff.runs.processes import Processes
from cepdiff.types import Batch

SHORT = 20.0  # seconds of work on one thread for which a comparison does not pay
TRIAL = 0.5  # seconds per comparison, on the fewer threads
GAIN = 0.9  # twice the threads are used if they take at most this share of the time
HOPELESS = 3.0  # times as long: the comparison ends at once
VARIABLE = "OMP_NUM_THREADS"

Trial = Callable[[], object]


def allowed_cores(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its control groups (version 1 or 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = math.inf
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers  # version 2 has no name here
        folder = top / path.lstrip("/")
        for place in [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]:
            quota = min(quota, quota_of(place))
    return max(1, min(cores, int(min(quota, cores))))


def quota_of(group: Path) -> float:
    """CPU time per time that a control group allows; infinite without a limit."""
    try:
        if (group / "cpu.max").is_file():
            used, period = (group / "cpu.max").read_text().split()
        else:
            used, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return math.inf if used in ("max", "-1") else int(used) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or none of a limit
        return math.inf


def are_measured(processes: Processes) -> bool:
    """True if stages choose their threads: on the CPU, in a run of one process, where no number is given."""
    given = processes.settings.num_threads is not None or VARIABLE in os.environ
    return not given and processes.device.type == "cpu" and processes.world == 1


def settle_threads(
    processes: Processes, name: str, trial: Trial, calls: float, folder: StageFolder | None = None
) -> None:
    """Set the CPU threads of the stage `name`, and say the choice in one line.

    In this order: `trainer.num_threads`, OMP_NUM_THREADS, the number that the stage in `folder` began with (sums on
    another number of threads can round differently, and a resumed stage must end with the same weights), what
    `choose_threads` finds. On a GPU, and in a run of several processes, which share the cores, torch's number stays.

    Args:
        processes: of the run.
        name: in the message.
        trial: work like that of the stage, without side effects.
        calls: of `trial` in the rest of the stage, about.
        folder: keeps the number.
    """
    if not are_measured(processes):
        return
    cores = allowed_cores()
    known = None if folder is None else folder.num_threads
    if known is None:
        threads, reason = choose_threads(trial, calls, cores)
        if folder is not None:
            folder.keep_threads(threads)
    else:
        threads, reason = min(known, cores), "as the stage began"
    torch.set_num_threads(threads)
    print(f"{name}: {threads} of {cores} CPU threads, {reason}", file=sys.stderr)


def choose_threads(trial: Trial, calls: float, cores: int) -> tuple[int, str]:
    """The number among 1, 2, 4, ... and `cores` beyond which threads do not make `trial` faster, and the reason.

    Timings of two numbers take turns and are added up, so that other programs disturb both alike, and long waits for a
    busy core count in full.
    """
    before = torch.get_num_threads()
    try:
        seconds_on(1, trial)  # the first call allocates
        if cores == 1:
            return 1, "all there are"
        if seconds_on(1, trial) * calls < SHORT:
            return 1, "because the work is short"
        threads, ratio = 1, 1.0
        while threads < cores:
            more = min(2 * threads, cores)
            ratio = compared(trial, threads, more)
            if ratio > GAIN:
                return threads, f"because {more} take {ratio:.2f} times as long"
            threads = more
        return threads, f"which take {ratio:.2f} times as long as fewer"
    finally:
        torch.set_num_threads(before)


def compared(trial: Trial, few: int, more: int) -> float:
    """Time of `trial` on `more` threads over that on `few`."""
    first, second = seconds_on(few, trial), seconds_on(more, trial)  # these include the start of threads
    if second > HOPELESS * first and second > TRIAL:
        return second / first
    pairs = min(max(2, int(TRIAL / first)), 100)
    times = [(seconds_on(few, trial), seconds_on(more, trial)) for _ in range(pairs)]
    return sum(slow for _, slow in times) / sum(fast for fast, _ in times)


def seconds_on(threads: int, trial: Trial) -> float:
    """Wall clock of one call on that many threads."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    trial()
    return time.perf_counter() - started


class ThreadChoice(Callback):
    """Settles the threads of a trained stage before its first step, by gradients of the loss of its first minibatch.

    Random numbers, buffers and gradients are afterwards as before.

    Args:
        processes: of the run.
        folder: of the stage.
    """

    def __init__(self, processes: Processes, folder: StageFolder) -> None:
        self.processes = processes
        self.folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StageModule)
        module, loader = pl_module, trainer.train_dataloader
        first: list[tuple[Batch, RandomStream]] = []

        def trial() -> None:
            if not first:
                assert loader is not None
                first.append(next(module.minibatches(next(iter(loader)))))
            batch, noise = first[0]
            with uncached_casts(), trainer.precision_plugin.forward_context():
                module.accumulate(batch, noise, lambda loss: torch.autograd.grad(loss, trained, allow_unused=True))

        trained = module.trained_parameters()
        kept = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
        with torch.random.fork_rng(devices=[]):
            settle_threads(
                self.processes, self.folder.name, trial, trainer.max_steps - trainer.global_step, self.folder
            )
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
