"""Episodes, successors and bounds: everything the buffer's docstring promises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer, select_episodes
from cepdiff.errors import ConfigError, DataError

Make = Callable[..., RawArrays]


def test_episodes_end_at_both_flags_and_at_the_last_row(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw())
    assert len(buffer) == 10
    assert buffer.num_episodes == 3
    assert buffer.episode_starts.tolist() == [0, 3, 7]
    assert buffer.episode_ends.tolist() == [3, 7, 10]
    assert buffer.episode_index.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    returns, complete = buffer.episode_returns()
    assert returns.tolist() == [0 + 1 + 2, 3 + 4 + 5 + 6, 7 + 8 + 9]
    assert complete.tolist() == [True, True, False]


def test_successors_without_next_observations(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw())
    assert buffer.next_index.tolist() == [1, 2, 2, 4, 5, 6, -1, 8, 9, -1]
    assert buffer.transitions.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert buffer.states.shape == (10, 2)
    torch.testing.assert_close(buffer.observations, buffer.states)


def test_last_row_terminal_or_both_flags(make_raw: Make) -> None:
    terminals = np.zeros(10, bool)
    terminals[[6, 9]] = True  # row 6 has both flags: terminal wins
    buffer = TransitionBuffer.from_arrays(make_raw(terminals=terminals))
    assert buffer.next_index.tolist() == [1, 2, 3, 4, 5, 6, 6, 8, 9, 9]
    assert buffer.episode_returns()[1].tolist() == [True, True]
    assert buffer.transitions.tolist() == list(range(10))


def test_successors_with_next_observations(make_raw: Make) -> None:
    raw = make_raw()
    following = np.roll(raw.observations, -1, axis=0).copy()
    following[6] = raw.observations[7]  # a time limit followed by an equal state: still not a successor
    following[9] = (100, 101)
    following[4, 1] += 1e-3  # differs from row 5 within an episode
    buffer = TransitionBuffer.from_arrays(make_raw(next_observations=following))
    assert buffer.next_index.tolist() == [1, 2, 10, 4, 11, 6, 12, 8, 9, 13]
    assert buffer.states.shape == (14, 2)
    np.testing.assert_array_equal(buffer.states[buffer.next_index].numpy(), following)
    np.testing.assert_array_equal(buffer.observations.numpy(), raw.observations)
    assert buffer.transitions.tolist() == list(range(10))


def test_memory_is_shared_where_nothing_changes(make_raw: Make) -> None:
    raw = make_raw()
    buffer = TransitionBuffer.from_arrays(raw)
    for tensor, array in (
        (buffer.states, raw.observations),
        (buffer.actions, raw.actions),
        (buffer.rewards, raw.rewards),
        (buffer.terminals, raw.terminals),
    ):
        assert tensor.data_ptr() == array.ctypes.data
    assert not raw.terminals[-1]  # the cut at the last row is not written into the arguments


def test_bounds_argument_over_metadata_over_default(make_raw: Make) -> None:
    actions = np.linspace(0, 1, 10, dtype=np.float32)[:, None]
    raw = make_raw(actions=actions)
    assert TransitionBuffer.from_arrays(raw).action_low == (-1.0,)
    raw.metadata = {"action_low": (-2.0,), "action_high": 2.0}
    stored = TransitionBuffer.from_arrays(raw)
    assert (stored.action_low, stored.action_high) == ((-2.0,), (2.0,))
    np.testing.assert_allclose(stored.actions.numpy(), actions / 2)
    given = TransitionBuffer.from_arrays(raw, action_low=0, action_high=[1.0])
    assert given.spec().action_low == (0.0,)
    np.testing.assert_allclose(given.actions.numpy(), 2 * actions - 1, atol=1e-7)
    np.testing.assert_array_equal(raw.actions, actions)


def test_bounds_differ_by_dimension(make_raw: Make) -> None:
    actions = np.tile(np.array([[-3.0, 10.0], [1.0, 30.0]], np.float32), (5, 1))
    buffer = TransitionBuffer.from_arrays(make_raw(actions=actions), [-3.0, 10.0], [1.0, 30.0])
    assert buffer.actions[:2].tolist() == [[-1, -1], [1, 1]]


def test_actions_beyond_the_bounds(make_raw: Make) -> None:
    actions = make_raw().actions.copy()
    actions[4], actions[8] = 1.5, -1.01
    with pytest.raises(DataError, match=r"\[-1, 1\] in 2 rows: 4, 8 \(found -1.01 to 1.5\).*--data.action_low"):
        TransitionBuffer.from_arrays(make_raw(actions=actions))
    actions[4], actions[8] = 1 + 5e-7, -1 - 5e-7
    clipped = TransitionBuffer.from_arrays(make_raw(actions=actions)).actions
    assert (clipped[4], clipped[8]) == (1, -1)


@pytest.mark.parametrize("low", [-np.inf, [0.0, 1.0], 2.0])
def test_unusable_bounds(make_raw: Make, low: float) -> None:
    with pytest.raises(DataError, match="action_low"):
        TransitionBuffer.from_arrays(make_raw(), action_low=low)


def test_content_hash_follows_content_alone(make_raw: Make) -> None:
    base = TransitionBuffer.from_arrays(make_raw()).content_hash
    assert base == TransitionBuffer.from_arrays(make_raw(source="elsewhere")).content_hash
    rewards = make_raw().rewards
    rewards[9] += 1
    following = make_raw().observations + 1
    others = [
        TransitionBuffer.from_arrays(make_raw(rewards=rewards)),
        TransitionBuffer.from_arrays(make_raw(next_observations=following)),
        TransitionBuffer.from_arrays(make_raw(timeouts=np.zeros(10, bool))),
        TransitionBuffer.from_arrays(make_raw(), action_low=-2.0),
    ]
    assert len({base, *(other.content_hash for other in others)}) == 5


def test_content_hash_is_stable() -> None:
    zeros = np.zeros((2, 1), np.float32)
    raw = RawArrays(zeros, zeros, zeros[:, 0], np.zeros(2, bool), np.ones(2, bool))
    assert TransitionBuffer.from_arrays(raw).content_hash == "b56952dc144904613f20c8cc23ec84b3"


def test_spec_and_normalisation(make_raw: Make) -> None:
    observations = make_raw().observations.copy()
    observations[:, 1] = 7
    raw = make_raw(observations=observations, next_observations=observations + 50)
    spec = TransitionBuffer.from_arrays(raw).spec(normalize=True)
    assert (spec.observation_size, spec.action_size) == (2, 1)
    assert spec.observation_mean == (4.5, 7.0)  # the appended next observations are excluded
    assert spec.observation_std == pytest.approx((np.arange(10).std(), 1.0))
    assert TransitionBuffer.from_arrays(raw).spec().observation_mean is None
    assert type(spec).from_dict(spec.to_dict()) == spec


def long_buffer(make_raw: Make) -> TransitionBuffer:
    lengths = np.random.default_rng(0).integers(1, 60, size=100)
    rows = int(lengths.sum())
    timeouts = np.zeros(rows, bool)
    timeouts[np.cumsum(lengths) - 1] = True
    wide = np.zeros((rows, 1), np.float32)
    return TransitionBuffer.from_arrays(
        make_raw(observations=wide, actions=wide, rewards=wide, terminals=np.zeros(rows, bool), timeouts=timeouts)
    )


def test_select_episodes_takes_whole_ones(make_raw: Make) -> None:
    buffer = long_buffer(make_raw)
    rows = select_episodes(buffer, 1000, seed=0)
    assert abs(len(rows) - 1000) <= 30  # half the longest episode
    assert torch.equal(rows, rows.sort().values)
    lengths = buffer.episode_ends - buffer.episode_starts
    taken, counts = buffer.episode_index[rows].unique(return_counts=True)
    assert torch.equal(counts, lengths[taken])
    assert torch.equal(rows, select_episodes(buffer, 1000, seed=0))
    assert not torch.equal(rows[:100], select_episodes(buffer, 1000, seed=1)[:100])


def test_select_episodes_limits(make_raw: Make) -> None:
    buffer = long_buffer(make_raw)
    assert torch.equal(select_episodes(buffer, None, 0), torch.arange(len(buffer)))
    assert torch.equal(select_episodes(buffer, 10**9, 0), torch.arange(len(buffer)))
    assert len(buffer.episode_index[select_episodes(buffer, 1, 0)].unique()) == 1
    with pytest.raises(ConfigError, match="max_rows is 0"):
        select_episodes(buffer, 0, 0)
