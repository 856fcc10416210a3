"""Runs as job arrays of SLURM, submitted by submitit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cepdiff.errors import ConfigError, MissingExtraError, one_line
from cepdiff.sweeps.engine import GRACE, KILLED, Engine, Job, carry_out
from cepdiff.sweeps.settings import Resources, SlurmSettings

QUEUED = 1000  # jobs submitted at a time: clusters limit the length of an array
PAUSE = {"slurm": 10.0, "local": 0.2, "debug": 0.0}  # seconds between looks at the jobs


class SlurmEngine(Engine):
    """Jobs of SLURM; what is ready at the same time is one array.

    Args:
        resources: per run.
        settings: the cluster.
        folder: for submitit's own files, which all machines must see.

    Raises:
        ConfigError: there is no SLURM on this machine, or a parameter that submitit does not know.
        MissingExtraError: submitit is not installed.
    """

    def __init__(self, resources: Resources, settings: SlurmSettings, folder: Path) -> None:
        try:
            import submitit
        except ImportError:
            raise MissingExtraError("The engine slurm", "slurm") from None
        self._failures = submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError
        self._pause = PAUSE[settings.cluster]
        self._jobs: dict[str, Any] = {}
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=settings.cluster)
            self._executor.update_parameters(**parameters_of(resources, settings))
        except Exception as error:  # of several kinds, all about the settings or the machine
            raise ConfigError(f"slurm: {one_line(error)[:200]}") from error

    @property
    def free(self) -> int:
        return max(0, QUEUED - len(self._jobs))

    def start(self, jobs: Sequence[Job]) -> None:
        try:
            found = self._executor.map_array(carry_out, jobs)
        except Exception as error:  # sbatch refuses: a partition, an account, a limit
            raise ConfigError(f"slurm: the jobs cannot be submitted ({one_line(error)[:200]})") from error
        self._jobs.update(zip((job.label for job in jobs), found, strict=True))

    def poll(self, seconds: float) -> list[tuple[str, int]]:
        until = time.monotonic() + max(seconds, self._pause)
        while not (ended := [label for label, job in self._jobs.items() if job.done()]) and time.monotonic() < until:
            time.sleep(self._pause)
        return [(label, self._code(self._jobs.pop(label))) for label in ended]

    def close(self) -> None:
        for job in self._jobs.values():
            with suppress(Exception):  # it has just ended
                job.cancel()
        until = time.monotonic() + GRACE
        while any(not job.done() for job in self._jobs.values()) and time.monotonic() < until:
            time.sleep(self._pause)
        self._jobs = {}

    def _code(self, job: Any) -> int:
        """The run's exit code; that of a killed process if the job left no result."""
        try:
            return int(job.result())
        except self._failures[0]:  # the run did not start: no Python, no folder
            return 1
        except self._failures[1]:
            return KILLED


def parameters_of(resources: Resources, settings: SlurmSettings) -> dict[str, Any]:
    """Submitit's parameters of a job."""
    if resources.gpus % 1:
        raise ConfigError(f"resources.gpus is {resources.gpus:g}; SLURM needs a whole number")
    found: dict[str, Any] = {"timeout_min": settings.timeout_min, "cpus_per_task": resources.cpus, "name": "cepdiff"}
    if resources.gpus or settings.cluster != "slurm":
        found["gpus_per_node"] = int(resources.gpus)
    if settings.cluster == "slurm":
        found["slurm_array_parallelism"] = settings.max_jobs
        if settings.partition is not None:
            found["slurm_partition"] = settings.partition
    return {**found, **settings.parameters}
