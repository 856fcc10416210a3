"""Classes in sections: the user's own, siblings by bare name, and data with their own sections."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cepdiff.data.densities.datamodule import EnergyDataModule
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.diffusion.schedule import CosineVP, LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.modules.guidance import BatchEnergyGuidance
from cepdiff.networks.energy import ResidualEnergy
from cepdiff.networks.score import MLPScore
from cepdiff.runs.config import Config

SIZES = (3, 2)

Load = Callable[..., Config]
Fault = Callable[..., str]

PARTS = """
from lightning.pytorch import Callback
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import CEP
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.networks.score import MLPScore


class OwnCritic(SoftmaxQCritic):
    def __init__(self, observation_size: int, action_size: int, caution: float = 0.5, **options) -> None:
        super().__init__(observation_size, action_size, **options)
        self.caution = caution


class OwnNet(MLPScore):
    def __init__(self, condition_size: int, data_size: int, size: int = 4) -> None:
        super().__init__(condition_size, data_size, hidden=[size])


class OwnSchedule(LinearVP):
    def __init__(self, bend: float = 1.0) -> None:
        super().__init__()
        self.bend = bend


class OwnSolver(DPMSolver):
    def __init__(self, num_steps: int = 5, polish: bool = False) -> None:
        super().__init__(num_steps)
        self.polish = polish


class OwnObjective(CEP):
    def __init__(self, inverse_temperature: float = 2.0, twist: float = 0.0) -> None:
        super().__init__(inverse_temperature)
        self.twist = twist


class OwnData(OfflineDataModule):
    def __init__(self, rows: int = 4, seed: int = 0) -> None:
        super().__init__("own", seed=seed)
        self.number = rows


class OwnCallback(Callback):
    def __init__(self, note: str = "") -> None:
        self.note = note
"""


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[str]:
    """The name of a module with one class of each kind."""
    (tmp_path / "config_test_parts.py").write_text(PARTS)
    yield "config_test_parts"
    sys.modules.pop("config_test_parts", None)


def test_own_classes_beside_the_configuration(load: Load, parts: str) -> None:
    text = f"""
data: {{class_path: {parts}.OwnData, init_args: {{rows: 7}}}}  # has no dataset
schedule: {{class_path: {parts}.OwnSchedule, bend: 2}}
behavior: {{net: {{class_path: {parts}.OwnNet, init_args: {{size: 6}}}}}}
critic: {{class_path: {parts}.OwnCritic, init_args: {{caution: 0.25, discount: 0.9}}}}
guidance: {{objective: {{class_path: {parts}.OwnObjective, init_args: {{twist: 3}}}}}}
solver: {{class_path: {parts}.OwnSolver, polish: true}}
callbacks: [{{class_path: {parts}.OwnCallback, init_args: {{note: hello}}}}]
"""
    config = load(text, overrides=["critic.caution=0.75"])
    data = config.components["data"](seed=4)
    schedule, solver = config.components["schedule"](), config.components["solver"]()
    critic, behavior = config.components["critic"](*SIZES), config.components["behavior"](*SIZES)
    objective = config.components["guidance"].arguments["objective"]
    assert [type(part).__name__ for part in (data, schedule, solver, critic, behavior.net, objective)] == [
        "OwnData",
        "OwnSchedule",
        "OwnSolver",
        "OwnCritic",
        "OwnNet",
        "OwnObjective",
    ]
    assert (data.number, data.seed, schedule.bend, solver.polish, solver.num_steps) == (7, 4, 2.0, True, 5)
    assert (critic.caution, critic.discount, objective.twist) == (0.75, 0.9, 3.0)  # type: ignore[attr-defined]
    assert [p.shape[0] for p in behavior.net.parameters() if p.ndim == 2] == [6, 2]
    (callback,) = config.callbacks
    assert (type(callback).__name__, callback.note) == ("OwnCallback", "hello")  # type: ignore[attr-defined]
    again = load(config.to_yaml())
    assert again.values == config.values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("critic: {class_path: PARTS.OwnCritc}", r"'PARTS' has no class 'OwnCritc'.*OwnCritic"),
        ("critic: {class_path: PARTS.OwnSolver}", r"critic: PARTS.OwnSolver is not a subclass of SoftmaxQCritic"),
        ("critic: {class_path: PARTS.OwnCritic, cautoin: 1}", r"'critic.cautoin'.*caution"),
        ("behavior: {net: {class_path: PARTS.OwnNet, sise: 1}}", r"'behavior.net.sise'.*size"),
        ("callbacks: [{class_path: PARTS.OwnCallback, init_args: {nte: x}}]", r"callbacks.*nte"),
        ("critic: {class_path: nowhere_to_be_found.OwnCritic}", r"critic: there is no module 'nowhere_to_be_found'"),
        ("critic: {class_path: OwnCritic}", r"'OwnCritic' is not a class path; expected package.module.OwnCritic"),
        ("behavior: {net: {class_path: PARTS.OwnNett}}", r"behavior.net: 'PARTS' has no class 'OwnNett'.*OwnNet"),
        ("behavior: {net: {class_path: PARTS.OwnSolver}}", r"behavior.net: PARTS.OwnSolver is not a"),
        ("guidance: {objective: {class_path: PARTS.OwnNet}}", r"guidance.objective: PARTS.OwnNet is not a"),
        ("callbacks: [{class_path: PARTS.OwnNet}]", r"callbacks.*PARTS.OwnNet"),
        ("callbacks: [{class_path: PARTS.OwnCallbck}]", r"callbacks.*PARTS.*OwnCallbck"),
    ],
)
def test_own_classes_that_cannot_be_used(fault: Fault, parts: str, text: str, message: str) -> None:
    assert re.search(message.replace("PARTS", parts), fault(text.replace("PARTS", parts)))


def test_an_own_file_with_a_mistake_is_named(fault: Fault, tmp_path: Path) -> None:
    (tmp_path / "config_test_broken.py").write_text("class Own(\n")
    assert re.search("critic.*config_test_broken", fault("critic: {class_path: config_test_broken.Own}"))


def test_sections_are_built_from_their_classes(load: Load) -> None:
    config = load("schedule: {class_path: cepdiff.diffusion.schedule.CosineVP}")
    assert isinstance(config.components["schedule"](), CosineVP)
    assert isinstance(config.components["solver"](), DPMSolver)
    data = config.components["data"](seed=9)
    assert isinstance(data, OfflineDataModule)
    assert (data.dataset, data.seed) == ("some-buffer", 9)
    schedule = LinearVP()
    assert config.components["behavior"](*SIZES, schedule=schedule).schedule is schedule  # type: ignore[attr-defined]
    net = config.components["behavior"](*SIZES).net
    assert net(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 3)).shape == (1, 2)


# Siblings of a default by bare name


@pytest.mark.parametrize("name", ["MSE", "ExponentialMSE", "DPS", "CEP"])
def test_ways_to_name_a_sibling_of_the_default(load: Load, name: str) -> None:
    """Bare or full name, with or without options, in a file or as an override: the same configuration."""
    path = f"cepdiff.energy.objectives.{name}"
    expected = load(f"guidance: {{objective: {{class_path: {path}, init_args: {{inverse_temperature: 2}}}}}}").values
    objective = "{class_path: NAME, inverse_temperature: 2}"
    for text, overrides in (
        (f"guidance: {{objective: {objective.replace('NAME', name)}}}", []),
        (f"guidance: {{objective: {objective.replace('NAME', path)}}}", []),
        ("", [f"guidance.objective.class_path={name}", "guidance.objective.inverse_temperature=2"]),
        ("", [f"guidance.objective={name}", "guidance.objective.inverse_temperature=2"]),
        (f"guidance: {{objective: {name}}}", ["guidance.objective.inverse_temperature=2"]),
        ("guidance: {objective: {inverse_temperature: 9}}", [f"guidance.objective={objective.replace('NAME', name)}"]),
    ):
        assert load(text, overrides=overrides).values == expected
    assert load(f"guidance: {{objective: {name}}}").values["guidance"]["init_args"]["objective"]["class_path"] == path


def test_a_network_by_its_bare_name(load: Load) -> None:
    config = load("behavior: {net: MLPScore}", overrides=["behavior.net.hidden=[6,5]", "guidance.net=ResidualEnergy"])
    net = config.components["behavior"](*SIZES).net
    assert isinstance(net, MLPScore)
    assert [p.shape[0] for p in net.parameters() if p.ndim == 2][-3:] == [6, 5, 2]
    assert isinstance(config.components["guidance"](*SIZES).net, ResidualEnergy)


@pytest.mark.parametrize("key", ["behavior.net=MLPScore", "behavior.net.class_path=MLPScore"])
def test_the_order_of_overrides_makes_no_difference(load: Load, key: str) -> None:
    """A class and its options as separate overrides, in either order; also with neither."""
    overrides = [key, "behavior.net.hidden=[6,5]", "guidance.objective.inverse_temperature=2", "guidance.objective=MSE"]
    first, second = (load(overrides=order) for order in (overrides, overrides[::-1]))
    assert first.values == second.values
    assert first.values["behavior"]["init_args"]["net"]["init_args"]["hidden"] == [6, 5]
    assert first.components["guidance"].arguments["objective"].inverse_temperature == 2.0
    assert load().values == load(overrides=[]).values


def test_the_same_class_by_its_bare_name_keeps_its_arguments(load: Load) -> None:
    text = "guidance: {objective: {class_path: cepdiff.energy.objectives.CEP, inverse_temperature: 9}}"
    for name, kept in (("CEP", 9.0), ("cepdiff.energy.objectives.CEP", 9.0), ("MSE", 3.0)):
        config = load(text, overrides=[f"guidance.objective.class_path={name}"])
        assert config.components["guidance"].arguments["objective"].inverse_temperature == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance: {objective: MSEE}", r"guidance.objective: 'cepdiff.energy.objectives' has no class 'MSEE'.*MSE"),
        ("guidance: {objective: {class_path: CPE}}", r"guidance.objective: .* has no class 'CPE'.*CEP"),
        ("guidance: {objective: EnergyObjective}", r"EnergyObjective cannot be built.*does not define loss, targets"),
        ("schedule: {class_path: cepdiff.diffusion.schedule.NoiseSchedule}", r"schedule: .*does not define inverse_la"),
        ("behavior: {net: ResidualNet}", r"behavior.net: 'cepdiff.networks.score' has no class 'ResidualNet'"),
    ],
)
def test_siblings_that_cannot_be_used(fault: Fault, text: str, message: str) -> None:
    assert re.search(message, fault(text))


# Data with energies: a different layout of sections

DENSITY = "data: {class_path: cepdiff.data.densities.datamodule.EnergyDataModule, dataset: moons}\n"


def test_points_with_energies_have_their_own_sections(load: Load) -> None:
    config = load(DENSITY)
    assert list(config.components) == ["data", "schedule", "behavior", "guidance", "solver", "sampler"]
    assert list(vars(config.settings["stages"])) == ["behavior", "guidance"]
    assert set(config.values["evaluation"]) == {
        "num_samples",
        "scales",
        "inverse_temperatures",
        "floor_repeats",
        "seed",
    }
    data, module = config.components["data"](seed=3), config.components["guidance"](0, 2)
    assert isinstance(data, EnergyDataModule)
    assert (data.dataset, data.seed) == ("moons", 3)
    assert isinstance(module, BatchEnergyGuidance)
    assert isinstance(module.net, ResidualEnergy)
    assert config.components["behavior"](0, 2).batch_fields == ("samples",)
    again = load(config.to_yaml())
    assert again.values == config.values


def test_a_subclass_of_the_data_has_the_same_sections(load: Load, tmp_path: Path) -> None:
    (tmp_path / "config_test_density.py").write_text(
        "from cepdiff.data.densities.datamodule import EnergyDataModule\n\n\nclass Own(EnergyDataModule):\n    pass\n"
    )
    own = DENSITY.replace("cepdiff.data.densities.datamodule.EnergyDataModule", "config_test_density.Own")
    try:
        assert load(own).components["guidance"].cls is BatchEnergyGuidance
    finally:
        sys.modules.pop("config_test_density", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("critic: {discount: 0.9}", r"unknown key 'critic'"),
        ("stages: {support: {max_rows: 3}}", r"unknown key 'stages.support'"),
        ("evaluation: {episodes: 3}", r"unknown key 'evaluation.episodes'"),
        ("guidance: {times_per_step: 0}", r"guidance.times_per_step is 0; expected at least 1"),
        ("guidance: {time_exponent: 0}", r"guidance.time_exponent is 0.0; expected a number above 0"),
        ("guidance: {batch_size: 1}", r"guidance.batch_size is 1"),
        ("evaluation: {num_samples: 1}", r"evaluation.num_samples is 1; expected at least 2"),
        ("evaluation: {floor_repeats: 1}", r"evaluation.floor_repeats is 1; expected at least 2"),
        ("evaluation: {scales: [-1]}", r"evaluation.scales is \[-1.0\]"),
        ("stages: {guidance: {max_steps: 0}}", r"stages.guidance.max_steps is 0; expected at least 1"),
        ("trainer: {devices: 0}", r"trainer.devices is 0; expected at least 1"),
    ],
)
def test_mistakes_of_a_density(fault: Fault, text: str, message: str) -> None:
    assert re.search(message, fault(DENSITY + text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance: {times_per_step: 3}", r"unknown key 'guidance.times_per_step'"),
        ("evaluation: {num_samples: 30}", r"unknown key 'evaluation.num_samples'"),
        ("behavior: {average_targets: true}", r"behavior.average_targets needs an unconditional model"),
        ("guidance: {time_exponent: -1}", r"guidance.time_exponent is -1.0; expected a number above 0"),
    ],
)
def test_keys_of_a_density_in_offline_rl(fault: Fault, text: str, message: str) -> None:
    assert re.search(message, fault(text))
