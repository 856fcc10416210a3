"""Creating, checking and batching environments."""

import subprocess
import sys
import warnings
from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest

from cepdiff.data.rl.tasks import TASKS
from cepdiff.errors import MissingExtraError, SimulationError
from cepdiff.rollout.envs import EnvSpec, check_spaces, env_facts, make_env, make_vector_env, reset_seed
from cepdiff.types import DataSpec

PENDULUM = DataSpec(3, 1, (-2.0,), (2.0,))


def test_env_facts():
    assert env_facts(EnvSpec("Pendulum-v1")) == (3, (-2.0,), (2.0,), 200)


def test_v4_environment_without_deprecation_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        make_env(EnvSpec("InvertedPendulum-v4")).close()


def test_kwargs_reach_the_environment():
    env = make_env(EnvSpec("Pendulum-v1", {"g": 1.5}))
    assert env.unwrapped.g == 1.5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EnvSpec("Hoper-v4"), "Did you mean Hopper-v"),
        (EnvSpec("Pendulum-v1", {"gravity": 1}), "gravity"),
        (EnvSpec("Pendulum-v1", module="no_such_module_at_all"), "no_such_module_at_all"),
    ],
)
def test_impossible_environment(spec, message):
    with pytest.raises(SimulationError, match=message):
        make_env(spec)


def test_missing_classic_stack_names_the_extra(monkeypatch):
    monkeypatch.setattr("cepdiff.rollout.registry.CLASSIC_MODULES", ("no_such_module_at_all",))
    with pytest.raises(MissingExtraError, match=r"\[d4rl\]"):
        make_env(EnvSpec("Pendulum-v1", module="no_such_module_at_all"))


def test_a_module_that_breaks_on_import_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "breaks_on_import.py").write_text("raise RuntimeError('no MuJoCo 2.1\\nat home')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SimulationError, match=r"no MuJoCo 2\.1 at home"):
        make_env(EnvSpec("Pendulum-v1", module="breaks_on_import"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataSpec(4, 1, (-2.0,), (2.0,)), "3 observations and 1 actions, the buffer 4 and 1.*--data.env_id"),
        (DataSpec(3, 2, (-2.0,) * 2, (2.0,) * 2), "the buffer 3 and 2"),
        (DataSpec(3, 1, (-1.0,), (2.0,)), r"from \[-2.0\] to \[2.0\], the buffer's go from \[-1.0\]"),
    ],
)
def test_other_spaces_than_the_buffer(data, message):
    with pytest.raises(SimulationError, match=message):
        check_spaces(make_env(EnvSpec("Pendulum-v1")), data)


def test_same_spaces_as_the_buffer():
    check_spaces(make_env(EnvSpec("Pendulum-v1")), PENDULUM)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_discrete_spaces_are_refused(env_id):
    with pytest.raises(SimulationError, match="expected a flat"):
        check_spaces(make_env(EnvSpec(env_id)), PENDULUM)


def test_vector_env_never_resets_by_itself():
    envs = make_vector_env(EnvSpec("InvertedPendulum-v5"), 2)
    envs.reset(seed=[1, 2])
    push = np.full((2, 1), 3.0, np.float32)
    done = np.zeros(2, np.bool_)
    while not done.any():
        observations, _, terminated, truncated, _ = envs.step(push)
        done = terminated | truncated
    assert (np.abs(observations[done, 1]) > 0.2).all()  # the fallen pole itself, not a reset
    envs.close()


def test_mujoco_writes_no_log_file(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    env = make_env(EnvSpec("InvertedPendulum-v5"))
    env.reset(seed=0)
    env.unwrapped.data.qvel[:] = 1e12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env.step(np.zeros(1, np.float32))
    assert list(tmp_path.iterdir()) == []
    assert "MuJoCo" in caplog.text


def test_models_that_mujoco_finds_old_are_made_in_silence(tmp_path):
    code = "from cepdiff.rollout.envs import *; make_vector_env(EnvSpec('HalfCheetah-v4'), 2).close()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_reset_seed_fits_in_32_bits_and_differs():
    seeds = {reset_seed(0, "rollout", index) for index in range(1000)}
    assert len(seeds) == 1000
    assert max(seeds) < 2**32
    assert max(seeds) > 2**31  # all bits are used
    assert isinstance(gym.make("Pendulum-v1").reset(seed=max(seeds))[0], np.ndarray)


@pytest.mark.parametrize("name", {task.name.partition("-")[0]: task.name for task in TASKS.values()}.values())
def test_the_registry_knows_the_sizes(name: str) -> None:
    task = TASKS[name]
    with closing(make_env(EnvSpec(task.env_id, task.env_kwargs, task.env_module))) as env:
        sizes = env.observation_space.shape, env.action_space.shape
    assert sizes == ((task.observation_size,), (task.action_size,))
