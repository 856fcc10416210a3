"""Error messages for invalid configurations."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cepdiff.errors import ConfigError
from cepdiff.runs.config import Config, load_config

Load = Callable[..., Config]
Fault = Callable[..., str]


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
def test_unknown_keys_come_with_the_nearest(fault: Fault, text: str, message: str) -> None:
    assert re.search(message, fault(text))


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
def test_wrong_types_are_named_with_what_was_expected(fault: Fault, text: str, message: str) -> None:
    assert re.search(message, fault(text))


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
        ("trainer.matmul_precision=low", "^trainer.matmul_precision: expected one of highest, high, medium, found low"),
        ("data.block_size=0", "data.block_size is 0; expected at least 1"),
        ("critic.discount=1.5", r"critic.discount is 1.5; expected a number in \[0, 1\)"),
        ("critic.tau=0", "critic.tau is 0.0"),
        ("behavior.learning_rate=0", "behavior.learning_rate is 0.0"),
        ("behavior.weighting=unifrom", "unifrom.*Did you mean uniform"),
        ("guidance.objective.inverse_temperature=-1", "inverse_temperature is -1.0; expected .* above 0"),
        ("schedule.t_min=2", "t_min is 2.0"),
        ("solver.order=4", "^solver.order: expected one of 1, 2, 3, found 4$"),
        ("solver.num_steps=0", "num_steps is 0"),
        ("critic.net.activation=tanh", "tanh.*silu"),
        ("critic.net.hidden=[]", r"^critic.net.hidden is \[\]; expected one or more numbers"),
        ("critic.net.num_critics=0", "num_critics is 0"),
        ("behavior.net.widths=[8,4]", "widths is .*three"),
    ],
)
def test_values_out_of_range_are_named(fault: Fault, override: str, message: str) -> None:
    assert re.search(message, fault(overrides=[override]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {dataset: x", r"config0\.yaml is not valid YAML.*line 1"),
        ("data:\n\tdataset: x", r"config0\.yaml is not valid YAML.*line 2"),
        ("data: {dataset: x}\nseed: 1\nseed: 2", r"config0\.yaml is not valid YAML.*duplicate key seed"),
        ("\x00", r"config0\.yaml is not valid YAML"),
        ("- a\n- b", r"config0\.yaml.*mapping"),
        ("hello", "hello"),
        ("", "data.dataset is missing.*--data.dataset"),
        ("seed: 1", "data.dataset is missing.*--data.dataset"),
        ("data: {dataset: x}\nseed: ${nope}", "seed.*nope|nope.*seed"),
        ("data: {dataset: x}\nseed: ${run_dir}\nrun_dir: ${seed}", "seed"),
        ("data: {dataset: x}\nseed: '${'", "seed"),
    ],
)
def test_files_that_are_no_configuration(fault: Fault, text: str, message: str) -> None:
    assert re.search(message, fault(text, bare=True))


def test_a_file_that_is_missing_a_folder_or_no_text(load: Load, tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run_dir: \xff\xfe")
    for name, message in (
        ("nowhere.yaml", "no configuration file"),
        (".", "no configuration file"),
        ("latin.yaml", "not valid YAML"),
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
def test_overrides_that_cannot_be_read(fault: Fault, override: str, message: str) -> None:
    assert re.search(message, fault(overrides=[override]))
