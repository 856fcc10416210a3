"""One configuration from files and overrides: what is equal, what wins, and what a user reads when it is wrong."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cepdiff.data.datamodule import OfflineDataModule
from cepdiff.diffusion.schedule import CosineVP, LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import CEP, MSE
from cepdiff.errors import CepdiffError, ConfigError
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.score import MLPScore, ResidualUNet
from cepdiff.stages.config import Config, load_config

BASE = "data: {dataset: some-buffer}\n"
SIZES = (3, 2)

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load(text, ..., overrides=[...])`: each text is a file, the first with a dataset unless it names one."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # load_config adds the files' folders

    def load(*texts: str, overrides: list[str] | None = None, bare: bool = False) -> Config:
        files = []
        for i, text in enumerate(texts or ("",)):
            path = tmp_path / f"config{i}.yaml"
            path.write_text(text if bare or i or re.search("^data:", text, re.MULTILINE) else BASE + text)
            files.append(path)
        return load_config(files, overrides or [])

    return load


def fault(load: Load, *texts: str, **options: Any) -> str:
    """What the user reads: one short line in words, with nothing of the libraries beneath."""
    with pytest.raises(CepdiffError) as caught:
        construct(load(*texts, **options))
    message = str(caught.value)
    assert "\n" not in message
    assert len(re.sub(r"/\S*/", "", message)) < 250  # folders aside
    leaks = ("Namespace", "<class", "typing", "Union", "Parser key", "collections.abc", "jsonargparse", "NoneType")
    assert [leak for leak in (*leaks, "init_args", "object_type", "subtypes") if leak in message] == []
    return message


def construct(config: Config) -> None:
    """Builds everything that a run would."""
    for key in ("schedule", "solver"):
        config.build(key)
    config.build("data", seed=config.seed)
    for key in ("behavior", "critic", "guidance"):
        config.module(key, SIZES)


# What is equal


@pytest.mark.parametrize(
    ("key", "cls", "options"),
    [
        ("critic", "cepdiff.modules.critic.SoftmaxQCritic", "{discount: 0.9, tau: 0.1, net: {hidden: [8, 8]}}"),
        ("behavior", "cepdiff.modules.behavior.BehaviorDiffusion", "{weighting: min_snr, learning_rate: 1e-3}"),
        ("guidance", "cepdiff.modules.guidance.EnergyGuidance", "{objective: {inverse_temperature: 2}, batch_size: 7}"),
        ("solver", "cepdiff.diffusion.solver.DPMSolver", "{num_steps: 7, method: singlestep}"),
        ("schedule", "cepdiff.diffusion.schedule.CosineVP", "{t_max: 0.9, t_min: 0.01}"),
        ("data", "cepdiff.data.datamodule.OfflineDataModule", "{dataset: x, block_size: 9, action_low: [-1, -2]}"),
    ],
)
def test_three_ways_to_write_a_component(load: Load, key: str, cls: str, options: str) -> None:
    flat = load(f"{key}: {{class_path: {cls}, {options[1:]}")
    nested = load(f"{key}: {{class_path: {cls}, init_args: {options}}}")
    assert nested.values == flat.values
    if key != "schedule":  # whose class here is not the default
        assert load(f"{key}: {options}").values == flat.values
    assert load(overrides=overrides_of(key, cls, options)).values == flat.values
    assert flat.values[key]["class_path"] == cls
    assert flat.values != load().values


def overrides_of(key: str, cls: str, options: str) -> list[str]:
    values = yaml.safe_load(options)
    return [
        f"{key}.class_path={cls}",
        *(
            f"{key}.{name}={yaml.safe_dump(v, default_flow_style=True).strip()}".removesuffix("\n...")
            for name, v in values.items()
        ),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "behavior: {net: {class_path: cepdiff.networks.score.MLPScore, hidden: [8, 4]}}",
        "behavior: {net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8, 4]}}}",
        "behavior: {init_args: {net: {class_path: cepdiff.networks.score.MLPScore, hidden: [8, 4]}}}",
    ],
)
def test_ways_to_write_a_network(load: Load, text: str) -> None:
    module = load(text).module("behavior", SIZES)
    assert isinstance(module.net, MLPScore)
    assert [p.shape[0] for p in module.net.parameters() if p.ndim == 2] == [8, 4, 2]


def test_defaults_are_the_recipe(load: Load) -> None:
    config = load()
    behavior, critic, guidance = (config.module(key, SIZES) for key in ("behavior", "critic", "guidance"))
    assert isinstance(behavior.net, ResidualUNet)
    assert (behavior.batch_size, behavior.learning_rate) == (4096, 1e-4)
    assert isinstance(critic, SoftmaxQCritic)
    assert (critic.discount, critic.tau, critic.bellman_inverse_temperature) == (0.99, 0.005, 1.0)
    assert isinstance(guidance.net, EnergyMLP)
    assert isinstance(guidance.objective, CEP)  # type: ignore[attr-defined]
    assert guidance.objective.inverse_temperature == 3.0  # type: ignore[attr-defined]
    assert (config.stages.behavior.max_steps, config.stages.critic.max_steps) == (600_000, 500_000)
    assert config.build("solver").num_steps == 15


def test_values_have_their_types(load: Load) -> None:
    """YAML 1.1 reads 3e-4 as text and 1_000 as a number; a whole number serves as a float."""
    config = load(
        "behavior: {learning_rate: 3e-4, max_grad_norm: 1}\nstages: {critic: {max_steps: 1_000}}\n"
        "evaluation: {scales: [0, 1.5]}\nguidance: {objective: {inverse_temperature: 2}}",
        overrides=["critic.learning_rate=2e-3"],
    )
    assert config.module("behavior", SIZES).learning_rate == 3e-4
    assert config.module("critic", SIZES).learning_rate == 2e-3
    assert config.stages.critic.max_steps == 1000
    assert config.evaluation.scales == [0.0, 1.5]
    assert config.module("guidance", SIZES).objective.inverse_temperature == 2.0  # type: ignore[attr-defined]


def test_null_is_the_default(load: Load) -> None:
    empty = "critic:\nstages:\nschedule: null\ncallbacks: null\nseed: null\nguidance: {objective: null}\n"
    assert load(empty).values == load().values


# What wins


def test_later_files_and_overrides_win(load: Load) -> None:
    config = load(
        "seed: 1\ncritic: {discount: 0.9, tau: 0.1}\nevaluation: {episodes: 3, scales: [1, 2, 3]}",
        "seed: 2\ncritic: {discount: 0.8}\nevaluation: {scales: [4]}",
        overrides=["critic.discount=0.7", "evaluation.episodes=5"],
    )
    critic = config.module("critic", SIZES)
    assert (config.seed, critic.discount, critic.tau) == (2, 0.7, 0.1)  # type: ignore[attr-defined]
    assert (config.evaluation.episodes, config.evaluation.scales) == (5, [4.0])


LAYERS = {
    "flat": "critic: {discount: DISCOUNT}",
    "init_args": "critic: {init_args: {discount: DISCOUNT}}",
    "class_path": "critic: {class_path: cepdiff.modules.critic.SoftmaxQCritic, init_args: {discount: DISCOUNT}}",
}


@pytest.mark.parametrize("second", LAYERS)
@pytest.mark.parametrize("first", LAYERS)
def test_the_later_file_wins_however_it_is_written(load: Load, first: str, second: str) -> None:
    config = load(LAYERS[first].replace("DISCOUNT", "0.9"), LAYERS[second].replace("DISCOUNT", "0.8"))
    assert config.module("critic", SIZES).discount == 0.8  # type: ignore[attr-defined]


@pytest.mark.parametrize("override", ["critic.discount=0.7", "critic.init_args.discount=0.7"])
@pytest.mark.parametrize("first", LAYERS)
def test_an_override_wins_however_it_is_written(load: Load, first: str, override: str) -> None:
    config = load(LAYERS[first].replace("DISCOUNT", "0.9"), overrides=[override])
    assert config.module("critic", SIZES).discount == 0.7  # type: ignore[attr-defined]


def test_overrides_reach_into_nested_classes(load: Load) -> None:
    config = load(
        "behavior: {net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8], time_features: 16}}}",
        overrides=["behavior.net.hidden=[6,5]", "guidance.objective.inverse_temperature=7"],
    )
    module = config.module("behavior", SIZES)
    assert [p.shape[0] for p in module.net.parameters() if p.ndim == 2] == [6, 5, 2]
    assert config.values["behavior"]["init_args"]["net"]["init_args"]["time_features"] == 16
    assert config.arguments["guidance"]["objective"].inverse_temperature == 7.0


def test_another_class_forgets_the_arguments_of_the_first(load: Load) -> None:
    config = load(
        "schedule: {class_path: cepdiff.diffusion.schedule.CosineVP, init_args: {t_max: 0.9}}\n"
        "behavior: {net: {class_path: cepdiff.networks.score.ResidualUNet, init_args: {widths: [8, 4, 2]}}}",
        overrides=[
            "schedule.class_path=cepdiff.diffusion.schedule.LinearVP",
            "schedule.beta_max=11",
            "behavior.net.class_path=cepdiff.networks.score.MLPScore",
            "guidance.objective.class_path=cepdiff.energy.objectives.MSE",
        ],
    )
    schedule = config.build("schedule")
    assert isinstance(schedule, LinearVP)
    assert schedule.beta_max == 11.0
    assert isinstance(config.module("behavior", SIZES).net, MLPScore)
    assert isinstance(config.arguments["guidance"]["objective"], MSE)


def test_interpolation_follows_overrides_and_files(load: Load) -> None:
    text = (
        "seed: 3\nevaluation: {seed: '${seed}', episodes: 4}\n"
        "stages: {behavior: {max_steps: 100, checkpoint_every: '${stages.behavior.max_steps}'}}\n"
        "run_dir: runs/${data.dataset}/${seed}\n"
    )
    config = load(text)
    assert (config.evaluation.seed, config.run_dir) == (3, "runs/some-buffer/3")
    config = load(text, "stages: {behavior: {max_steps: 50}}", overrides=["seed=8"])
    assert (config.seed, config.evaluation.seed, config.run_dir) == (8, 8, "runs/some-buffer/8")
    assert config.stages.behavior.checkpoint_every == 50


def test_no_file_is_needed() -> None:
    config = load_config([], ["data.dataset=x", "critic.tau=0.5"])
    assert config.arguments["critic"]["tau"] == 0.5
    assert config.values["data"]["init_args"]["dataset"] == "x"


# --print_config


@pytest.mark.parametrize(
    "text",
    [
        "",
        "behavior: {net: {class_path: cepdiff.networks.score.MLPScore, hidden: [8]}, ema_decay: 0.9}\n"
        "schedule: {class_path: cepdiff.diffusion.schedule.CosineVP}\nevaluation: {scales: [0, 1]}\n"
        "guidance: {objective: {class_path: cepdiff.energy.objectives.ExponentialMSE, inverse_temperature: 2}}\n"
        "callbacks: [{class_path: lightning.pytorch.callbacks.Timer, init_args: {interval: epoch}}]\n"
        "data: {dataset: a b, action_low: [-1, -2], env_kwargs: {x: {y: [1, null]}}}\nrun_dir: é/x\n",
    ],
    ids=["defaults", "everything"],
)
def test_the_printed_configuration_is_the_same(load: Load, text: str) -> None:
    config = load(text)
    printed = config.to_yaml()
    again = load(printed)
    assert again.values == config.values
    assert again.to_yaml() == printed
    assert again.classes == config.classes
    assert [type(callback) for callback in again.callbacks] == [type(callback) for callback in config.callbacks]
    changed = load(printed, overrides=["critic.discount=0.5"])
    assert changed.arguments["critic"]["discount"] == 0.5


def test_values_are_complete_and_plain(load: Load) -> None:
    values = load().values
    assert values["critic"]["init_args"]["net"]["init_args"]["hidden"] == [256, 256, 256]
    assert values["stages"]["guidance"] == {"max_steps": 1_000_000, "checkpoint_every": 5000}
    assert yaml.safe_load(yaml.safe_dump(values)) == values
    for supplied in ("observation_size", "action_size", "schedule"):  # what the runner gives is no option
        assert supplied not in values["behavior"]["init_args"]


def test_configurations_do_not_share_state(load: Load) -> None:
    first = load("guidance: {objective: {inverse_temperature: 9}}")
    second = load()
    assert first.arguments["guidance"]["objective"].inverse_temperature == 9.0
    assert second.arguments["guidance"]["objective"].inverse_temperature == 3.0
    one, two = (second.module("behavior", SIZES) for _ in range(2))
    assert one.net is not two.net


# A user's own classes, in a file beside the configuration

PARTS = """
from lightning.pytorch import Callback
from cepdiff.data.datamodule import OfflineDataModule
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
    """The name of a module with a class of each kind."""
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
    data, schedule, solver = config.build("data", seed=4), config.build("schedule"), config.build("solver")
    critic, behavior = config.module("critic", SIZES), config.module("behavior", SIZES)
    objective = config.arguments["guidance"]["objective"]
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
        ("critic: {class_path: OwnCritic}", r"'OwnCritic' is no class path; expected package.module.OwnCritic"),
        ("behavior: {net: {class_path: PARTS.OwnNett}}", r"behavior.net: 'PARTS' has no class 'OwnNett'.*OwnNet"),
        ("behavior: {net: {class_path: PARTS.OwnSolver}}", r"behavior.net: PARTS.OwnSolver is not a"),
        ("guidance: {objective: {class_path: PARTS.OwnNet}}", r"guidance.objective: PARTS.OwnNet is not a"),
        ("callbacks: [{class_path: PARTS.OwnNet}]", r"callbacks.*PARTS.OwnNet"),
        ("callbacks: [{class_path: PARTS.OwnCallbck}]", r"callbacks.*PARTS.*OwnCallbck"),
    ],
)
def test_own_classes_that_cannot_be_used(load: Load, parts: str, text: str, message: str) -> None:
    assert re.search(message.replace("PARTS", parts), fault(load, text.replace("PARTS", parts)))


def test_an_own_file_with_a_mistake_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "config_test_broken.py").write_text("class Own(\n")
    assert re.search("critic.*config_test_broken", fault(load, "critic: {class_path: config_test_broken.Own}"))


# What a user reads


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("critik: {}", "unknown key 'critik'.*critic"),
        ("zzz: 1", "unknown key 'zzz'.*seed, run_dir, data"),
        ("critic: {discont: 0.9}", "unknown key 'critic.discont'.*discount"),
        ("critic: {init_args: {discont: 0.9}}", "unknown key 'critic.discont'.*discount"),
        ("critic: {observation_size: 3}", "unknown key 'critic.observation_size'"),
        ("behavior: {net: {widhts: [1, 2, 3]}}", "unknown key 'behavior.net.widhts'.*widths"),
        ("guidance: {objective: {inverse_temprature: 3}}", "'guidance.objective.inverse_temprature'.*temperature"),
        ("stages: {behaviour: {max_steps: 3}}", "unknown key 'stages.behaviour'.*behavior"),
        ("stages: {behavior: {max_step: 3}}", "unknown key 'stages.behavior.max_step'.*max_steps"),
        ("stages: {support: {rows: 3}}", "unknown key 'stages.support.rows'"),
        ("evaluation: {episode: 3}", "unknown key 'evaluation.episode'.*episodes"),
        ("trainer: {device: 3}", "unknown key 'trainer.device'.*devices"),
        ("schedule: {beta_mn: 3}", "unknown key 'schedule.beta_mn'.*beta_min"),
        ("solver: {num_step: 3}", "unknown key 'solver.num_step'.*num_steps"),
        ("data: {dataset: x, block: 3}", "unknown key 'data.block'.*block_size"),
        ("1: 2", "unknown key '1'"),
    ],
)
def test_unknown_keys_come_with_the_nearest(load: Load, text: str, message: str) -> None:
    assert re.search(message, fault(load, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("critic: {discount: high}", r"^critic.discount.*float.*high"),
        ("stages: {behavior: {max_steps: many}}", r"^stages.behavior.max_steps.*int.*many"),
        ("stages: {behavior: {max_steps: 1.5}}", r"^stages.behavior.max_steps.*int.*1.5"),
        ("seed: abc", r"^seed.*int.*abc"),
        ("seed: {x: 1}", r"^seed.*int"),
        ("run_dir: [1]", r"^run_dir.*str"),
        ("solver: {method: euler}", r"^solver.method.*multistep.*singlestep.*euler"),
        ("solver: {spacing: karras}", r"^solver.spacing.*time_uniform.*logsnr.*time_quadratic.*karras"),
        ("behavior: {lr_schedule: linear}", r"^behavior.lr_schedule.*constant.*cosine.*linear"),
        ("evaluation: {scales: [a]}", r"^evaluation.scales.*float.*a"),
        ("evaluation: {scales: 3}", r"^evaluation.scales.*list.*3"),
        ("trainer: {devices: some}", r"^trainer.devices.*int.*some"),
        ("data: {dataset: 3}", r"^data.dataset.*str.*3"),
        ("data: {dataset: x, env_kwargs: 3}", r"^data.env_kwargs.*dict.*3"),
        ("data: {dataset: x, action_low: low}", r"^data.action_low.*float.*list.*low"),
        ("critic: {net: {hidden: 256}}", r"^critic.net.hidden.*(list|sequence).*256"),
        ("critic: {net: {hidden: [a]}}", r"^critic.net.hidden.*int.*a"),
        ("critic: 3", r"^critic is 3; expected a mapping"),
        ("critic: {init_args: 3}", r"^critic.*3"),
        ("critic: {class_path: 3}", r"^critic.*3"),
        ("behavior: {net: 3}", r"^behavior.net.*class.*3|^behavior.net.*3.*class"),
        ("guidance: {objective: 3}", r"^guidance.objective.*class.*3|^guidance.objective.*3.*class"),
        ("stages: 3", r"^stages is 3; expected a mapping"),
        ("stages: {behavior: 3}", r"^stages.behavior.*3"),
        ("callbacks: 3", r"^callbacks.*list.*3"),
    ],
)
def test_wrong_types_are_named_with_what_was_expected(load: Load, text: str, message: str) -> None:
    assert re.search(message, fault(load, text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.behavior.max_steps=0", "stages.behavior.max_steps is 0; expected at least 1"),
        ("stages.critic.checkpoint_every=-1", "stages.critic.checkpoint_every is -1; expected at least 1"),
        ("stages.support.num_actions=1", "stages.support.num_actions is 1.*at least 2"),
        ("stages.support.max_rows=0", "stages.support.max_rows is 0; expected at least 1"),
        ("stages.support.chunk_size=0", "stages.support.chunk_size is 0; expected at least 1"),
        ("evaluation.scales=[]", r"evaluation.scales is \[\]; expected one or more"),
        ("evaluation.scales=[-1]", r"evaluation.scales is \[-1.0\]"),
        ("evaluation.scales=[.nan]", r"evaluation.scales is \[nan\]"),
        ("evaluation.scales=[.inf]", r"evaluation.scales is \[inf\]"),
        ("evaluation.episodes=-1", "evaluation.episodes is -1; expected 0 or more"),
        ("evaluation.every_n_steps=0", "evaluation.every_n_steps is 0; expected at least 1"),
        ("evaluation.max_envs=0", "evaluation.max_envs is 0; expected at least 1"),
        ("trainer.devices=0", "trainer.devices is 0; expected at least 1"),
        ("trainer.matmul_precision=low", "trainer.matmul_precision is 'low'; expected highest, high or medium"),
        ("data.block_size=0", "data.block_size is 0; expected at least 1"),
        ("critic.discount=1.5", r"critic.discount is 1.5; expected a number in \[0, 1\)"),
        ("critic.tau=0", "critic.tau is 0.0"),
        ("behavior.learning_rate=0", "behavior.learning_rate is 0.0"),
        ("behavior.weighting=unifrom", "unifrom.*Did you mean uniform"),
        ("guidance.objective.inverse_temperature=-1", "inverse_temperature is -1.0; expected .* above 0"),
        ("schedule.t_min=2", "t_min is 2.0"),
        ("solver.order=4", "order is 4"),
        ("solver.num_steps=0", "num_steps is 0"),
        ("critic.net.activation=tanh", "tanh.*silu"),
        ("critic.net.hidden=[]", "hidden is empty"),
        ("critic.net.num_critics=0", "num_critics is 0"),
        ("behavior.net.widths=[8,4]", "widths is .*three"),
    ],
)
def test_values_out_of_range_are_named(load: Load, override: str, message: str) -> None:
    assert re.search(message, fault(load, overrides=[override]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {dataset: x", r"config0\.yaml is no readable YAML.*line 1"),
        ("data:\n\tdataset: x", r"config0\.yaml is no readable YAML.*line 2"),
        ("data: {dataset: x}\nseed: 1\nseed: 2", r"config0\.yaml is no readable YAML.*duplicate key seed"),
        ("\x00", r"config0\.yaml is no readable YAML"),
        ("- a\n- b", r"config0\.yaml.*mapping"),
        ("hello", "hello"),
        ("", "data.dataset is missing.*--data.dataset"),
        ("seed: 1", "data.dataset is missing.*--data.dataset"),
        ("data: {dataset: x}\nseed: ${nope}", "seed.*nope|nope.*seed"),
        ("data: {dataset: x}\nseed: ${run_dir}\nrun_dir: ${seed}", "seed"),
        ("data: {dataset: x}\nseed: '${'", "seed"),
    ],
)
def test_files_that_are_no_configuration(load: Load, text: str, message: str) -> None:
    assert re.search(message, fault(load, text, bare=True))


def test_a_file_that_is_missing_a_folder_or_no_text(load: Load, tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run_dir: \xff\xfe")
    for name, message in (
        ("nowhere.yaml", "no configuration file"),
        (".", "no configuration file"),
        ("latin.yaml", "no readable YAML"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            load_config([tmp_path / name])
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.scales=[1,2", r"evaluation.scales"),
        ("=3", "unknown key ''"),
        ("evaluation.scales.0=1", r"^evaluation.scales.*list"),
        ("critic.discount=", r"^critic.discount.*float"),
        ("critic.discount=null", r"^critic.discount.*float"),
        ("solver.num_steps=null", r"^solver.num_steps.*int"),
        ("stages.critic.max_steps=null", r"^stages.critic.max_steps.*int"),
        ("trainer.devices=null", r"^trainer.devices.*int"),
    ],
)
def test_overrides_that_cannot_be_read(load: Load, override: str, message: str) -> None:
    assert re.search(message, fault(load, overrides=[override]))


def test_sections_are_built_from_their_classes(load: Load) -> None:
    config = load("schedule: {class_path: cepdiff.diffusion.schedule.CosineVP}")
    assert isinstance(config.build("schedule"), CosineVP)
    assert isinstance(config.build("solver"), DPMSolver)
    data = config.build("data", seed=9)
    assert isinstance(data, OfflineDataModule)
    assert (data.dataset, data.seed) == ("some-buffer", 9)
    schedule = LinearVP()
    assert config.module("behavior", SIZES, schedule=schedule).schedule is schedule  # type: ignore[attr-defined]
    net = config.module("behavior", SIZES).net
    assert net(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 3)).shape == (1, 2)
