"""A problem: how its stages are made, and by what they are judged. Its constructor is its configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch import Callback

from cepdiff.components import Component, class_record
from cepdiff.data.blocks import StageDataModule
from cepdiff.files import file_hash
from cepdiff.randomness import stream_seed
from cepdiff.runs.folder import RunFolder
from cepdiff.runs.processes import Processes
from cepdiff.runs.results import Results

if TYPE_CHECKING:
    from cepdiff.runs.config import Config
    from cepdiff.runs.report import Section
    from cepdiff.runs.stage import Stage


@dataclass(frozen=True)
class Run:
    """What every run has, whatever its problem.

    Args:
        folder: of the run.
        processes: ranks and devices.
        config: the complete configuration; None for a stage that is run by itself.
        sources: folders with the user's own classes, kept with the policy.
        reuse: another run, whose finished stages are taken over if they were made from the same.
        kept: False if the folder is deleted after the run.
    """

    folder: RunFolder
    processes: Processes
    config: Config | None = None
    sources: Sequence[str] = ()
    reuse: RunFolder | None = None
    kept: bool = True

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return 0 if self.config is None else self.config.seed

    @property
    def callbacks(self) -> list[Callback]:
        """Callbacks of every trained stage."""
        return [] if self.config is None else self.config.callbacks

    def component(self, key: str) -> Component[Any]:
        """The component of a section."""
        assert self.config is not None
        return self.config.components[key]

    def module(self, key: str, component: Component[Any], sizes: tuple[int, int], **supplied: Any) -> Any:
        """The module of section `key`; its first weights depend on (seed, key) only."""
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed(self.seed, key, "init"))
            return component(*sizes, **supplied)

    def weights_hash(self, stage: str) -> str:
        """Hash of the weights of a finished stage."""
        return self.processes.on_main(lambda: file_hash(self.folder.stage(stage).final))


class Problem(ABC):
    """What `cepdiff fit` solves. Name a subclass under `problem:`, or let the data module say which one it is for.

    The arguments of the constructor after `run` and `data` are the sections of the YAML, read from the signature: a
    `Component[Base]` is a class with options, a dataclass a group of settings, anything else a plain value. A subclass
    adds a section by adding an argument.

    Args:
        run: the run.
        data: loaded data.
    """

    nested: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Section -> argument -> class specification, for arguments that stand for a class but default to None."""
    not_recorded: ClassVar[frozenset[str]] = frozenset()
    """Arguments of the data module that change nothing, or that its hash covers."""

    def __init__(self, run: Run, data: StageDataModule) -> None:
        self.run = run
        self.data: Any = data
        spec = run.component("data").record
        arguments = {key: value for key, value in spec["init_args"].items() if key not in self.not_recorded}
        self.common = {"dataset": data.content_hash, "data": {**spec, "init_args": arguments}, "seed": run.seed}
        if own := class_record(type(self)):
            self.common["problem"] = own

    @classmethod  # noqa: B027  (a problem may have nothing to check)
    def check(cls, sections: Mapping[str, Any]) -> None:
        """Raise ConfigError for settings that cannot be used together."""

    @classmethod
    def network_arguments(cls, data: Any, values: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Section -> arguments of its `net` that the loaded data supply, if the network's class has them."""
        return {}

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The stages in their order; the last one judges."""

    @abstractmethod
    def sampler(self) -> Any:
        """The sampler of what has been trained so far."""

    def policy(self) -> Any:
        """What `cepdiff.fit` returns to act or sample with."""
        return self.sampler()

    def results(self) -> Results:
        """The results of the finished run."""
        return Results.read(self.run.folder.results)

    @classmethod
    def report(cls, runs: Sequence[Results], output: Path) -> list[Section]:
        """Tables and figures that compare finished runs; figures are written to `output`."""
        from cepdiff.runs.comparison import compare_runs

        return compare_runs(runs, output)
