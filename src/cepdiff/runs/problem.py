"""A problem: how its stages are made, and by what they are judged. Its constructor is its configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cepdiff.components import class_record
from cepdiff.data.blocks import StageDataModule
from cepdiff.runs.comparison import compare_runs
from cepdiff.runs.report import OFFLINE, Section
from cepdiff.runs.results import Results
from cepdiff.runs.run import Run
from cepdiff.runs.stage import Stage


class Problem(ABC):
    """The task that `cepdiff fit` solves. Name a subclass under `problem:`, or let the data module name its own.

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
    from_data: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Section -> arguments from `network_arguments`."""
    used_from: ClassVar[Mapping[str, str]] = {}
    """Key -> the first stage that depends on it, by which a sweep plans what runs take from each other; in the order of
    the stages, the first and the last included. The first stage is taken to depend on all other keys."""

    def __init__(self, run: Run, data: StageDataModule) -> None:
        self.run = run
        self.data: Any = data
        spec = run.components["data"].record
        arguments = {key: value for key, value in spec["init_args"].items() if key not in self.not_recorded}
        self.common = {"dataset": data.content_hash, "data": {**spec, "init_args": arguments}, "seed": run.seed}
        if own := class_record(type(self)):
            self.common["problem"] = own

    @classmethod  # noqa: B027  (a problem may have nothing to check)
    def check(cls, sections: Mapping[str, Any]) -> None:
        """Raise ConfigError for settings that cannot be used together."""

    def verify(self) -> None:  # noqa: B027  (as `check`)
        """Raise ConfigError for what cannot work; called once, when the problem is made and before any work."""

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
        """The object that acts or samples, as `cepdiff.fit` returns it."""
        return self.sampler()

    def results(self) -> Results:
        """The results of the finished run."""
        return Results.read(self.run.folder.results)

    @classmethod
    def report(cls, runs: Sequence[Results], output: Path, scale: float | str = OFFLINE) -> list[Section]:
        """Tables and figures that compare finished runs; figures are written to `output`.

        `scale` is the guidance scale of scores over seeds, or how it is chosen: "offline" or "best" (in hindsight).
        """
        return compare_runs(runs, output)
