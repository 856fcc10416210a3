"""Goals in the observation, and hindsight: exact rows, probabilities and rewards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cepdiff.data.rl.arrays import GOAL_COLUMNS, RawArrays
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.goals import GoalDataModule, last_rows
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.data.rl.lookahead import require_order
from cepdiff.errors import ConfigError, DataError
from cepdiff.problems.offline.environment import EvaluationSettings, evaluation_of
from cepdiff.rollout.envs import EnvSpec, make_env
from cepdiff.runs.config import load_config

NAME = "pointmaze-medium-navigate-v0"
LENGTHS = (200, 50, 1750)  # rows of the trajectories; a row's first number is its index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three trajectories in OGBench's layout, whose last rows are no transitions."""
    rows = sum(LENGTHS) + 3
    ends = np.zeros(rows, bool)
    ends[np.cumsum(np.array(LENGTHS) + 1) - 1] = True
    indices = np.where(ends, -1, np.cumsum(~ends) - 1)
    states = np.stack([indices, np.zeros(rows)], axis=1).astype(np.float32)
    np.savez(
        tmp_path / f"{NAME}.npz",
        observations=states, actions=np.zeros((rows, 2), np.float32), terminals=ends, qpos=states,
    )  # fmt: skip
    return tmp_path


def loaded(folder: Path, **options: Any) -> RawArrays:
    return GoalDataModule(NAME, dataset_dir=str(folder), **options).load_arrays()


def goals_of(raw: RawArrays) -> np.ndarray:
    """Row of each row's goal."""
    return raw.observations[:, 2].astype(int)


def test_the_vector_rewards_and_ends(folder: Path) -> None:
    raw = loaded(folder)
    rows, goals = np.arange(2000), goals_of(raw)
    assert raw.observations.shape == (2000, 4)
    assert np.array_equal(raw.observations[:, 0], rows)
    assert raw.next_observations is not None
    assert np.array_equal(raw.next_observations[:, 2:], raw.observations[:, 2:])
    inside = ~np.isin(rows, np.cumsum(LENGTHS) - 1)
    assert np.array_equal(raw.next_observations[inside, 0], rows[inside] + 1)
    assert np.array_equal(raw.rewards, np.where(goals == rows, 0.0, -1.0))
    assert np.array_equal(raw.terminals, goals == rows)
    assert np.array_equal(raw.timeouts, ~inside & ~raw.terminals)
    assert raw.metadata["env_id"] == "ogbench/pointmaze-medium-v0"
    assert raw.metadata["reward_rule"] == "none"


def test_the_mixture(folder: Path) -> None:
    """Five standard errors around the probabilities; a random goal is a later one of the same trajectory as well."""
    raw = loaded(folder, copies=10, current=0.2, future=0.5)
    rows, goals = np.tile(np.arange(2000), 10), goals_of(raw)
    last = np.repeat(np.cumsum(LENGTHS) - 1, LENGTHS)[rows]
    later = (goals > rows) & (goals <= last)
    random_later = float(((last - rows) / 2000).mean())
    assert np.mean(goals == rows) == pytest.approx(0.2, abs=5 * (0.16 / 20000) ** 0.5 + 0.002)
    assert np.mean(later) == pytest.approx(0.5 + 0.3 * random_later, abs=5 * (0.25 / 20000) ** 0.5 + 0.002)


@pytest.mark.parametrize(("sampling", "mean"), [("geometric", 10.0), ("uniform", None)])
def test_future_goals(folder: Path, sampling: str, mean: float | None) -> None:
    """Geometric: 1 / (1 - discount) steps on average, far from the end. Uniform: half of what is left."""
    raw = loaded(folder, current=0, future=1, sampling=sampling, goal_discount=0.9, copies=5)
    rows, offsets = np.tile(np.arange(2000), 5), goals_of(raw) - np.tile(np.arange(2000), 5)
    left = np.repeat(np.cumsum(LENGTHS) - 1, LENGTHS)[rows] - rows
    assert (offsets <= left).all()
    assert np.array_equal(offsets == 0, left == 0)
    far = left > 150
    expected = mean or 0.5 * left[far].mean() + 0.5
    assert offsets[far].mean() == pytest.approx(expected, rel=0.06)


def test_goals_depend_on_the_seed_only(folder: Path) -> None:
    first = goals_of(loaded(folder, seed=1))
    assert np.array_equal(goals_of(loaded(folder, seed=1)), first)
    assert not np.array_equal(goals_of(loaded(folder, seed=2)), first)


def test_within_a_radius(folder: Path) -> None:
    raw = loaded(folder, radius=2.0)
    near = np.abs(goals_of(raw) - np.arange(2000)) <= 2
    assert np.array_equal(raw.terminals, near)
    assert near.sum() > (goals_of(raw) == np.arange(2000)).sum()


@pytest.mark.parametrize("radius", [None, 5.0])
def test_segments_end_where_their_goal_is_reached(folder: Path, radius: float | None) -> None:
    """In the folder a row's state is its index, so 5 rows before the goal are within 5 of it."""
    raw = loaded(folder, per="segment", sampling="uniform", copies=50, radius=radius)
    rows, goals = raw.observations[:, 0].astype(int), goals_of(raw)
    last = np.flatnonzero(raw.terminals)
    first = np.concatenate([[0], last[:-1] + 1])
    assert not raw.timeouts.any()
    assert np.array_equal(raw.rewards, np.where(raw.terminals, 0.0, -1.0))
    assert np.array_equal(goals[last] - rows[last], np.full(len(last), radius or 0))
    ends = np.cumsum(LENGTHS)
    for start, stop in zip(first, last + 1, strict=True):
        assert stop - start > 1
        assert np.array_equal(rows[start:stop], np.arange(rows[start], rows[start] + stop - start))
        assert len(set(goals[start:stop])) == 1
        assert np.searchsorted(ends, rows[start], "right") == np.searchsorted(ends, goals[start], "right")
    starts = rows[first][rows[first] >= 250]  # in the long trajectory
    assert starts.mean() == pytest.approx(250 + 1750 / 2, abs=5 * 1750 / (12 * len(starts)) ** 0.5)


def test_no_segment_leads_to_a_goal(folder: Path) -> None:
    with pytest.raises(DataError, match=r"every segment begins at its goal \(data.radius: 10000.0\)"):
        loaded(folder, per="segment", radius=1e4)


def test_segments_have_sequences_of_actions_and_backups_of_several_steps(folder: Path) -> None:
    module = GoalDataModule(NAME, dataset_dir=str(folder), per="segment", action_steps=3)
    module.setup()
    assert module.sizes == (4, 6)
    require_order(module.buffer)
    with pytest.raises(ConfigError, match=r"data\.action_steps: next observations are not the following rows"):
        GoalDataModule(NAME, dataset_dir=str(folder), action_steps=3).setup()


def test_a_buffer_of_goals_trains(folder: Path) -> None:
    module = GoalDataModule(NAME, dataset_dir=str(folder))
    module.setup()
    assert module.sizes == (4, 2)
    assert len(module.buffer.transitions) == 2000
    *warnings, rewards = module.notes()
    assert rewards == "rewards: none, the file's own rule"
    assert [line.split(":")[1] for line in warnings] == [" observations", " actions"]  # before hindsight
    reached = int(module.load_arrays().terminals.sum())
    found = {finding.name: finding.message for finding in module.findings}
    assert found["rows"] == "2,000 rows in 3 episodes, 3 complete"
    assert found["goals"] == f"2,000 rows with a goal each, which {reached:,} of them have reached"
    assert module.summary() == f"2,000 rows, {reached:,} of them at their goal"


def test_the_environment_shows_the_same_vector(folder: Path) -> None:
    pytest.importorskip("ogbench")
    module = GoalDataModule(NAME, dataset_dir=str(folder))
    module.setup()
    found = evaluation_of(module, EvaluationSettings(), seed=0)  # raises if sizes differ
    assert found.environment is not None
    assert (found.environment.env_id, found.episodes, found.reference) == ("ogbench/pointmaze-medium-v0", 50, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"current": 0.7, "future": 0.5}, "data.current 0.7 and data.future 0.5: expected at most 1 in all"),
        ({"current": -0.1}, "data.current is -0.1; expected"),
        ({"sampling": "normal"}, "data.sampling is 'normal'; expected geometric or uniform"),
        ({"goal_discount": 1.0}, "data.goal_discount is 1.0"),
        ({"fraction": 0.5, "choose": "best"}, 'data.choose: "best" is by recorded rewards'),
        ({"relabel": False}, "data.relabel is false, but .* has no recorded goals"),
        ({"per": "walk"}, "data.per is 'walk'; expected row or segment"),
        ({"per": "segment", "future": 0.6}, 'are for goals per row; data.per is "segment"'),
        ({"reward_rule": "minus_one"}, 'data.reward_rule: "minus_one"; rewards by hindsight are -1 and 0: use "none"'),
    ],
)
def test_what_makes_no_sense(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(folder, **options)


def test_data_without_goals(folder: Path) -> None:
    with pytest.raises(DataError, match="no goals are known; expected a goal-conditioned dataset"):
        GoalDataModule("reacher-replay").load_arrays()
    with pytest.raises(DataError, match=r"no rewards without a goal; name a task \(-singletask-v0\), or use"):
        OfflineDataModule(NAME, dataset_dir=str(folder)).load_arrays()


def test_the_example_of_the_page(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    (text,) = re.findall(
        r'^```yaml title="goals.yaml"\n(.*?)^```$', (root / "docs/ogbench.md").read_text(), re.M | re.S
    )
    (tmp_path / "goals.yaml").write_text(text)
    config = load_config([root / "configs/quickstart.yaml", tmp_path / "goals.yaml"], ["data.future=0.6"])
    data = config.components["data"](seed=3)
    assert isinstance(data, GoalDataModule)
    assert (data.current, data.future, data.seed, data.dataset) == (0.2, 0.6, 3, NAME)


def test_last_rows() -> None:
    flags = np.array([False, True, False, False])
    raw = RawArrays(np.zeros((4, 1)), np.zeros((4, 1)), np.zeros(4), flags, np.zeros(4, bool))
    assert last_rows(raw).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("following", [True, False], ids=["with next observations", "as in D4RL's files"])
def test_d4rl_mazes(tmp_path: Path, following: bool) -> None:
    """Two walks of ten rows; the first stays three rows at the rewarded goal, each of them terminal, and walks on."""
    states = np.random.default_rng(0).normal(size=(20, 29)).astype(np.float32)
    states[:, 0] = np.arange(20)
    terminals, timeouts = np.isin(np.arange(20), (5, 6, 7)), np.isin(np.arange(20), (9, 19))
    nothing = np.zeros((20, 8), np.float32)
    raw = RawArrays(states, nothing, terminals.astype(np.float32), terminals, timeouts)
    if following:
        raw.next_observations = np.concatenate([states[1:], states[-1:] + 1])
    write_arrays(tmp_path / "walks.hdf5", raw, {"env_id": "cepdiff/antmaze-umaze-v2"})
    data = GoalDataModule(str(tmp_path / "walks.hdf5"), current=0, future=1, copies=5)
    found = data.load_arrays()
    goals, rows = found.observations[:, 29].astype(int), found.observations[:, 0].astype(int)
    assert found.observations.shape == (100, 31)
    assert (goals[rows == 4] > 4).all()
    assert np.array_equal(goals // 10, rows // 10)
    assert found.next_observations is not None
    inside = rows % 10 != 9
    assert np.array_equal(found.next_observations[inside, 0], rows[inside] + 1)
    assert (goals[~inside] == rows[~inside]).all()
    assert found.metadata["env_id"] == "cepdiff/with_goal-v0"
    with make_env(EnvSpec(found.metadata["env_id"], found.metadata["env_kwargs"])) as env:
        observation, _ = env.reset(seed=0)
        assert observation.shape == env.observation_space.shape == (31,)
        assert np.array_equal(observation[29:], env.unwrapped.goal)
        assert env.spec.max_episode_steps == 700


def recorded_maze(root: Path, patch: pytest.MonkeyPatch) -> None:
    """`mine/goals-v0`: three episodes of six steps in Gymnasium-Robotics' u-maze."""
    minari, robotics = pytest.importorskip("minari"), pytest.importorskip("gymnasium_robotics")
    import gymnasium as gym
    from minari.data_collector import EpisodeBuffer

    gym.register_envs(robotics)
    patch.setenv("MINARI_DATASETS_PATH", str(root))
    episodes = []
    with gym.make("PointMaze_UMaze-v3", max_episode_steps=6) as env:
        for seed in range(3):
            steps = [env.reset(seed=seed)[0], *(env.step(np.ones(2, np.float32))[0] for _ in range(6))]
            parts = {key: np.stack([step[key] for step in steps]) for key in steps[0]}
            ends = [False] * 5 + [True]
            episodes.append(EpisodeBuffer(
                observations=parts, actions=np.ones((6, 2), np.float32), rewards=[0.0] * 6,
                terminations=[False] * 6, truncations=ends, infos={},
            ))  # fmt: skip
        spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
        dataset = minari.create_dataset_from_buffers("mine/goals-v0", episodes, **spaces)
        dataset.storage.update_metadata({"env_spec": env.spec.to_json()})


def test_minari_mazes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(x, y, vx, vy) and the goal, in the dataset and in its environment; goals recorded or by hindsight."""
    recorded_maze(tmp_path, monkeypatch)
    recorded = GoalDataModule("minari:mine/goals-v0", relabel=False).load_arrays()
    assert recorded.observations.shape == (18, 6)
    goals = recorded.observations[:, 4:].reshape(3, 6, 2)
    assert np.array_equal(goals, np.repeat(goals[:, :1], 6, axis=1))
    relabelled = GoalDataModule("minari:mine/goals-v0", radius=0.45).load_arrays()
    positions = relabelled.observations[:, :2]
    assert all(any(np.array_equal(goal, at) for at in positions) for goal in relabelled.observations[:, 4:])
    distance = np.linalg.norm(relabelled.observations[:, 4:] - positions, axis=1)
    assert np.array_equal(relabelled.rewards, np.where(distance <= 0.45, 0.0, -1.0))
    assert (relabelled.metadata[GOAL_COLUMNS], recorded.metadata["reward_rule"]) == ((0, 1), "none")
    with make_env(EnvSpec(relabelled.metadata["env_id"], relabelled.metadata["env_kwargs"])) as env:
        observation, _ = env.reset(seed=0)
        assert observation.shape == env.observation_space.shape == (6,)
        assert np.allclose(observation, recorded.observations[0])
