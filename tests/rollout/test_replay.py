"""Replay of recorded steps: exact in the recorded environment, reported as different in another one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from cepdiff.collect.recorder import record
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.errors import DataError, SimulationError
from cepdiff.rollout.envs import EnvSpec, make_env
from cepdiff.rollout.replay import replay
from cepdiff.rollout.replay_groups import Family, family_of, observation_groups, state_from_observation
from cepdiff.rollout.replay_report import Deviation, ReplayReport, format_replay

ANT = EnvSpec("Ant-v4", {"use_contact_forces": True})
_made: dict[str, RawArrays] = {}


def recorded(spec: EnvSpec, rows: int = 300) -> RawArrays:
    """Random actions with states; each environment is recorded only once."""
    if spec.env_id not in _made:
        env = make_env(spec)
        rng = np.random.default_rng(0)
        low, high = env.action_space.low, env.action_space.high
        arrays = record(env, lambda _: rng.uniform(low, high).astype(np.float32), rows, seed=0, label="x", states=True)
        env.close()
        infos = {key.removeprefix("infos/"): value for key, value in arrays.items() if key.startswith("infos/")}
        fields = {key: value for key, value in arrays.items() if not key.startswith("infos/")}
        _made[spec.env_id] = RawArrays(**fields, infos=infos, source=f"a/folder/{spec.env_id}.hdf5")
    return changed(_made[spec.env_id])


def changed(raw: RawArrays, **changes: Any) -> RawArrays:
    """A copy with some fields replaced."""
    fields = {key: value.copy() for key, value in raw.fields.items()}
    return RawArrays(**{**fields, "infos": dict(raw.infos), "source": raw.source, **changes})


def by_name(report: ReplayReport) -> dict[str, Deviation]:
    return {deviation.name: deviation for deviation in report.deviations}


@pytest.mark.parametrize(
    "spec", [EnvSpec("HalfCheetah-v4"), EnvSpec("Hopper-v4"), EnvSpec("Walker2d-v4"), ANT], ids=lambda spec: spec.env_id
)
def test_recorded_steps_come_out_to_the_last_bit(spec: EnvSpec) -> None:
    report = replay(recorded(spec), spec)
    assert [deviation.maximum for deviation in report.deviations] == [0.0] * len(report.deviations)
    assert (report.verdict, report.states, report.state_time) == ("matches", "recorded", "before")
    assert report.terminals_equal == report.terminals
    assert report.rows > 200
    assert report.worst_rows == []


def test_ant_has_contact_forces_and_a_reward_from_the_step_before() -> None:
    raw = recorded(ANT)
    assert list(by_name(replay(raw, ANT))) == ["positions", "velocities", "contact forces", "reward"]
    env = make_env(ANT)
    env.reset(seed=0)
    inner: Any = env.unwrapped
    alone = []
    for row in range(300):  # without the previous step, the torso is not where it was for the recorded reward
        inner.set_state(raw.infos["qpos"][row], raw.infos["qvel"][row])
        alone.append(abs(np.float32(env.step(raw.actions[row])[1]) - raw.rewards[row]))
    env.close()
    assert max(alone) > 1e-3


def test_a_file_of_single_steps_cannot_be_replayed() -> None:
    single = changed(recorded(ANT), terminals=np.zeros(300, bool), timeouts=np.ones(300, bool))
    with pytest.raises(DataError, match="found no row to replay"):
        replay(single, ANT)


def test_states_rounded_to_float32_still_match() -> None:
    raw = recorded(EnvSpec("HalfCheetah-v4"))
    rounded = {key: value.astype(np.float32) for key, value in raw.infos.items()}
    report = replay(changed(raw, infos=rounded), EnvSpec("HalfCheetah-v4"))
    assert report.verdict == "matches"
    assert 0 < by_name(report)["velocities"].maximum < 1e-3


def test_states_recorded_after_the_step_are_recognised() -> None:
    raw = recorded(EnvSpec("Hopper-v4"))
    after = {key: np.roll(value, -1, axis=0) for key, value in raw.infos.items()}
    report = replay(changed(raw, infos=after), EnvSpec("Hopper-v4"))
    assert (report.state_time, report.verdict) == ("after", "matches")
    assert "recorded after each row's step" in format_replay(report)


@pytest.mark.parametrize("robot", ["HalfCheetah", "Hopper", "Walker2d", "Ant"])
def test_states_reconstructed_from_observations_match(robot: str) -> None:
    spec = ANT if robot == "Ant" else EnvSpec(f"{robot}-v4")
    raw = changed(recorded(spec), infos={}, next_observations=None)
    report = replay(raw, spec)
    clipped = (np.abs(raw.observations[:, -(6 if robot == "Hopper" else 9) :]).max(axis=1) >= 10).sum()
    clips = robot in ("Hopper", "Walker2d")
    assert (report.states, report.verdict) == ("observations", "matches")
    assert report.skipped == (clipped if clips else 0)
    assert by_name(report)["velocities"].median > 0  # rounded


def test_v5_of_walker_is_told_apart_from_v4() -> None:
    raw = recorded(EnvSpec("Walker2d-v5"))
    assert replay(raw, EnvSpec("Walker2d-v5")).verdict == "matches"
    report = replay(raw, EnvSpec("Walker2d-v4"))  # different friction under one foot
    assert report.verdict == "differs"
    assert by_name(report)["velocities"].verdict == "differs"
    assert "this is not the environment" in format_replay(report)


def test_one_corrupted_action_is_named() -> None:
    raw = recorded(EnvSpec("HalfCheetah-v4"))
    raw.actions[123] *= -1
    report = replay(raw, EnvSpec("HalfCheetah-v4"))
    assert report.worst_rows == [123]
    assert report.verdict != "matches"
    assert "rows that deviate most: 123" in format_replay(report)


@pytest.mark.parametrize("field", ["actions", "rewards", "next_observations"])
def test_shifted_rows_differ(field: str) -> None:
    raw = recorded(EnvSpec("Hopper-v4"))
    setattr(raw, field, np.roll(getattr(raw, field), 1, axis=0))
    report = replay(raw, EnvSpec("Hopper-v4"))
    assert report.verdict == "differs"
    assert (by_name(report)["reward"].verdict == "matches") == (field == "next_observations")


def test_wrong_terminals_differ() -> None:
    raw = recorded(EnvSpec("Hopper-v4"))
    assert raw.terminals.sum() > 5
    report = replay(changed(raw, timeouts=np.zeros(300, bool), terminals=np.zeros(300, bool)), EnvSpec("Hopper-v4"))
    assert report.terminals - report.terminals_equal > 5
    assert report.terminal_verdict == "differs"


def test_without_next_observations_terminal_rows_still_count() -> None:
    raw = changed(recorded(EnvSpec("Hopper-v4")), next_observations=None)
    report = replay(raw, EnvSpec("Hopper-v4"))
    assert report.verdict == "matches"
    assert report.terminals_set == raw.terminals.sum()
    assert len(report.row_deviations["reward"]) > len(report.row_deviations["velocities"])


def test_a_sample_follows_from_its_seed() -> None:
    raw = recorded(EnvSpec("HalfCheetah-v4"))
    raw.rewards += np.arange(300) / 300  # every row deviates by a different amount
    samples = [replay(raw, EnvSpec("HalfCheetah-v4"), rows=40, seed=seed) for seed in (0, 0, 1)]
    rewards = [sample.row_deviations["reward"].tolist() for sample in samples]
    assert [sample.rows for sample in samples] == [40, 40, 40]
    assert rewards[0] == rewards[1] != rewards[2]


class Goals(gym.Env):
    """A point that one action moves; the reward is minus its distance from the goal. Has MuJoCo's attribute names."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    class model:  # noqa: N801
        nq = nv = 2

    class data:  # noqa: N801
        qpos, qvel = np.zeros(2), np.zeros(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = np.array([3.0, 4.0])
        return self.observe(), {}

    def observe(self):
        return np.concatenate([self.data.qpos, self.data.qvel])

    def set_state(self, qpos, qvel):
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel

    def step(self, action):
        self.data.qvel[:] = action
        self.data.qpos[:] += action
        return self.observe(), -float(np.linalg.norm(self.data.qpos - self.goal)), False, False, {}


@pytest.fixture
def maze() -> Iterator[EnvSpec]:
    """`Goals` registered under a name of the maze2d family."""
    gym.register("maze2d-test-v0", Goals, max_episode_steps=50)
    yield EnvSpec("maze2d-test-v0")
    del gym.registry["maze2d-test-v0"]


def test_goals_of_the_file_or_of_the_environment(maze: EnvSpec) -> None:
    raw = recorded(maze)
    without = {name: values for name, values in raw.infos.items() if name != "goal"}
    report = replay(changed(raw, infos=without), maze)
    assert (report.goal, report.verdict) == ("missing", "matches")
    assert "the file has none" in format_replay(report)
    unused = {**raw.infos, "goal": np.ones((300, 2))}
    report = replay(changed(raw, infos=unused), maze)
    assert (report.goal, report.verdict) == ("environment", "matches")
    goals = np.random.default_rng(0).normal(size=(300, 2))
    rewards = -np.linalg.norm(raw.next_observations[:, :2] - goals, axis=1)
    report = replay(changed(raw, rewards=rewards, infos={**raw.infos, "goal": goals}), maze)
    assert (report.goal, report.verdict) == ("file", "matches")


def test_rewards_one_step_late_in_maze2d(maze: EnvSpec) -> None:
    raw = recorded(maze)
    late = -np.linalg.norm(raw.observations[:, :2] - (3.0, 4.0), axis=1)
    report = replay(changed(raw, rewards=late), maze)
    assert (report.reward_time, report.verdict) == ("state", "matches")
    assert "one step late" in format_replay(report)
    assert replay(raw, maze).reward_time == "step"


class Scene(Goals):
    """Its state has more than positions and velocities."""

    def set_env_state(self, state):
        self.set_state(state["qpos"], state["qvel"])
        self.goal = state["place"]


def test_an_environment_that_restores_its_own_state() -> None:
    gym.register("Scene-v0", Scene, max_episode_steps=50)
    try:
        raw = recorded(EnvSpec("Scene-v0"))
        with pytest.raises(DataError, match=r"'Scene-v0' cannot .* infos/, which holds goal, qpos, qvel .*'place'"):
            replay(raw, EnvSpec("Scene-v0"))
        raw.infos["place"] = np.tile([3.0, 4.0], (300, 1))
        report = replay(raw, EnvSpec("Scene-v0"))
    finally:
        del gym.registry["Scene-v0"]
    assert report.verdict == "matches"
    assert list(by_name(report)) == ["observation", "reward"]


def test_what_cannot_be_replayed_is_one_clear_line() -> None:
    hopper = recorded(EnvSpec("Hopper-v4"))
    with pytest.raises(
        SimulationError, match=r"17 observations and 6 actions, .*Hopper-v4.hdf5 has 11 and 3.*--env_id"
    ):
        replay(hopper, EnvSpec("HalfCheetah-v4"))
    wrong = {"qpos": np.zeros((300, 9)), "qvel": hopper.infos["qvel"]}
    with pytest.raises(DataError, match=r"rows of shape \(9,\) and \(6,\), 'Hopper-v4' has 6 positions"):
        replay(changed(hopper, infos=wrong), EnvSpec("Hopper-v4"))
    reacher = recorded(EnvSpec("Reacher-v5"))
    assert replay(reacher, EnvSpec("Reacher-v5")).verdict == "matches"
    with pytest.raises(DataError, match=r"holds no states .* collect with --states"):
        replay(changed(reacher, infos={}), EnvSpec("Reacher-v5"))
    with pytest.raises(SimulationError, match="'Pendulum-v1' cannot be put into a recorded state"):
        replay(recorded(EnvSpec("Pendulum-v1")), EnvSpec("Pendulum-v1"))


def test_families_and_their_groups() -> None:
    names = ["Hopper-v4", "cepdiff/hopper-v2", "cepdiff/antmaze-umaze-v2", "Ant-v5", "cepdiff/Ant-v2", "Reacher-v5"]
    hidden = [None if (family := family_of(name)) is None else family.hidden_positions for name in names]
    assert hidden == [1, 1, 0, 2, 2, None]
    ant = family_of("Ant-v4")
    whole = observation_groups(ant, 111, 15, 14)
    assert whole == {"positions": slice(0, 13), "velocities": slice(13, 27), "contact forces": slice(27, 111)}
    assert list(observation_groups(ant, 27, 15, 14)) == ["positions", "velocities"]
    assert observation_groups(ant, 29, 15, 14)["positions"] == slice(0, 15)  # nothing hidden
    assert observation_groups(family_of("Hopper-v4"), 5, 6, 6) == {"observation": slice(0, 5)}
    assert observation_groups(None, 5, 6, 6) == {"observation": slice(0, 5)}
    assert list(observation_groups(family_of("cepdiff/kitchen-mixed-v0"), 60, 30, 29)) == ["positions", "goal"]


def test_state_from_observation_by_hand() -> None:
    family = Family(hidden_positions=1, velocity_clip=10.0)
    rows = np.array([[1, 2, 3, -4, 9], [1, 2, 3, -10, 9]], np.float32)[:, :4]
    made = state_from_observation(family, rows, 3, 2)
    assert made is not None
    assert made[0].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert made[1].tolist() == [[3, -4], [3, -10]]
    assert made[2].tolist() == [True, False]
    assert made[3] == 1
    assert state_from_observation(Family(has_velocities=False), rows, 4, 2) is None
    assert state_from_observation(None, rows, 3, 2) is None


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.0] * 100, "matches"),
        ([1.9e-5] * 100, "matches"),  # the scale is 2
        ([2.1e-5] * 100, "close"),
        ([0.0] * 100 + [0.3], "close"),  # a single row
        ([0.0] * 90 + [0.1] * 10, "differs"),
        ([3e-3] * 100, "differs"),
    ],
)
def test_thresholds(values: list[float], verdict: str) -> None:
    assert Deviation.of("x", np.array(values), np.array([-2.0, 2.0])).verdict == verdict


def test_a_constant_group_has_scale_one() -> None:
    found = Deviation.of("x", np.array([1.0, 2.0, 3.0]), np.zeros((3, 4), np.float32))
    assert (found.scale, found.median, found.maximum) == (1.0, 2.0, 3.0)
