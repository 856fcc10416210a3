"""Runs as processes on this machine: each with cores and GPUs of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from cepdiff.errors import ConfigError
from cepdiff.sweeps.engine import Engine, Job, end_groups, launch
from cepdiff.sweeps.settings import LocalSettings, Resources

PAUSE = 0.1  # seconds between looks at the processes


@dataclass(frozen=True)
class Slot:
    """What one run gets of this machine: ids of cores and of GPUs."""

    cores: Sequence[int]
    gpus: Sequence[str]


class LocalEngine(Engine):
    """Processes on this machine.

    Args:
        resources: per run.
        settings: how many at a time.

    GPUs that no run is given are named on stderr. Raises ConfigError if this machine has less than a run needs.
    """

    def __init__(self, resources: Resources, settings: LocalSettings) -> None:
        gpus = gpus_here()
        self._slots = slots_of(resources, settings.slots, cores_here(), gpus)
        if gpus and not resources.gpus:
            print(f"sweep: the runs use none of this machine's GPUs ({len(gpus)}): set resources.gpus", file=sys.stderr)
        self._running: dict[str, tuple[subprocess.Popen[bytes], Slot]] = {}

    @property
    def free(self) -> int:
        return len(self._slots)

    def start(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            slot = self._slots.pop()
            process = launch(job, {"CUDA_VISIBLE_DEVICES": ",".join(slot.gpus)})
            self._running[job.label] = process, slot
            if hasattr(os, "sched_setaffinity"):
                with suppress(OSError):  # it ended already, or the system forbids it
                    os.sched_setaffinity(process.pid, slot.cores)

    def poll(self, seconds: float) -> list[tuple[str, int]]:
        until = time.monotonic() + seconds
        while True:
            codes = {label: process.poll() for label, (process, _) in self._running.items()}
            ended = [(label, code) for label, code in codes.items() if code is not None]
            if ended or time.monotonic() > until:
                break
            time.sleep(PAUSE)
        for label, _ in ended:
            self._slots.append(self._running.pop(label)[1])
        return ended

    def close(self) -> None:
        end_groups([process for process, _ in self._running.values()])
        self._running = {}


def slots_of(resources: Resources, most: int | None, cores: Sequence[int], gpus: Sequence[str]) -> list[Slot]:
    """Cores and GPUs of each run that fits on this machine at a time, at most `most`; the first one is the last item.

    Cores are shared only if `most` asks for more runs than there are cores for.
    """
    if resources.cpus > len(cores):
        raise ConfigError(f"resources.cpus is {resources.cpus}; this machine has {len(cores)} cores")
    if resources.gpus > len(gpus):
        raise ConfigError(f"resources.gpus is {resources.gpus:g}; this machine has {len(gpus)} GPUs")
    fit = len(cores) // resources.cpus
    sets: list[Sequence[str]] = [[]] * (most or fit)
    if resources.gpus >= 1:
        each = int(resources.gpus)
        sets = [gpus[start : start + each] for start in range(0, len(gpus) - each + 1, each)]
    elif resources.gpus:
        sets = [[gpu] for _ in range(int(1 / resources.gpus)) for gpu in gpus]  # spread over the GPUs first
    count = min(most or fit, len(sets))
    starts = [index % fit * resources.cpus for index in range(count)]
    slots = [Slot(cores[at : at + resources.cpus], gpu) for at, gpu in zip(starts, sets, strict=False)]
    return slots[::-1]


def cores_here() -> list[int]:
    """Ids of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def gpus_here() -> list[str]:
    """Ids of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        [str(index) for index in range(torch.cuda.device_count())]
        if named is None
        else [*filter(None, named.split(","))]
    )
