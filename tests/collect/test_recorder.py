"""The contents of a recorded buffer, row by row."""

import gymnasium as gym
import numpy as np
import pytest

from cepdiff.collect.policies import uniform
from cepdiff.collect.recorder import RecordingEnv, concatenate, first_rows, mean_return, record, run_episode
from cepdiff.rollout.envs import EnvSpec, box_spaces, make_env, reset_seed


class CountEnv(gym.Env):
    """Observes (episode, step); even episodes terminate after 3 steps, odd ones are truncated after 4."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self):
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.observation = np.array([self.episode, 0.0])
        return self.observation, {}

    def step(self, action):
        self.observation[1] += 1  # in place: the recorder must copy it
        even = self.episode % 2 == 0
        terminated = even and self.observation[1] == 3
        truncated = self.observation[1] == (3 if even else 4)  # both at once in even episodes
        return self.observation, float(10 * action[0]), bool(terminated), bool(truncated), {}


def act(observation):
    return np.array([0.1 * observation[1]], np.float32)


def test_rows_by_hand():
    arrays = record(CountEnv(), act, 9, seed=0, label="x")
    assert arrays["observations"].tolist() == [
        [0, 0],
        [0, 1],
        [0, 2],
        [1, 0],
        [1, 1],
        [1, 2],
        [1, 3],
        [2, 0],
        [2, 1],
    ]
    assert arrays["next_observations"][:, 1].tolist() == [1, 2, 3, 1, 2, 3, 4, 1, 2]
    assert arrays["next_observations"][:, 0].tolist() == arrays["observations"][:, 0].tolist()
    assert np.flatnonzero(arrays["terminals"]).tolist() == [2]  # terminated and truncated at once is no timeout
    assert np.flatnonzero(arrays["timeouts"]).tolist() == [6]  # nor is the cut at row 8
    np.testing.assert_allclose(arrays["rewards"], 10 * arrays["actions"][:, 0])
    np.testing.assert_allclose(arrays["actions"][:, 0], 0.1 * arrays["observations"][:, 1], rtol=1e-6)
    floats = ("observations", "actions", "rewards", "next_observations")
    assert {arrays[key].dtype for key in floats} == {np.dtype(np.float32)}


def test_steps_beyond_the_rows_are_passed_on():
    recorder = RecordingEnv(CountEnv(), 2)
    assert run_episode(recorder, act, seed=0) == (pytest.approx(3.0), 3)
    assert len(recorder.arrays()["rewards"]) == 2


def test_concatenated_episodes_stay_apart():
    arrays = record(CountEnv(), act, 9, seed=0, label="x")
    both = concatenate(first_rows(arrays, 5), first_rows(arrays, 3))
    assert np.flatnonzero(both["timeouts"]).tolist() == [4]  # the seam
    assert np.flatnonzero(both["terminals"]).tolist() == [2, 7]
    assert not arrays["timeouts"][4]  # the arguments are unchanged
    terminal_first = concatenate(first_rows(arrays, 3), first_rows(arrays, 3))
    assert not terminal_first["timeouts"].any()


def test_states_restore_the_observation_and_the_step():
    env = gym.make("InvertedPendulum-v5")
    arrays = record(env, lambda _: np.array([0.7], np.float32), 40, seed=1, label="x", states=True)
    simulator = env.unwrapped
    for row in (0, 3, 17):
        simulator.set_state(arrays["infos/qpos"][row], arrays["infos/qvel"][row])
        np.testing.assert_array_equal(simulator._get_obs().astype(np.float32), arrays["observations"][row])
    assert arrays["infos/qpos"].dtype == np.float64
    assert "infos/qpos" not in record(env, lambda _: np.zeros(1, np.float32), 5, seed=1, label="x")


def test_episodes_start_from_their_own_seeds():
    env = gym.make("Pendulum-v1")
    arrays = record(env, lambda _: np.zeros(1, np.float32), 401, seed=4, label="x")
    starts = [env.reset(seed=reset_seed(4, "x", episode))[0] for episode in range(3)]
    np.testing.assert_array_equal(arrays["observations"][[0, 200, 400]], np.array(starts, np.float32))


def test_mean_return_is_the_mean_of_single_episodes():
    env = gym.make("Pendulum-v1")
    zero = lambda _: np.zeros(1, np.float32)  # noqa: E731
    single = [run_episode(env, zero, seed=reset_seed(0, "x", i))[0] for i in range(3)]
    assert len(set(single)) == 3
    assert mean_return(env, zero, 3, seed=0, label="x") == pytest.approx(np.mean(single))


@pytest.mark.parametrize(
    ("env_id", "parts"), [("cepdiff/antmaze-umaze-v2", {"goal"}), ("cepdiff/door-v0", {"door_body_pos"})]
)
def test_what_else_fixes_a_state_is_stored_too(env_id, parts):
    """A row's state, set in a new environment, leads to the recorded step."""
    pytest.importorskip("gymnasium_robotics")
    env = make_env(EnvSpec(env_id))
    act = uniform(box_spaces(env)[1], seed=0, label="actions")
    arrays = record(env, act, 30, seed=0, label="x", states=True)
    assert {key.removeprefix("infos/") for key in arrays if key.startswith("infos/")} == {"qpos", "qvel", *parts}
    again = make_env(EnvSpec(env_id))
    again.reset(seed=5)
    row = 20
    state = {key.removeprefix("infos/"): values[row] for key, values in arrays.items() if key.startswith("infos/")}
    inner = again.unwrapped
    if "goal" in state:
        inner.goal = state["goal"]
        inner.set_state(state["qpos"], state["qvel"])
    else:
        inner.set_env_state(state)
    observation, reward, *_ = again.step(arrays["actions"][row])
    np.testing.assert_allclose(observation, arrays["next_observations"][row], atol=1e-4)
    assert reward == pytest.approx(arrays["rewards"][row], abs=1e-4)
