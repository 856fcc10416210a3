"""Several datasets as one, and a fraction of the episodes, by value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.data.rl.memory import ArrayDataModule
from cepdiff.data.rl.parts import Choice, joined
from cepdiff.data.rl.source import load_dataset, part_names
from cepdiff.errors import CepdiffError, ConfigError, DataError

MakeRaw = Callable[..., RawArrays]


@pytest.fixture
def make_parts(make_raw: MakeRaw, tmp_path: Path) -> Callable[..., str]:
    """The name of two files of ten rows each; keywords change the second one's metadata."""

    def make(**metadata: Any) -> str:
        write_arrays(tmp_path / "a.hdf5", make_raw(), {"env_id": "A-v0", "note": "first"})
        write_arrays(tmp_path / "b.hdf5", make_raw(), {"env_id": "A-v0", "note": "second"} | metadata)
        return f"{tmp_path / 'a.hdf5'},{tmp_path / 'b.hdf5'}"

    return make


def test_a_list_longer_than_a_files_name() -> None:
    assert len(part_names(",".join(f"hopper-medium-v{i}" for i in range(40)))) == 40


def test_names(tmp_path: Path) -> None:
    assert part_names("a,b.hdf5, minari:c/d-v0") == ["a", "b.hdf5", "minari:c/d-v0"]
    (tmp_path / "a,b.hdf5").touch()
    assert part_names(str(tmp_path / "a,b.hdf5")) == [str(tmp_path / "a,b.hdf5")]
    with pytest.raises(ConfigError, match="empty name between its commas"):
        part_names("a,,b")


def test_an_episode_does_not_go_on_into_the_next_part(make_parts: Callable[..., str], make_raw: MakeRaw) -> None:
    whole, one = load_dataset(make_parts()), make_raw()
    for name, array in one.fields.items():
        if name != "timeouts":
            assert np.array_equal(whole.fields[name], np.concatenate([array, array]))
    assert np.flatnonzero(whole.timeouts).tolist() == [6, 9, 16]
    buffer = TransitionBuffer.from_arrays(whole)
    assert buffer.episode_ends.tolist() == [3, 7, 10, 13, 17, 20]
    assert int(buffer.next_index[9]) == -1
    assert whole.metadata == {"env_id": "A-v0"}


def test_a_part_that_ends_with_a_terminal_gets_no_timeout(make_raw: MakeRaw) -> None:
    terminals = np.arange(10) == 9
    whole = joined([make_raw(terminals=terminals), make_raw()])
    assert np.flatnonzero(whole.timeouts).tolist() == [6, 16]


def test_only_one_part_needs_to_name_a_fact(make_raw: MakeRaw) -> None:
    named = {"env_id": "A-v0", "action_low": (-1.0,)}
    assert joined([make_raw(), make_raw(metadata=named)]).metadata == named


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {"env_id": "B-v0"}}, "b has env_id B-v0, but a has A-v0: the parts of a dataset must agree"),
        ({"metadata": {"horizon": 7}}, "b has horizon 7, but a has 5"),
        ({"metadata": {"reward_rule": "none"}}, "b has reward rule none, but a has None"),
        ({"metadata": {"action_high": 2.0}}, r"b has action_high \[2.0\], but a has \[1.0\]"),
        ({"observations": np.zeros((10, 3))}, "b has observation size 3, but a has 2"),
        ({"actions": np.zeros((10, 2))}, "b has action size 2, but a has 1"),
        ({"next_observations": np.zeros((10, 2))}, "b has the arrays .*next_observations, but a has observations"),
    ],
)
def test_parts_that_differ(make_raw: MakeRaw, changes: dict[str, Any], message: str) -> None:
    first = make_raw(source="a", metadata={"env_id": "A-v0", "horizon": 5})
    with pytest.raises(DataError, match=message):
        joined([first, make_raw(source="b", **changes)])


def test_a_run_on_several_files(make_parts: Callable[..., str]) -> None:
    data = OfflineDataModule(make_parts(), reward_rule="none")
    data.prepare_data()
    data.setup()
    assert data.dataset_name == "a+b"
    assert len(data.buffer) == 20
    with pytest.raises(DataError, match="no such file"):
        OfflineDataModule(f"{data.dataset},absent.hdf5").prepare_data()


def episodes(fraction: float, choose: Choice = "random", **options: Any) -> OfflineDataModule:
    """Ten episodes of two steps; the return of episode i is 1 + 2 i for i < 5, then 30 - 2 i."""
    returns = np.array([1, 3, 5, 7, 9, 20, 18, 16, 14, 12], np.float32)
    rows = np.arange(20, dtype=np.float32)
    arrays = {
        "observations": rows[:, None],
        "actions": np.zeros((20, 1)),
        "rewards": np.repeat(returns / 2, 2),
        "terminals": np.zeros(20, bool),
        "timeouts": rows % 2 == 1,
    }
    data = ArrayDataModule(arrays, fraction=fraction, choose=choose, **{"reward_rule": "none", **options})
    data.setup()
    return data


def test_the_best_tenth_of_the_rows() -> None:
    assert episodes(0.1, "best").buffer.observations.flatten().tolist() == [10, 11]
    best = episodes(0.3, "best")
    assert best.buffer.observations.flatten().tolist() == [10, 11, 12, 13, 14, 15]
    assert best.buffer.episode_ends.tolist() == [2, 4, 6]
    assert best.findings[0].message == "3 of 10 episodes, 6 of 20 rows, the best by return; returns 16 to 20"
    assert episodes(1e-9, "best").buffer.episode_returns()[0].tolist() == [20]


def test_a_margin_adds_the_episodes_that_are_nearly_as_good() -> None:
    """Returns are 1 to 20; a margin of 4.1 / 19 takes those of at least 15.9."""
    near = episodes(0.1, "best", margin=4.1 / 19)
    assert near.buffer.episode_returns()[0].tolist() == [20, 18, 16]
    assert "3 of 10 episodes" in near.findings[0].message
    more = episodes(0.3, "best", margin=0.01)  # never fewer than the fraction
    assert more.buffer.episode_returns()[0].tolist() == [20, 18, 16]


def test_a_critic_of_all_rows_sees_them_as_the_policy_sees_its_own() -> None:
    part, whole = episodes(0.1, "best", reward_rule="return_range"), episodes(1.0, reward_rule="return_range")
    assert part.for_critic() is part
    part = episodes(0.1, "best", reward_rule="return_range", critic_rows="all", normalize_observations=True)
    assert len(part.buffer) == 2
    critics = part.for_critic()
    assert critics.content_hash == whole.content_hash
    assert torch.equal(critics.rewards(), whole.rewards())
    fields = ["observations", "rewards"]
    batch = critics.gatherer(fields)(critics.rows(fields))
    torch.testing.assert_close(batch["observations"].flatten(), (torch.arange(20.0) - 10.5) / 0.5)  # rows 10 and 11
    assert torch.equal(batch["rewards"], whole.rewards())


@pytest.mark.parametrize("successors", [True, False])
def test_a_walk_that_goes_on_at_its_goal_is_chosen_whole(successors: bool) -> None:
    """Four walks of five steps, as D4RL records AntMaze: each row at the goal has reward 1 and is terminal."""
    goals = np.zeros((4, 5), bool)
    goals[1, 3:], goals[2, 1:4] = True, True
    observations, ends = np.arange(20, dtype=np.float32)[:, None], np.arange(20) % 5 == 4
    arrays = {
        "observations": observations,
        "actions": np.zeros((20, 1)),
        "rewards": goals.flatten().astype(np.float32),
        "terminals": goals.flatten(),
        "timeouts": ends,
    }
    if successors:
        arrays["next_observations"] = observations + 1.0 + 50.0 * ends[:, None]  # observed before the next walk
    best = ArrayDataModule(arrays, fraction=0.5, choose="best", reward_rule="none")
    best.setup()
    assert best.findings[0].message == "2 of 4 episodes, 10 of 20 rows, the best by return; returns 2 to 3"
    assert best.buffer.observations.flatten().tolist() == list(range(5, 15))
    assert best.buffer.terminals.sum() == 5  # values still end at the goal
    assert not any("single row" in finding.message for finding in best.findings)


def test_rewards_of_a_fraction_are_scaled_as_on_all_rows() -> None:
    whole, part = episodes(1.0, reward_rule="return_range"), episodes(0.1, "best", reward_rule="return_range")
    assert part.scaling == whole.scaling
    assert part.rewards().tolist() == (part.buffer.rewards * (1000 / 19)).tolist()  # returns are 1 to 20


def test_random_episodes_depend_on_the_seed_only() -> None:
    chosen = [tuple(episodes(0.5, seed=seed).buffer.observations.flatten().tolist()) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    for rows in chosen:
        assert len(rows) == 10
        assert list(rows) == sorted(rows)
        assert all(a + 1 == b and a % 2 == 0 for a, b in zip(rows[::2], rows[1::2], strict=True))
    hashes = {episodes(0.5, seed=seed).content_hash for seed in (0, 1)} | {episodes(1.0).content_hash}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, r"data.fraction is 0.0; expected a number in \(0, 1\]"),
        ({"fraction": 1.5}, "data.fraction is 1.5"),
        ({"fraction": float("nan")}, "data.fraction is nan"),
        ({"fraction": 0.5, "margin": 0.1}, r'data.margin: needs data.choose "best" and a data.fraction below 1'),
        ({"choose": "best", "margin": 0.1}, "data.margin: needs"),
        ({"margin": 1.5}, r"data.margin is 1.5; expected a number in \[0, 1\)"),
        ({"choose": "worst"}, "data.choose is 'worst'; expected random or best"),
    ],
)
def test_fractions_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OfflineDataModule("reacher-replay", **options)


def test_an_own_buffer_cannot_be_cut() -> None:
    class Own(OfflineDataModule):
        def load_buffer(self) -> TransitionBuffer:
            raise AssertionError

    with pytest.raises(CepdiffError, match=r"data.fraction: Own loads its own buffer"):
        Own("mine", fraction=0.5).prepare_data()
