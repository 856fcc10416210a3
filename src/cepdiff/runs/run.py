"""The context that the stages of every run have, for any problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback

from cepdiff.callbacks.stopping import StopSignals
from cepdiff.components import Component
from cepdiff.errors import ConfigError
from cepdiff.randomness import stream_seed
from cepdiff.runs.folder import FINAL, RunFolder
from cepdiff.runs.logs import LabBook, Logs
from cepdiff.runs.processes import Processes


@dataclass(frozen=True)
class Run:
    """The context of a run's stages.

    Args:
        folder: where it is kept.
        processes: ranks and devices.
        seed: of all random numbers.
        components: the configuration's classes, by section.
        callbacks: of every trained stage.
        sources: folders with the user's own classes, kept with the policy.
        reuse: another run, whose finished stages are taken over if they were made from the same.
        kept: False if the folder is deleted after the run.
        signals: the signals that ask the command to stop.
        logger: class and options of the loggers.
        options: the configuration to log, by dotted key.
    """

    folder: RunFolder
    processes: Processes
    seed: int = 0
    components: Mapping[str, Component[Any]] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()
    sources: Sequence[str] = ()
    reuse: RunFolder | None = None
    kept: bool = True
    signals: StopSignals = field(default_factory=StopSignals)
    logger: Component[Any] = Component(LabBook)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def logs(self) -> Logs:
        """The loggers of the stages."""
        return Logs(self.folder.logs, self.logger, self.options)

    def module(self, key: str, component: Component[Any], sizes: tuple[int, int], **supplied: Any) -> Any:
        """The module of section `key`; its first weights depend on (seed, key) only."""
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed(self.seed, key, "init"))
            module = component(*sizes, **supplied)
        if module.stage != key:
            raise ConfigError(f"{key}: {component.cls.__name__}.stage is '{module.stage}'; expected '{key}'")
        return module

    def weights_hash(self, stage: str) -> str:
        """Hash of a finished stage's weights."""
        return self.processes.on_main(lambda: self.folder.stage(stage).files.get(FINAL, ""))
