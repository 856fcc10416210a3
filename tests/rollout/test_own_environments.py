"""A user's own environments: found by `module:ID`, limited in time, and refused in one line where they are wrong."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from cepdiff.callbacks.rollout import RolloutCallback
from cepdiff.cli import main
from cepdiff.cli.data_convert import _describe
from cepdiff.data.rl.hdf5 import read_arrays
from cepdiff.errors import SimulationError
from cepdiff.problems.offline.evaluate import environment_of_policy
from cepdiff.rollout.environment import choose_environment, limited
from cepdiff.rollout.envs import EnvSpec, check_spaces, env_facts, make_env, time_limit
from cepdiff.rollout.registry import PROVIDERS, registered
from cepdiff.rollout.rollout import Episode, rollout
from cepdiff.rollout.video import record_video
from cepdiff.types import DataSpec

OWN = """
import gymnasium as gym
import numpy as np

class Own(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2), {}

    def step(self, action):
        return np.ones(2), 1.0, False, False, {}

gym.register("Own-v0", Own)
gym.register("Limited-v0", Own, max_episode_steps=7)
"""


class Faulty(gym.Env[Any, Any]):
    """Returns `observation` and `reward`, or raises, from step `since` on; 0 is the reset."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(
        self, since: int = 3, observation: Any = None, reward: Any = 1.0, broken: bool = False, **_: Any
    ) -> None:
        self.since, self.observation, self.reward, self.broken = since, observation, reward, broken

    def _observed(self) -> Any:
        late = self.steps >= self.since
        if late and self.broken:
            raise KeyError("a\\nkey")
        return self.observation if late and self.observation is not None else np.zeros(2)

    def render(self) -> None:
        """Draws nothing."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.steps = 0
        return self._observed(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._observed(), self.reward if self.steps >= self.since else 1.0, False, False, {}


class Still:
    action_size = noise_size = 1

    def act(self, observations: torch.Tensor, *, guidance_scale: Any, noise: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(noise)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The working folder has a module of the user's; forgotten afterwards."""
    (tmp_path / "own_environment.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_environment", None)
    for name in ("Own-v0", "Limited-v0"):
        gym.registry.pop(name, None)


@pytest.fixture
def faulty() -> Any:
    gym.register("test/Faulty-v0", Faulty, max_episode_steps=10, disable_env_checker=True)
    yield
    del gym.registry["test/Faulty-v0"]


def test_a_module_in_the_working_folder_registers_its_environment(own: None) -> None:
    spec = EnvSpec("own_environment:Limited-v0")
    assert env_facts(spec) == (2, (-1.0,), (1.0,), 7)
    (result,) = rollout(Still(), spec, [Episode(0, 0.0)], seed=0)
    assert (result.episode_return, result.length, result.terminated) == (7.0, 7, False)


def test_a_module_that_only_a_file_names_must_be_installed(own: None) -> None:
    chosen = ("data.hdf5", None, {"env_id": "own_environment:Own-v0", "env_kwargs": {"a": 1}})
    with pytest.raises(SimulationError, match=r"'data.hdf5' names.*trust it, add --env_id own_environment:Own-v0"):
        choose_environment(*chosen, None, None, "--env_id")
    assert "own_environment" not in sys.modules
    named = choose_environment(*chosen, "own_environment:Own-v0", None, "--env_id")
    assert named == EnvSpec("own_environment:Own-v0")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("own_environment:Owm-v0", "No environment is registered as 'own_environment:Owm-v0'. Did you mean Own-v0"),
        ("no_such_module:Own-v0", "Cannot import 'no_such_module' for its environments"),
        (":", "No environment is registered as ':'"),
        ("PandaReach-v3", "an environment of panda_gym, which is not installed: pip install panda-gym"),
    ],
)
def test_ids_that_lead_nowhere(own: None, env_id: str, message: str) -> None:
    if env_id.startswith("Panda") and find_spec("panda_gym") is not None:
        pytest.skip("panda-gym is installed")
    with pytest.raises(SimulationError, match=message):
        make_env(EnvSpec(env_id))


def test_a_provider_is_imported_for_its_environments() -> None:
    pytest.importorskip("gymnasium_robotics")
    assert registered("AdroitHandPen-v1").max_episode_steps == 200
    assert registered("gymnasium_robotics:PointMaze_UMaze-v3").max_episode_steps == 300
    with pytest.raises(SimulationError, match="expected a flat Box"):  # goals come in dictionaries
        check_spaces(make_env(EnvSpec("PointMaze_UMaze-v3")), DataSpec(2, 1, (-1.0,), (1.0,)))
    assert len({module for _, module, _ in PROVIDERS}) == len(PROVIDERS)


def test_an_environment_without_a_time_limit(own: None, caplog: pytest.LogCaptureFixture) -> None:
    spec = EnvSpec("own_environment:Own-v0")
    with pytest.raises(SimulationError, match=r"might never end: add --evaluation.max_episode_steps N"):
        limited(spec, None, None, "--evaluation.max_episode_steps")
    with pytest.raises(SimulationError, match="no time limit"):
        RolloutCallback(lambda module: Still(), spec, [0.0], 1)
    with caplog.at_level("WARNING"):
        assert time_limit(limited(spec, None, 5, "")) == 5
    assert "end after 5 steps, the horizon of the data" in caplog.text
    assert limited(EnvSpec("own_environment:Limited-v0"), None, 5, "").kwargs == {}  # its own
    assert time_limit(limited(EnvSpec("own_environment:Limited-v0"), 4, None, "")) == 4
    (result,) = rollout(Still(), limited(spec, 9, None, ""), [Episode(0, 0.0)], seed=0)
    assert (result.length, result.terminated) == (9, False)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"broken": True}, r"'test/Faulty-v0' fails in step 3 of an episode: KeyError: "),
        ({"broken": True, "since": 0}, r"fails in reset\(\): KeyError: "),
        ({"observation": np.full(2, np.nan)}, "step 3 of an episode: an observation is NaN or infinite"),
        ({"observation": np.zeros(3)}, r"step 3.*: an observation has shape \(3,\); its observation space has \(2,\)"),
        ({"observation": np.zeros((2, 1)), "since": 0}, r"reset\(\): an observation has shape \(2, 1\)"),
        ({"reward": np.nan}, "step 3 of an episode: the reward is nan; expected a finite number"),
        ({"reward": None}, "step 3 of an episode: TypeError"),
        ({"reward": np.ones(2)}, "step 3 of an episode: TypeError"),
        ({"reward": 1e308}, "the rewards of episode 0 add up to inf"),
    ],
)
def test_what_an_environment_does_wrong_is_one_line(faulty: None, fault: dict[str, Any], message: str) -> None:
    with pytest.raises(SimulationError, match=message) as caught:
        rollout(Still(), EnvSpec("test/Faulty-v0", fault), [Episode(0, 0.0), Episode(1, 0.0)], seed=0)
    assert "\n" not in str(caught.value)


def test_an_environment_that_draws_nothing(faulty: None, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(SimulationError, match=r"cannot be rendered \(its render\(\) does not return an image\)"):
        record_video(Still(), EnvSpec("test/Faulty-v0"), tmp_path / "a.mp4", guidance_scale=0.0, episodes=1, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [{"broken": True}, {"reward": np.nan}, {"observation": np.zeros(3)}])
def test_a_fault_in_the_first_step_is_found_before_training(faulty: None, fault: dict[str, Any]) -> None:
    with pytest.raises(SimulationError, match="step 1 of an episode"):
        env_facts(EnvSpec("test/Faulty-v0", {**fault, "since": 1}))


@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(3), gym.spaces.MultiBinary(2), gym.spaces.Box(0, 5, (2,), np.int64)], ids=str
)
def test_actions_that_are_not_continuous_are_refused(monkeypatch: pytest.MonkeyPatch, faulty: None, space: Any) -> None:
    monkeypatch.setattr(Faulty, "action_space", space)
    with pytest.raises(SimulationError, match="expected a flat, bounded Box of floats"):
        env_facts(EnvSpec("test/Faulty-v0"))


def test_files_of_an_own_environment_name_its_module(own: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The file and the policy keep the whole id; only a command that names the module imports it."""
    whole = "own_environment:Limited-v0"
    short = ["--kind", "random", "--steps", "9", "--reference_episodes", "1"]
    assert main(["collect", "own_environment:Own-v0", *short]) == 2
    assert """add --env_kwargs '{"max_episode_steps": N}'""" in capsys.readouterr().err
    assert main(["collect", "Limited-v0", "--env_module", "own_environment", *short, "--output", "a.hdf5"]) == 0
    assert main(["collect", whole, *short]) == 0
    for file in ("a.hdf5", "own_environment-Limited-v0-random.hdf5"):
        assert read_arrays(file).metadata["env_id"] == whole
    sys.modules.pop("own_environment")  # as in a new process
    gym.registry.pop("Limited-v0")
    sys.path.remove(str(Path.cwd()))
    capsys.readouterr()
    assert main(["data", "replay", "./a.hdf5"]) == 2
    assert f"add --env_id {whole}" in capsys.readouterr().err
    assert main(["data", "replay", "./a.hdf5", "--env_id", whole]) == 2
    assert "cannot be put into a recorded state" in capsys.readouterr().err


def test_a_converted_file_names_the_module_too(own: None) -> None:
    whole = "own_environment:Limited-v0"
    found = _describe(whole, {}, None, named=True)
    assert found is not None
    assert json.loads(found.spec)["id"] == whole  # though its entry point, a class, cannot be written as JSON
    assert (found.action_low, found.action_high) == ((-1.0,), (1.0,))
    sys.modules.pop("own_environment")
    assert _describe(whole, {}, None, named=False) is None


def test_a_policy_file_imports_no_module_that_is_not_installed(own: None) -> None:
    whole = "own_environment:Limited-v0"
    recipe: Any = SimpleNamespace(dataset="x", environment={"env_id": whole, "kwargs": {"a": 1}, "module": None})
    with pytest.raises(SimulationError, match=f"the policy file names.*add --trust_sources FOLDER or --env_id {whole}"):
        environment_of_policy(recipe, None, None)
    assert environment_of_policy(recipe, None, None, whole) == EnvSpec(whole, {"a": 1})
    assert environment_of_policy(recipe, None, None, "Pendulum-v1") == EnvSpec("Pendulum-v1")
    recipe.environment |= {"env_id": "Limited-v0", "module": "own_environment"}
    with pytest.raises(SimulationError, match="the policy file names"):
        environment_of_policy(recipe, None, None)
    assert "own_environment" not in sys.modules
    sys.path.insert(0, str(Path.cwd()))  # as loading the policy does for a trusted folder
    found = environment_of_policy(recipe, None, None, trusted=[Path.cwd()])
    assert found == EnvSpec("Limited-v0", {"a": 1}, "own_environment")
