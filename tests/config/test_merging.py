"""One configuration from files and overrides: equality, precedence and printing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from cepdiff.diffusion.schedule import LinearVP
from cepdiff.energy.objectives import CEP, MSE
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.score import MLPScore, ResidualUNet
from cepdiff.runs.config import Config, load_config

SIZES = (3, 2)

Load = Callable[..., Config]


# Equality


@pytest.mark.parametrize(
    ("key", "cls", "options"),
    [
        ("critic", "cepdiff.modules.critic.SoftmaxQCritic", "{discount: 0.9, tau: 0.1, net: {hidden: [8, 8]}}"),
        ("behavior", "cepdiff.modules.behavior.BehaviorDiffusion", "{weighting: min_snr, learning_rate: 1e-3}"),
        ("guidance", "cepdiff.modules.guidance.EnergyGuidance", "{objective: {inverse_temperature: 2}, batch_size: 7}"),
        ("solver", "cepdiff.diffusion.solver.DPMSolver", "{num_steps: 7, method: singlestep}"),
        ("schedule", "cepdiff.diffusion.schedule.CosineVP", "{t_max: 0.9, t_min: 0.01}"),
        ("data", "cepdiff.data.rl.datamodule.OfflineDataModule", "{dataset: x, block_size: 9, action_low: [-1, -2]}"),
    ],
)
def test_three_ways_to_write_a_component(load: Load, key: str, cls: str, options: str) -> None:
    flat = load(f"{key}: {{class_path: {cls}, {options[1:]}")
    nested = load(f"{key}: {{class_path: {cls}, init_args: {options}}}")
    assert nested.values == flat.values
    if key != "schedule":  # its class here is not the default
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
    module = load(text).components["behavior"](*SIZES)
    assert isinstance(module.net, MLPScore)
    assert [p.shape[0] for p in module.net.parameters() if p.ndim == 2] == [8, 4, 2]


def test_defaults_are_the_recipe(load: Load) -> None:
    config = load()
    behavior, critic, guidance = (config.components[key](*SIZES) for key in ("behavior", "critic", "guidance"))
    assert isinstance(behavior.net, ResidualUNet)
    assert (behavior.batch_size, behavior.learning_rate) == (4096, 1e-4)
    assert isinstance(critic, SoftmaxQCritic)
    assert (critic.discount, critic.tau, critic.bellman_inverse_temperature) == (0.99, 0.005, 1.0)
    assert isinstance(guidance.net, EnergyMLP)
    assert isinstance(guidance.objective, CEP)  # type: ignore[attr-defined]
    assert guidance.objective.inverse_temperature == 3.0  # type: ignore[attr-defined]
    stages = config.settings["stages"]
    assert (stages.behavior.max_steps, stages.critic.max_steps) == (600_000, 500_000)
    assert config.components["solver"]().num_steps == 15


def test_values_have_their_types(load: Load) -> None:
    """YAML 1.1 reads 3e-4 as text and 1_000 as a number; an integer is accepted as a float."""
    config = load(
        "behavior: {learning_rate: 3e-4, max_grad_norm: 1}\nstages: {critic: {max_steps: 1_000}}\n"
        "evaluation: {scales: [0, 1.5]}\nguidance: {objective: {inverse_temperature: 2}}",
        overrides=["critic.learning_rate=2e-3"],
    )
    assert config.components["behavior"](*SIZES).learning_rate == 3e-4
    assert config.components["critic"](*SIZES).learning_rate == 2e-3
    assert config.settings["stages"].critic.max_steps == 1000
    assert config.settings["evaluation"].scales == [0.0, 1.5]
    assert config.components["guidance"](*SIZES).objective.inverse_temperature == 2.0  # type: ignore[attr-defined]


def test_null_is_the_default(load: Load) -> None:
    empty = "critic:\nstages:\nschedule: null\ncallbacks: null\nseed: null\nguidance: {objective: null}\n"
    assert load(empty).values == load().values


# Precedence


def test_later_files_and_overrides_win(load: Load) -> None:
    config = load(
        "seed: 1\ncritic: {discount: 0.9, tau: 0.1}\nevaluation: {episodes: 3, scales: [1, 2, 3]}",
        "seed: 2\ncritic: {discount: 0.8}\nevaluation: {scales: [4]}",
        overrides=["critic.discount=0.7", "evaluation.episodes=5"],
    )
    critic = config.components["critic"](*SIZES)
    assert (config.seed, critic.discount, critic.tau) == (2, 0.7, 0.1)  # type: ignore[attr-defined]
    assert (config.settings["evaluation"].episodes, config.settings["evaluation"].scales) == (5, [4.0])


LAYERS = {
    "flat": "critic: {discount: DISCOUNT}",
    "init_args": "critic: {init_args: {discount: DISCOUNT}}",
    "class_path": "critic: {class_path: cepdiff.modules.critic.SoftmaxQCritic, init_args: {discount: DISCOUNT}}",
}


@pytest.mark.parametrize("second", LAYERS)
@pytest.mark.parametrize("first", LAYERS)
def test_the_later_file_wins_however_it_is_written(load: Load, first: str, second: str) -> None:
    config = load(LAYERS[first].replace("DISCOUNT", "0.9"), LAYERS[second].replace("DISCOUNT", "0.8"))
    assert config.components["critic"](*SIZES).discount == 0.8  # type: ignore[attr-defined]


@pytest.mark.parametrize("override", ["critic.discount=0.7", "critic.init_args.discount=0.7"])
@pytest.mark.parametrize("first", LAYERS)
def test_an_override_wins_however_it_is_written(load: Load, first: str, override: str) -> None:
    config = load(LAYERS[first].replace("DISCOUNT", "0.9"), overrides=[override])
    assert config.components["critic"](*SIZES).discount == 0.7  # type: ignore[attr-defined]


def test_overrides_reach_into_nested_classes(load: Load) -> None:
    config = load(
        "behavior: {net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8], time_features: 16}}}",
        overrides=["behavior.net.hidden=[6,5]", "guidance.objective.inverse_temperature=7"],
    )
    module = config.components["behavior"](*SIZES)
    assert [p.shape[0] for p in module.net.parameters() if p.ndim == 2] == [6, 5, 2]
    assert config.values["behavior"]["init_args"]["net"]["init_args"]["time_features"] == 16
    assert config.components["guidance"].arguments["objective"].inverse_temperature == 7.0


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
    schedule = config.components["schedule"]()
    assert isinstance(schedule, LinearVP)
    assert schedule.beta_max == 11.0
    assert isinstance(config.components["behavior"](*SIZES).net, MLPScore)
    assert isinstance(config.components["guidance"].arguments["objective"], MSE)


def test_interpolation_follows_overrides_and_files(load: Load) -> None:
    text = (
        "seed: 3\nevaluation: {seed: '${seed}', episodes: 4}\n"
        "stages: {behavior: {max_steps: 100, checkpoint_every: '${stages.behavior.max_steps}'}}\n"
        "run_dir: runs/${data.dataset}/${seed}\n"
    )
    config = load(text)
    assert (config.settings["evaluation"].seed, config.run_dir) == (3, "runs/some-buffer/3")
    config = load(text, "stages: {behavior: {max_steps: 50}}", overrides=["seed=8"])
    assert (config.seed, config.settings["evaluation"].seed, config.run_dir) == (8, 8, "runs/some-buffer/8")
    assert config.settings["stages"].behavior.checkpoint_every == 50


def test_no_file_is_needed() -> None:
    config = load_config([], ["data.dataset=x", "critic.tau=0.5"])
    assert config.components["critic"].arguments["tau"] == 0.5
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
    assert [part.cls for part in again.components.values()] == [part.cls for part in config.components.values()]
    assert [type(callback) for callback in again.callbacks] == [type(callback) for callback in config.callbacks]
    changed = load(printed, overrides=["critic.discount=0.5"])
    assert changed.components["critic"].arguments["discount"] == 0.5


def test_what_the_data_supply_is_not_printed_before_they_are_loaded(load: Load) -> None:
    text = "data: {class_path: cepdiff.ImageDataModule, energy: labels}\nguidance: {net: {channels: 1}}\n"
    printed = yaml.safe_load(load(text).to_yaml(loaded=False))
    nets = {key: printed[key]["init_args"]["net"]["init_args"] for key in ("behavior", "guidance")}
    assert {"channels", "schedule"}.isdisjoint(nets["behavior"])
    assert nets["guidance"].keys() & {"channels", "schedule", "num_heads"} == {"channels"}  # given by the user


def test_values_are_complete_and_plain(load: Load) -> None:
    values = load().values
    assert values["critic"]["init_args"]["net"]["init_args"]["hidden"] == [256, 256, 256]
    length = {"max_steps": 1_000_000, "checkpoint_every": 5000, "checkpoint_minutes": 5.0}
    assert values["stages"]["guidance"] == length
    assert yaml.safe_load(yaml.safe_dump(values)) == values
    for supplied in ("observation_size", "action_size", "schedule"):  # arguments supplied by the runner are not options
        assert supplied not in values["behavior"]["init_args"]


def test_configurations_do_not_share_state(load: Load) -> None:
    first = load("guidance: {objective: {inverse_temperature: 9}}")
    second = load()
    assert first.components["guidance"].arguments["objective"].inverse_temperature == 9.0
    assert second.components["guidance"].arguments["objective"].inverse_temperature == 3.0
    one, two = (second.components["behavior"](*SIZES) for _ in range(2))
    assert one.net is not two.net
