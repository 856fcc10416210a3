"""The sections `problem` and `sampler`: the user's own classes, and one clear line for each mistake."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cepdiff.data.densities.datamodule import EnergyDataModule
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.problems.density.points import PointDensity
from cepdiff.problems.offline.problem import OfflineRL
from cepdiff.runs.config import Config

Load = Callable[..., Config]
Fault = Callable[..., str]

POINTS = "data: {class_path: cepdiff.EnergyDataModule, dataset: moons}\n"
PARTS = """
from cepdiff.components import Component
from cepdiff.data.blocks import StageDataModule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.problems.density.points import PointDensity
from cepdiff.runs.problem import Problem
from cepdiff.runs.stage import StageSettings


class OwnProblem(PointDensity):
    def __init__(self, run, data, *, patience: int = 3, weights: dict[str, float] = {"a": 1.0}, **sections) -> None:
        super().__init__(run, data, **sections)


class OwnSampler(GuidedSampler):
    def __init__(self, parts, candidates: int = 4) -> None:
        super().__init__(parts)
        self.candidates = candidates


SIX = Component(OwnSampler, {"candidates": 6})


class Defaults(PointDensity):
    def __init__(
        self,
        run,
        data,
        bare: Component[DPMSolver],
        length: StageSettings = StageSettings(7),
        own: Component[OwnSampler] = SIX,
        **sections,
    ) -> None:
        super().__init__(run, data, **sections)


class Reserved(PointDensity):
    def __init__(self, run, data, clone: int = 3, **sections) -> None:
        super().__init__(run, data, **sections)


class ReservedOption(GuidedSampler):
    def __init__(self, parts, values: int = 4) -> None:
        super().__init__(parts)


class Unfinished(Problem):
    pass


class Homeless(StageDataModule):
    dataset_name = content_hash = spec = gatherer = rows = None

    def __init__(self, seed: int = 0) -> None:
        pass
"""


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[str]:
    """The name of a module with the user's own problems and samplers."""
    (tmp_path / "config_test_problems.py").write_text(PARTS)
    yield "config_test_problems"
    sys.modules.pop("config_test_problems", None)


def test_the_data_say_which_problem_it_is(load: Load) -> None:
    assert load().problem is OfflineRL
    config = load(POINTS)
    assert config.problem is PointDensity
    assert config.values["problem"] == "cepdiff.problems.density.points.PointDensity"
    assert load("problem: null\n" + POINTS).values == config.values


def test_the_problem_says_which_data_it_has(load: Load) -> None:
    config = load("problem: cepdiff.problems.density.points.PointDensity\ndata: {dataset: moons}\n")
    assert config.components["data"].cls is EnergyDataModule
    assert config.values == load(POINTS).values


def test_a_problem_of_ones_own_adds_a_section(load: Load, parts: str) -> None:
    config = load(f"problem: {parts}.OwnProblem\npatience: 5\n{POINTS}")
    assert config.problem.__name__ == "OwnProblem"
    assert config.settings["patience"] == config.values["patience"] == config.sections["patience"] == 5
    assert {"behavior", "guidance", "sampler", "stages", "evaluation"} <= set(config.sections)  # inherited
    assert config.values["problem"] == f"{parts}.OwnProblem"
    assert load(config.to_yaml()).values == config.values
    assert load(f"problem: {parts}.OwnProblem\n{POINTS}", overrides=["patience=7"]).settings["patience"] == 7
    keyed = load(f"problem: {parts}.OwnProblem\nweights: {{b: 2.0}}\n{POINTS}")
    assert keyed.settings["weights"] == {"b": 2.0}  # a mapping with the user's own keys
    plain = load(f"problem: {parts}.OwnProblem\npatience: 5\ndata: {{dataset: moons}}\n")
    assert plain.values == config.values  # it has its base class's data


def test_defaults_of_the_constructor(load: Load, parts: str) -> None:
    config = load(f"problem: {parts}.Defaults\n{POINTS}")
    assert config.settings["length"].max_steps == config.values["length"]["max_steps"] == 7
    assert config.components["own"].arguments == {"candidates": 6}
    assert config.components["bare"].cls is DPMSolver  # the annotation's class
    assert load(config.to_yaml()).values == config.values
    changed = load(f"problem: {parts}.Defaults\n{POINTS}", overrides=["own.candidates=2", "length.max_steps=3"])
    assert changed.components["own"].arguments == {"candidates": 2}
    assert changed.settings["length"].max_steps == 3
    assert changed.settings["length"].checkpoint_every == 5000


def test_a_sampler_of_ones_own(load: Load, parts: str) -> None:
    text = f"sampler: {{class_path: {parts}.OwnSampler, init_args: {{candidates: 2}}}}\n"
    config = load(text, overrides=["sampler.candidates=9"])
    spec = {"class_path": f"{parts}.OwnSampler", "init_args": {"candidates": 9}}
    assert config.values["sampler"] == config.components["sampler"].spec == spec
    sampler = config.components["sampler"](SamplerParts(2, {}, LinearVP(), DPMSolver()))
    assert (type(sampler).__name__, sampler.candidates) == ("OwnSampler", 9)
    assert load(config.to_yaml()).values == config.values
    again = load(text, overrides=["sampler.class_path=cepdiff.policy.sampler.GuidedSampler"])
    assert again.components["sampler"].cls is GuidedSampler
    assert again.values == load().values  # the first class's options are dropped


def test_a_class_named_alone_is_its_class_path(load: Load, parts: str) -> None:
    whole = load(f"sampler: {{class_path: {parts}.OwnSampler, init_args: {{candidates: 2}}}}\n")
    alone = load(f"sampler: {parts}.OwnSampler\n", overrides=["sampler.candidates=2"])
    later = load(overrides=[f"sampler={parts}.OwnSampler", "sampler.candidates=2"])
    assert alone.values == later.values == whole.values
    again = load(
        f"sampler: {{class_path: {parts}.OwnSampler, candidates: 2}}\n", overrides=[f"sampler={parts}.OwnSampler"]
    )
    assert again.values == whole.values  # the same class keeps its arguments
    points = load("data: cepdiff.EnergyDataModule\n", overrides=["data.dataset=rings"])
    assert points.components["data"].cls.__name__ == "EnergyDataModule"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("problm: PARTS.OwnProblem", r"unknown key 'problm'\. Did you mean problem\?"),
        ("problem: PARTS.OwnProblem\npatiense: 5", r"unknown key 'patiense'\. Did you mean patience\?"),
        ("patience: 5", r"unknown key 'patience'\. There are problem, seed, run_dir, data"),
        ("problem: PARTS.OwnProblem\npatience: high", r"^patience: expected int, found high$"),
        ("problem: PARTS.Reserved", r"^clone: an argument cannot have this name in a configuration; rename it$"),
        ("sampler: {class_path: PARTS.ReservedOption}", r"^sampler\.values: an argument cannot have this name"),
        ("behavior: {max_grad_norm: .inf}", r"^behavior\.max_grad_norm is inf; expected finite numbers$"),
        ("evaluation: {scales: [0, .nan]}", r"^evaluation\.scales is \[0\.0, nan\]; expected"),
        ("problem: PARTS.OwnSampler", r"^problem: PARTS\.OwnSampler is not a subclass of Problem$"),
        ("problem: PARTS.Unfinished", r"^problem: PARTS\.Unfinished cannot be built.* does not define sampler, stages"),
        ("problem: cepdiff.runs.problem.Problem", r"^problem: .*Problem cannot be built"),
        ("problem: PARTS.OwnProblm", r"^problem: 'PARTS' has no class 'OwnProblm'\. Did you mean OwnProblem"),
        ("problem: OwnProblem", r"^problem: 'OwnProblem' is not a class path; expected package.module.OwnProblem"),
        ("problem: nowhere_to_be_found.OwnProblem", r"^problem: there is no module 'nowhere_to_be_found'"),
        ("problem: 3", r"^problem is 3; expected package\.module\.Class"),
        ("problem: [a]", r"^problem is \['a'\]; expected package\.module\.Class"),
        ("problem: {class_path: PARTS.OwnProblem}", r"^problem is .*; expected package\.module\.Class"),
        ("problem: cepdiff.problems.offline.problem.OfflineRL", r"^data: .*EnergyDataModule is not a subclass of Offl"),
        ("sampler: {candidates: 3}", r"^unknown key 'sampler\.candidates'\. There are none$"),
        ("sampler: {class_path: PARTS.OwnSampler, candidats: 3}", r"'sampler\.candidats'\. Did you mean candidates\?"),
        ("sampler: {class_path: PARTS.OwnSampler, parts: 3}", r"'sampler\.parts'\. There are candidates$"),
        ("sampler: {class_path: PARTS.OwnSampler, candidates: few}", r"^sampler\.candidates: expected int, found few$"),
        ("sampler: {class_path: PARTS.OwnSamplr}", r"^sampler: 'PARTS' has no class 'OwnSamplr'\. Did you mean OwnS"),
        ("sampler: {class_path: PARTS.OwnProblem}", r"^sampler: PARTS\.OwnProblem is not a subclass of GuidedSampler$"),
        ("sampler: {class_path: cepdiff.diffusion.solver.DPMSolver}", r"^sampler: .* is not a subclass of GuidedSam"),
        ("sampler: PARTS.OwnSamplr", r"^sampler: 'PARTS' has no class 'OwnSamplr'\. Did you mean OwnS"),
        ("trainer: fast", r"^trainer is 'fast'; expected a mapping of options$"),
        ("sampler: some-sampler", r"^sampler is 'some-sampler'; expected a mapping of options$"),
        ("sampler: 3", r"^sampler is 3; expected a mapping of options$"),
    ],
)
def test_what_cannot_be_used_gets_one_line(fault: Fault, parts: str, text: str, message: str) -> None:
    assert re.search(message.replace("PARTS", parts), fault(POINTS + text.replace("PARTS", parts)))


def test_data_that_name_no_problem(fault: Fault, parts: str) -> None:
    line = fault(f"data: {{class_path: {parts}.Homeless}}")
    assert line == f"{parts}.Homeless does not say which problem it is for: name one under 'problem'"


def test_data_of_another_problem(fault: Fault) -> None:
    text = "problem: cepdiff.problems.offline.problem.OfflineRL\ndata: {class_path: cepdiff.ImageDataModule}\n"
    assert fault(text) == "data: cepdiff.ImageDataModule is not a subclass of OfflineDataModule"
