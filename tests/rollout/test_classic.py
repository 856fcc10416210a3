"""D4RL's own environments behind Gymnasium's interface, with stand-ins for the old gym and D4RL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest

from cepdiff.data.rl.tasks import TASKS
from cepdiff.errors import ConfigError, SimulationError
from cepdiff.problems.offline.environment import EvaluationSettings, environment_of
from cepdiff.problems.offline.evaluate import environment_of_policy
from cepdiff.rollout.environment import check_reference, classic_environment
from cepdiff.rollout.envs import EnvSpec
from cepdiff.rollout.scores import Reference

# Old gym as D4RL uses it: `seed`, `reset()` without arguments, `step` with four values, wrappers by inheritance.
GYM = """
from types import SimpleNamespace
import numpy as np
from . import spaces, wrappers

class Space: ...

class Env:
    def seed(self, seed=None):  # old gym's default: of a generator that nobody uses
        return [seed]
    def close(self): ...

class Wrapper(Env):
    def __init__(self, env):
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
    def __getattr__(self, name):
        return getattr(self.env, name)
    def seed(self, seed=None):
        return self.env.seed(seed)

class TimeLimit(Wrapper):
    def __init__(self, env, steps):
        super().__init__(env)
        self.steps = steps
    def reset(self):
        self.time = 0
        return self.env.reset()
    def step(self, action):
        observation, reward, done, info = self.env.step(action)
        self.time += 1
        if self.time >= self.steps:
            info["TimeLimit.truncated"], done = not done, True
        return observation, reward, done, info

registry = {}
def make(name, **kwargs):
    if name not in registry:
        raise LookupError(f"No registered env with id: {name}")
    make, steps = registry[name]
    return TimeLimit(make(**kwargs), steps)
"""
SPACES = """
class Discrete: ...

class Box:
    def __init__(self, low, high, shape, dtype):
        self.low, self.high, self.shape, self.dtype = low, high, shape, dtype
"""
# D4RL as it is: a proxy that does not forward `seed`, starts from NumPy's global generator, scores from 0 to 1.
D4RL = """
import gym, numpy as np
from gym.spaces import Box

class Maze(gym.Env):
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)
    def __init__(self):
        self.rng = np.random.RandomState()
    def seed(self, seed=None):
        self.rng = np.random.RandomState(seed)
    def reset(self):
        self.place = np.array([np.random.uniform(), self.rng.uniform()])
        return self.place
    def step(self, action):
        self.place = self.place + float(action[0])
        return self.place, float(self.place[1]), bool(self.place[1] > 3), {}
    def render(self, mode="human"):
        return np.zeros((4, 4, 3), np.uint8) if mode == "rgb_array" else None
    def get_normalized_score(self, score):
        return (score + 20.272305) / (3234.3 + 20.272305)

class Proxy(gym.Env):
    def __init__(self, env):
        self._wrapped_env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
    def reset(self, **kwargs):
        return self._wrapped_env.reset(**kwargs)
    def step(self, action):
        return self._wrapped_env.step(action)
    def render(self, *args, **kwargs):
        return self._wrapped_env.render(*args, **kwargs)
    def __getattr__(self, name):
        return getattr(self._wrapped_env, name)

gym.registry["hopper-medium-v2"] = lambda: Proxy(Maze()), 4
"""


@pytest.fixture
def classic_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with stand-ins named gym and d4rl, on the path of child processes."""
    pytest.importorskip("shimmy")
    for name, text in {"gym/__init__": GYM, "gym/spaces": SPACES, "gym/wrappers": "", "d4rl": D4RL}.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    paths = [str(tmp_path), *sys.path]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    return tmp_path


def run(code: str, folder: Path) -> list[str]:
    """Output of a fresh process, so that other tests do not see the stand-ins."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_old_steps_seeds_and_time_limits_become_gymnasiums(classic_stack: Path) -> None:
    code = """
import numpy as np
from cepdiff.rollout.envs import box_spaces, make_env, make_vector_env
from cepdiff.rollout.environment import check_reference, classic_environment
from cepdiff.rollout.scores import Reference

env = make_env(classic_environment("hopper-medium-v2"))
print(*(space.shape for space in box_spaces(env)))
starts = [env.reset(seed=seed)[0] for seed in (7, 8, 7)]
print((starts[0] == starts[2]).all(), (starts[0] == starts[1]).any(), (env.reset()[0] == starts[0]).any())
np.random.seed(0); expected = np.random.uniform(); np.random.seed(0)
env.reset(seed=3)
print(np.random.uniform() == expected)
print([env.step(np.array([push]))[1:4] for push in (0.0, 0.0, 0.0, 0.0)][-1][1:])
env.reset(seed=3)
print(env.step(np.array([9.0]))[2:4])
check_reference(env, Reference(-20.272305, 3234.3))
env.close()
envs = make_vector_env(classic_environment("hopper-medium-v2"), 2)
both = envs.reset(seed=[7, 8])[0]
print(np.allclose(both, starts[:2]))
env = make_env(classic_environment("hopper-medium-v2"), render_mode="rgb_array")
env.reset()
print(env.render().shape)
"""
    assert run(code, classic_stack) == [
        "(2,) (1,)",
        "True False False",
        "True",
        "(False, True)",
        "(True, False)",
        "True",
        "(4, 4, 3)",
    ]


def test_episodes_of_a_policy_in_the_classic_stack(classic_stack: Path) -> None:
    code = """
import torch
from cepdiff.rollout.rollout import Episode, rollout
from cepdiff.rollout.environment import classic_environment

class Push:
    action_size = noise_size = 1
    def act(self, observations, *, guidance_scale, noise):
        return guidance_scale[:, None]

plan = [Episode(index, scale) for scale in (0.0, 1.0) for index in range(3)]
results = rollout(Push(), classic_environment("hopper-medium-v2"), plan, seed=0, max_envs=2)
again = rollout(Push(), classic_environment("hopper-medium-v2"), plan, seed=0, max_envs=6)
print(results == again)
print([(result.length, result.terminated) for result in results])
"""
    same, ends = run(code, classic_stack)
    assert same == "True"
    results = eval(ends)
    assert results[:3] == [(4, False)] * 3  # the old stack's time limit
    assert all(terminated and length in (3, 4) for length, terminated in results[3:])


def test_what_the_classic_stack_lacks_is_one_line(classic_stack: Path) -> None:
    code = """
import importlib
from pathlib import Path
from cepdiff.errors import CepdiffError
from cepdiff.rollout.envs import EnvSpec, make_env

file, whole = Path("d4rl.py"), Path("d4rl.py").read_text()
for text in (None, "raise RuntimeError('no MuJoCo 2.1 at home')", whole):
    file.unlink()
    if text is not None:
        file.write_text(text)
    importlib.invalidate_caches()
    try:
        make_env(EnvSpec("cepdiff/classic-v0", {"task": "antmaze-umaze-v2"}, "cepdiff.rollout.classic"))
    except CepdiffError as error:
        print(type(error).__name__, error)
    file.touch()
"""
    missing, broken, unknown = run(code, classic_stack)
    assert missing.startswith("MissingExtraError")
    assert missing.endswith('[d4rl]"')
    assert broken.endswith("no MuJoCo 2.1 at home")
    assert "SimulationError 'cepdiff/classic-v0' cannot be made: No registered env with id: antmaze" in unknown


def test_only_tasks_of_d4rl_have_a_classic_environment() -> None:
    assert classic_environment("antmaze-umaze-v2").kwargs == {"task": "antmaze-umaze-v2"}
    for name in ("mine", "reacher-replay"):
        with pytest.raises(ConfigError, match=f"'{name}' is not a task of D4RL"):
            classic_environment(name)


def dataset(name: str, env_id: str | None = None) -> Any:
    return SimpleNamespace(dataset=name, task=TASKS.get(name), metadata={}, env_id=env_id, env_kwargs=None)


def test_the_backend_chooses_the_environment() -> None:
    task = TASKS["hopper-medium-v2"]
    assert environment_of(dataset(task.name), "gymnasium") == EnvSpec(task.env_id, task.env_kwargs, task.env_module)
    assert environment_of(dataset(task.name), "gym") == classic_environment(task.name)
    assert environment_of(dataset("mine", "cepdiff/antmaze-umaze-v2")).module == "cepdiff.envs"
    with pytest.raises(ConfigError, match=r"leave out data\.env_id"):
        environment_of(dataset(task.name, "Hopper-v4"), "gym")
    assert get_args(get_type_hints(EvaluationSettings)["backend"]) == ("gymnasium", "gym")  # the reader refuses others
    with pytest.raises(SimulationError, match=r"add --data\.env_id ID, or --evaluation\.episodes 0"):
        environment_of(dataset("mine"))


def scoring(low: float, high: float) -> SimpleNamespace:
    return SimpleNamespace(unwrapped=SimpleNamespace(get_normalized_score=lambda value: (value - low) / (high - low)))


def test_other_reference_returns_than_d4rls_are_refused() -> None:
    check_reference(scoring(-20.0, 3000.0), Reference(-20.0, 3000.0))
    check_reference(scoring(-20.0, 3000.0), None)
    check_reference(SimpleNamespace(unwrapped=object()), Reference(-20.0, 3000.0))
    with pytest.raises(SimulationError, match="as 0 and 200; expected 0 and 100"):
        check_reference(scoring(-20.0, 1490.0), Reference(-20.0, 3000.0))


def test_a_policy_file_says_where_to_score_it_again() -> None:
    known = {"env_id": "Hopper-v4", "kwargs": {}, "module": None}
    recipe = SimpleNamespace(dataset="hopper-medium-v2", environment=known)
    assert environment_of_policy(recipe, None, None) == EnvSpec("Hopper-v4")
    assert environment_of_policy(recipe, "gymnasium", None) == EnvSpec("Hopper-v4")
    classic = classic_environment("hopper-medium-v2")
    recipe.environment = {"env_id": classic.env_id, "kwargs": classic.kwargs, "module": classic.module}
    assert environment_of_policy(recipe, None, None) == classic
    assert environment_of_policy(recipe, "gymnasium", None).env_id != classic.env_id
    recipe.dataset = "mine"
    with pytest.raises(ConfigError, match="'mine' is not a task of D4RL"):
        environment_of_policy(recipe, "gym", None)
    with pytest.raises(ConfigError, match="--backend is gymn; expected gymnasium or gym"):
        environment_of_policy(recipe, "gymn", None)
