"""Runs as tasks of a Ray cluster: an existing one by its address, or one that is started on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from cepdiff.errors import ConfigError, MissingExtraError, one_line
from cepdiff.sweeps.engine import GRACE, KILLED, Engine, Job, carry_out
from cepdiff.sweeps.settings import RaySettings, Resources

REACHED_WITHIN = 5.0  # seconds
QUEUED = 1000  # tasks given to Ray at a time; it runs as many as fit


class RayEngine(Engine):
    """Tasks of a Ray cluster, each with its share of cores and GPUs.

    Args:
        resources: per run.
        settings: the cluster.

    Raises:
        ConfigError: the cluster cannot be reached, or no machine of it has what a run needs.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, resources: Resources, settings: RaySettings) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtraError("The engine ray", "ray") from None
        self._ray: Any = ray
        connect(ray, settings.address)
        self._check(resources)
        options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": 0}  # the sweep tries again
        self._function = self._ray.remote(**options)(carry_out)
        self._tasks: dict[Any, str] = {}

    @property
    def free(self) -> int:
        return max(0, QUEUED - len(self._tasks))

    def start(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._tasks[self._function.options(name=job.label).remote(job)] = job.label

    def poll(self, seconds: float) -> list[tuple[str, int]]:
        if not self._tasks:
            return []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        return [(self._tasks.pop(task), self._code(task)) for task in ready]

    def close(self) -> None:
        for task in self._tasks:
            self._ray.cancel(task)
        if self._tasks:
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=GRACE)
        self._tasks = {}
        self._ray.shutdown()

    def _code(self, task: Any) -> int:
        try:
            return int(self._ray.get(task))
        except self._ray.exceptions.RayTaskError as error:  # the run did not start: no Python, no folder
            logging.getLogger(__name__).warning(one_line(error.cause if error.cause is not None else error))
            return 1
        except self._ray.exceptions.RayError:  # the worker or its machine is gone
            return KILLED

    def _check(self, resources: Resources) -> None:
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(m.get("CPU", 0) >= resources.cpus and m.get("GPU", 0) >= resources.gpus for m in machines):
            best = "; ".join(f"CPU {m.get('CPU', 0):g}, GPU {m.get('GPU', 0):g}" for m in machines)
            self._ray.shutdown()
            raise ConfigError(
                f"resources: a run needs CPU {resources.cpus}, GPU {resources.gpus:g}; Ray's machines have {best}"
            )


def connect(ray: Any, address: str | None) -> None:
    """Connect to the cluster at `address`, or start one on this machine. Raises ConfigError if that is impossible."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no traffic that nobody asked for
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster started here: by default its workers give way
    where = address or "a cluster on this machine"
    try:
        if address is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            ray.init("local", num_cpus=cores, include_dashboard=False, **quiet)
            return
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host and port.isdigit():
            with suppress(ValueError), socket.create_connection((host, int(port)), REACHED_WITHIN):
                pass
        ray.init(address, **quiet)
    except Exception as error:  # Ray raises many kinds
        raise ConfigError(f"ray.address: {where} cannot be reached ({one_line(error)[:200]})") from error
