"""Each known defect is added to a small buffer and found under its name; without it there is no finding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cepdiff.data.checks import defects
from cepdiff.data.checks.defects import findings_of, repeated_rows
from cepdiff.data.rl import arrays
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.episodes import episodes_of
from cepdiff.data.rl.tasks import find_task
from cepdiff.errors import DataError

MakeRaw = Callable[..., RawArrays]
NOTES = {"env_id": "X-v0"}  # not a task's environment, so it causes no findings


def following(raw: RawArrays) -> np.ndarray:
    """The successors the environment would have recorded: at episode ends a state that is in no row."""
    states = np.roll(raw.observations, -1, axis=0)
    states[raw.terminals | raw.timeouts] += 0.5
    states[-1] = raw.observations[-1] + 0.5
    return states


def warnings(raw: RawArrays, task: str | None = None) -> dict[str, str]:
    found = [f for f in findings_of(raw, find_task(task) if task else None) if f.level == "warning"]
    assert all(f.handling for f in found)
    return {f.name: " | ".join(g.message for g in found if g.name == f.name) for f in found}


def infos(raw: RawArrays, task: str | None = None) -> dict[str, str]:
    return {f.name: f.message for f in findings_of(raw, find_task(task) if task else None) if f.level == "info"}


def test_episodes_are_those_of_the_buffer(make_raw: MakeRaw) -> None:
    for raw in (make_raw(), make_raw(timeouts=np.arange(10) == 9)):
        episodes, buffer = episodes_of(raw), TransitionBuffer.from_arrays(raw)
        returns, complete = buffer.episode_returns()
        assert episodes.starts.tolist() == buffer.episode_starts.tolist()
        assert (episodes.starts + episodes.lengths).tolist() == buffer.episode_ends.tolist()
        assert (episodes.returns(raw.rewards).tolist(), episodes.complete.tolist()) == (
            returns.tolist(),
            complete.tolist(),
        )
    assert not make_raw().timeouts[9]


def test_sound_data_give_no_warning(make_raw: MakeRaw) -> None:
    raw = make_raw(metadata=NOTES)
    assert warnings(raw) == {}
    assert infos(raw)["successors"].startswith("2 rows have no known successor")
    assert infos(raw)["actions"].startswith("20.00% of the action entries are at or beyond a bound, in 2 rows")
    raw.next_observations = following(raw)
    assert warnings(raw) == {}
    assert "successors" not in infos(raw)


def test_no_environment_and_no_end(make_raw: MakeRaw) -> None:
    none = np.zeros(10, bool)
    assert set(warnings(make_raw(terminals=none, timeouts=none))) == {"environment", "ends"}
    late = make_raw(terminals=none, metadata=NOTES)
    assert infos(late)["terminals"] == "no row is terminal"
    assert "terminals" not in infos(make_raw(metadata=NOTES))


def test_episodes_of_single_rows(make_raw: MakeRaw) -> None:
    assert "10 of 10 episodes have a single row" in warnings(make_raw(terminals=np.ones(10, bool)))["ends"]
    assert "ends" not in warnings(make_raw(terminals=np.arange(10) == 0))


def test_lengths(make_raw: MakeRaw) -> None:
    long = make_raw(metadata={**NOTES, "horizon": 2})
    assert warnings(long)["horizon"].startswith("3 episodes are longer than the limit of 2 steps, up to 4:")
    assert "timeouts" not in infos(long)
    early = make_raw(metadata={**NOTES, "horizon": 5})
    assert infos(early)["timeouts"].startswith("1 timeouts are earlier than the limit of 5 steps")
    assert warnings(make_raw(metadata={**NOTES, "horizon": 4})) == {}


def test_next_observations_that_are_shifted(make_raw: MakeRaw) -> None:
    raw = make_raw(metadata=NOTES)
    raw.next_observations = raw.observations.copy()
    message = warnings(raw)["successors"]
    assert message.startswith("7 of 7 rows inside episodes")
    assert "7 repeat their own observation: the array is shifted by one row" in message
    assert warnings(raw)["last row"].endswith("is its own observation again")
    raw.next_observations = np.roll(raw.observations, -2, axis=0)
    assert "have the observation after the next: the array is shifted by one row" in warnings(raw)["successors"]


def test_next_observations_that_jump_once(make_raw: MakeRaw) -> None:
    raw = make_raw(metadata=NOTES)
    raw.next_observations = following(raw)
    raw.next_observations[4] += 1
    (name, message), *others = warnings(raw).items()
    assert (name, others) == ("successors", [])
    assert message.startswith("1 of 7 rows inside episodes")
    assert message.endswith("have a next observation that differs from the following row: an episode ends at each")


def test_next_observations_of_another_episode(make_raw: MakeRaw) -> None:
    raw = make_raw(metadata=NOTES)
    raw.next_observations = following(raw)
    raw.next_observations[6] = raw.observations[7]
    assert warnings(raw)["successors"].startswith("1 of 1 time limits have the following row's observation")
    raw.next_observations[6] = raw.observations[6]
    assert warnings(raw)["successors"] == "1 time limits repeat their own observation as the next one"
    raw.next_observations = following(raw)
    raw.next_observations[2] = raw.observations[3]
    assert list(warnings(raw)) == ["terminals"]


@pytest.mark.parametrize(("value", "words"), [(np.zeros(2), "all zeros"), (np.ones(2), "the first row's observation")])
def test_last_row_without_a_next_observation(make_raw: MakeRaw, value: np.ndarray, words: str) -> None:
    raw = make_raw(metadata=NOTES)
    raw.observations += 1
    raw.observations[0] = 1
    raw.next_observations = following(raw)
    raw.next_observations[-1] = value
    assert warnings(raw) == {"last row": f"the next observation of the last row is {words}"}
    raw.terminals[-1] = True
    assert warnings(raw) == {}


def test_duplicates_are_counted_exactly(make_raw: MakeRaw, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_raw(actions=np.zeros((10, 1), np.float32), metadata=NOTES)
    raw.observations[[5, 9]] = raw.observations[4]
    raw.observations[3] = raw.observations[0] * -1  # -0 equals 0
    assert repeated_rows(raw.observations, raw.actions).tolist() == [3, 5, 9]
    assert warnings(raw)["duplicates"].startswith(
        "3 rows repeat the observation and action of an earlier row, 1 of them"
    )
    monkeypatch.setattr(arrays, "BLOCK_ROWS", 2)
    monkeypatch.setattr(defects, "_row_keys", lambda arrays: np.zeros(len(arrays[0]), np.uint64))  # all keys collide
    equal_neighbours = repeated_rows(raw.observations[4:6], raw.actions[4:6])
    assert equal_neighbours.tolist() == [1]
    assert repeated_rows(raw.observations[6:9], raw.actions[6:9]).tolist() == []


def test_actions_and_constants(make_raw: MakeRaw) -> None:
    actions = np.zeros((10, 2), np.float32)
    actions[:, 0] = np.arange(10) / 5
    raw = make_raw(actions=actions, metadata=NOTES)
    found = [f.message for f in findings_of(raw) if f.name == "actions"]
    assert found[0].startswith("actions are outside [-1, 1] in 4 rows: 6, 7, 8, 9 (found 0 to 1.8)")
    assert found[1].startswith("25.00% of the action entries are at or beyond a bound, in 5 rows")
    assert found[2:] == ["dimensions 1 never change"]
    assert [f.message for f in findings_of(raw, action_high=3.0) if f.name == "actions"] == found[2:]
    raw.observations[:, 0] = 7
    assert [f.message for f in findings_of(raw) if f.name == "observations"] == ["dimensions 0 never change"]


def test_equal_rewards(make_raw: MakeRaw) -> None:
    assert warnings(make_raw(rewards=np.ones(10), metadata=NOTES))["returns"].startswith("all rewards are equal")


WALK = 400


@pytest.fixture
def walk() -> Callable[..., RawArrays]:
    """A point that moves from (1, 1) to (1, 3) and back in steps of 0.04, in the U-maze with its goal at (1, 1)."""

    def make(late: bool = False, **overrides: object) -> RawArrays:
        angle = np.arange(WALK + 1) * 0.04
        positions = np.stack([1 + 0.01 * np.sin(angle), 2 + np.cos(angle)], axis=1).astype(np.float32)
        rewards = np.linalg.norm(positions - 1, axis=1) <= 0.5
        values = {
            "observations": np.concatenate([positions, np.diff(positions, axis=0, append=0)], axis=1)[:-1],
            "actions": np.random.default_rng(0).uniform(-0.9, 0.9, (WALK, 2)),
            "rewards": rewards[:-1] if late else rewards[1:],
            "terminals": np.zeros(WALK, bool),
            "timeouts": np.arange(WALK) % 100 == 99,
            **overrides,
        }
        return RawArrays(**values)

    return make


def test_maze_without_a_defect(walk: MakeRaw) -> None:
    raw = walk()
    assert warnings(raw, "maze2d-umaze-v1") == {}
    assert infos(raw, "maze2d-umaze-v1")["timeouts"].startswith("at 3 of 3 timeouts the position continues")
    assert "in 3 visits to the goal" in infos(raw, "maze2d-umaze-v1")["rewards"]
    raw.metadata["env_id"] = "cepdiff/maze2d-umaze-v1"
    assert [f.name for f in findings_of(raw)] == [f.name for f in findings_of(raw, find_task("maze2d-umaze-v1"))]


def test_rewards_one_row_late(walk: MakeRaw) -> None:
    message = warnings(walk(late=True), "maze2d-umaze-v1")["rewards"]
    assert "(0 rows disagree) better than the next one (5 disagree)" in message
    assert "rewards" not in warnings(walk(late=True), "maze2d-umaze-dense-v1")  # dense rewards do not reveal the goal


def test_jumps_without_an_end(walk: MakeRaw) -> None:
    raw = walk()
    raw.observations[150:, 1] += 5
    assert "in 1 row: 149 (D4RL issue 77)" in warnings(raw, "antmaze-umaze-v0")["jumps"]
    raw.observations[150:, 1] -= 5
    raw.observations[100:, 1] += 5
    assert "jumps" not in warnings(raw, "antmaze-umaze-v0")  # there is a timeout


def test_terminals_inside_a_walk(walk: MakeRaw) -> None:
    raw = walk()
    raw.terminals[:] = raw.rewards == 1
    assert infos(raw, "antmaze-umaze-v2")["terminals"].startswith(f"at {raw.terminals[:-1].sum()} of ")


def test_a_visit_that_is_rewarded_once(walk: MakeRaw) -> None:
    raw = walk(rewards=np.arange(WALK) == 79, terminals=np.arange(WALK) == 79)
    assert warnings(raw, "antmaze-umaze-diverse-v2")["rewards"] == (
        "1 rewarded rows in 1 visits to the goal, at most 1 rows long: a visit is only rewarded once (D4RL issue 199)"
    )


def test_rewards_for_several_goals(walk: MakeRaw) -> None:
    rewards = walk().rewards.copy()
    rewards[:3] = 1
    raw = walk(rewards=rewards)
    raw.observations[:3, 1] += 1  # at (1, 4)
    assert "rewarded positions are up to 1.5 from their centre" in warnings(raw, "antmaze-umaze-v2")["goals"]
    assert "goals" not in warnings(walk(), "antmaze-umaze-v2")


def test_rewards_that_are_not_sparse(walk: MakeRaw) -> None:
    assert warnings(walk(rewards=np.linspace(0, 2, WALK)), "antmaze-umaze-v2")["rewards"].startswith(
        "rewards range from 0 to 2"
    )
    assert "never reached" in warnings(walk(rewards=np.zeros(WALK)), "antmaze-umaze-v2")["rewards"]


def test_one_row(make_raw: MakeRaw) -> None:
    one = make_raw(**{name: array[:1] for name, array in make_raw().fields.items()}, metadata=NOTES)
    one.next_observations = one.observations + 1
    assert set(warnings(one)) == {"ends", "observations", "actions"}
    assert findings_of(one, find_task("antmaze-umaze-v2"))


def test_time_limits_stored_as_terminals(make_raw: MakeRaw) -> None:
    def ends(*rows: int, **others: object) -> RawArrays:
        return make_raw(terminals=np.isin(np.arange(10), rows), timeouts=np.zeros(10, bool), **others)

    message = warnings(ends(4, 9, metadata=NOTES))["terminals"]
    assert message.startswith("2 of 2 terminals come after exactly 5 steps, with no timeouts")
    horizon = {**NOTES, "horizon": 3}
    assert warnings(ends(2, 3, 6, metadata=horizon))["terminals"].startswith(
        "2 of 3 terminals come after exactly 3 steps"
    )
    assert "terminals" not in warnings(ends(2, 3, 6, metadata=NOTES))  # ends at different times
    assert "terminals" not in warnings(ends(*range(10), metadata=NOTES))  # one step each: a bandit
    flagged = ends(4, 9, metadata=NOTES)
    flagged.timeouts[2] = True
    assert "terminals" not in warnings(flagged)


def test_actions_that_are_choices(make_raw: MakeRaw) -> None:
    choices = np.arange(10)[:, None] % 3 - 1.0
    message = warnings(make_raw(actions=choices.astype(np.float32), metadata=NOTES))["actions"]
    assert message.startswith("all entries are one of 3 whole numbers from -1 to 1: these seem to be discrete")
    with pytest.raises(DataError, match="'actions' has type int64: discrete actions cannot be trained on"):
        make_raw(actions=choices.astype(np.int64))


@pytest.mark.parametrize(("cells", "level"), [(0.5, "info"), (1.0, "warning")])
def test_goals_that_were_left_out(make_raw: MakeRaw, cells: float, level: str) -> None:
    (found,) = (f for f in findings_of(make_raw(metadata={**NOTES, "goal_range": cells})) if f.name == "goals")
    assert found.level == level
    assert "left out of the observations" in found.message + found.handling


def swing(rows: int = 3000) -> np.ndarray:
    """A point mass on three springs: positions and velocities after each step of 0.05."""
    state, states = np.array([1.0, 0.5, -0.3, 0.0, 0.4, 0.2]), np.empty((rows, 6), np.float32)
    for row in range(rows):
        state[3:] -= 0.05 * np.array([1.0, 2.1, 3.7]) * state[:3]
        state[:3] += 0.05 * state[3:]
        states[row] = state
    return states


@pytest.mark.parametrize("kind", ["sound", "missing", "reset", "flagged"])
def test_jumps_without_next_observations(kind: str) -> None:
    """One row is missing, or the end before a reset has no flag; a flag or sound data give no finding."""
    states = swing()
    if kind == "missing":
        states = np.delete(states, 1501, axis=0)
    elif kind != "sound":
        states[1501:] += 1
    rows = len(states)
    raw = RawArrays(
        observations=states,
        actions=np.random.default_rng(0).uniform(-0.9, 0.9, (rows, 1)).astype(np.float32),
        rewards=np.ones(rows, np.float32),
        terminals=np.zeros(rows, bool),
        timeouts=np.arange(rows) == (1500 if kind == "flagged" else rows - 1),
        metadata=NOTES,
    )
    found = warnings(raw).get("jumps", "")
    assert found.startswith("the observation jumps to the next row inside an episode after 1 row: 1500") == (
        kind in ("missing", "reset")
    )
    assert bool(found) == (kind in ("missing", "reset"))
