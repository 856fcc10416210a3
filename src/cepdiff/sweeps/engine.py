"""An engine carries runs out: one interface, and the one command line that every engine starts."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

GRACE = 60.0  # seconds that a run has to write its checkpoint: a block of slow steps can take long
TAKEN_ALONG = ("CEPDIFF_", "D4RL_", "MUJOCO_", "PYTHONPATH")  # starts of environment variables for other machines
CLUSTER = ("SLURM_", "SUBMITIT_", "PMI_", "PMIX_")  # of a job's own environment, in which Lightning would see ranks
KILLED = 128 + 9  # exit code of a process that SIGKILL ended, as shells give it


@dataclass(frozen=True)
class Job:
    """A run to carry out.

    Args:
        label: of the run.
        arguments: of `cepdiff`.
        log: file that gets what it prints, after what is there.
        cpus: threads.
        folder: working folder.
        environment: variables to set.
    """

    label: str
    arguments: Sequence[str]
    log: str
    cpus: int
    folder: str
    environment: Mapping[str, str] = field(default_factory=dict)


class Engine(ABC):
    """Carries out runs somewhere; used in a `with` block, at whose end nothing is running."""

    @property
    @abstractmethod
    def free(self) -> int:
        """How many more runs may be given to it now."""

    @abstractmethod
    def start(self, jobs: Sequence[Job]) -> None:
        """Begin these runs."""

    @abstractmethod
    def poll(self, seconds: float) -> list[tuple[str, int]]:
        """Label and exit code of the runs that ended since the last call; waits at most `seconds` for the first."""

    @abstractmethod
    def close(self) -> None:
        """Stop all runs, which keep what they have done, and wait for their ends."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def launch(job: Job, more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a run as a process group of its own, which ends with this process."""
    threads = {name: str(job.cpus) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(CLUSTER)}
    with open(job.log, "ab") as log:  # noqa: PTH123  (a path on the machine that carries the run out)
        return subprocess.Popen(
            [sys.executable, "-m", "cepdiff", *job.arguments],
            env={**inherited, **job.environment, **threads, **(more or {})},
            cwd=job.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, preexec_fn=_END_WITH_PARENT,
        )  # fmt: skip


def carry_out(job: Job) -> int:
    """Start a run, wait for its end and return its exit code; for engines that call a function on some machine.

    An exception out of a signal's handler (submitit's at the time limit) stops the run, and counts as killed.
    """
    process = launch(job)
    try:
        while True:  # in short steps, so that an interrupt gets through
            with suppress(subprocess.TimeoutExpired):
                return process.wait(0.5)
    except Exception:
        return KILLED
    finally:
        end_groups([process])


def end_groups(processes: Sequence[subprocess.Popen[bytes]], seconds: float = GRACE) -> None:
    """Ask the process groups to stop and wait; kill what is left after `seconds`, or at once at another interrupt."""
    left = [process for process in processes if process.poll() is None]
    try:
        for process in left:
            _end(process)
        until = time.monotonic() + seconds
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
    finally:
        for process in left:
            _end(process, kill=True)  # also what outlived the leader of its group
            process.wait()


def environment() -> dict[str, str]:
    """The variables of this process that a run on another machine needs."""
    return {name: value for name, value in os.environ.items() if name.startswith(TAKEN_ALONG)}


def _end(process: subprocess.Popen[bytes], kill: bool = False) -> None:
    if sys.platform == "win32":
        process.kill() if kill else process.terminate()
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGTERM)


def _end_with_parent() -> Callable[[], None] | None:
    """A function for the new process that asks Linux to kill it when its parent is killed; None elsewhere."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


_END_WITH_PARENT = _end_with_parent()
