"""Episodes without flags: the chain of next observations shows their ends, unless it is none."""

from __future__ import annotations

import numpy as np
import pytest

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer, select_episodes
from cepdiff.data.rl.episodes import episodes_of, going_on
from cepdiff.data.rl.rewards import scaling_of
from cepdiff.errors import DataError

LENGTHS = (200, 120, 200, 40, 200)  # 200 is the time limit, the others end in a terminal


def walk(dtype: type = np.float32) -> RawArrays:
    """A random walk with a reset after each episode, flags, and next observations for all rows."""
    rng, rows = np.random.default_rng(0), sum(LENGTHS)
    ends = np.cumsum(LENGTHS) - 1
    observations = rng.normal(size=(rows + 1, 3)).astype(dtype)
    following = observations[1:].copy()
    following[ends] = rng.normal(size=(len(ends), 3))  # observed before the reset
    flags = np.zeros((2, rows), bool)
    for end, length in zip(ends, LENGTHS, strict=True):
        flags[int(length == 200), end] = True
    return RawArrays(
        observations=observations[:-1],  # type: ignore[arg-type]
        actions=np.zeros((rows, 1), np.float32),
        rewards=rng.uniform(0.5, 1.5, rows).astype(np.float32),
        terminals=flags[0],
        timeouts=flags[1],
        next_observations=following,  # type: ignore[arg-type]
    )


def without_limits(raw: RawArrays) -> RawArrays:
    """D4RL's `qlearning_dataset` with an array of no timeouts: rows of time limits are dropped, with their flags."""
    kept = ~raw.timeouts
    return RawArrays(**{name: array[kept] for name, array in raw.fields.items()})


def factor(buffer: TransitionBuffer) -> float:
    return float((scaling_of("return_range", buffer).apply(buffer.rewards) / buffer.rewards).mean())


def test_rows_of_time_limits_that_were_dropped() -> None:
    true, dropped = walk(), without_limits(walk())
    expected, buffer = TransitionBuffer.from_arrays(true), TransitionBuffer.from_arrays(dropped)
    assert (buffer.episode_ends - buffer.episode_starts).tolist() == [199, 120, 199, 40, 199]
    assert buffer.episode_complete.tolist() == [True, True, True, True, False]  # nothing follows the last one
    assert factor(buffer) == pytest.approx(factor(expected), rel=0.01)
    assert np.array_equal(buffer.states[buffer.next_index].numpy(), dropped.next_observations)
    taken = buffer.episode_index[select_episodes(buffer, 200, seed=0)].unique()
    assert len(taken) < 5  # whole episodes, not the whole buffer


def test_flags_agree_with_the_chain_and_rounding_is_no_break() -> None:
    raw = walk()
    assert not episodes_of(raw).breaks.any()
    assert raw.next_observations is not None
    raw.next_observations *= np.float32(1 + 1e-7)
    episodes = episodes_of(raw)
    assert episodes.lengths.tolist() == list(LENGTHS)
    assert episodes.chained


@pytest.mark.parametrize("kind", ["shuffled", "normalised", "shifted"])
def test_next_observations_that_are_no_chain(kind: str) -> None:
    """Only flags end episodes then, and no factor is taken from them."""
    raw = walk()
    assert raw.next_observations is not None
    if kind == "shuffled":
        order = np.random.default_rng(1).permutation(len(raw))
        raw = RawArrays(**{name: array[order] for name, array in raw.fields.items()})
    elif kind == "normalised":
        raw.next_observations = 2 * raw.next_observations + 1
    else:
        raw.next_observations = raw.observations.copy()
    episodes, buffer = episodes_of(raw), TransitionBuffer.from_arrays(raw)
    ends = raw.terminals | raw.timeouts
    assert np.array_equal(np.flatnonzero(episodes.ends[:-1]), np.flatnonzero(ends[:-1]))
    assert not buffer.chained
    with pytest.raises(DataError, match=r"not in time order.*--data.reward_rule none"):
        scaling_of("return_range", buffer).apply(buffer.rewards)
    assert len(scaling_of("none", buffer).apply(buffer.rewards)) == len(raw)


def test_an_end_is_no_goal_where_the_recording_goes_on() -> None:
    raw = walk()
    assert not going_on(raw).any()
    raw.next_observations = np.roll(raw.observations, -1, axis=0)  # of a terminal row: the next episode's first
    assert not going_on(raw).any()
    raw.terminals = np.ones(len(raw.terminals), bool)  # episodes of one step
    assert not going_on(raw).any()
    raw.terminals[:3] = False
    assert going_on(raw).tolist() == [*(raw.terminals & ~raw.timeouts)[:-1], False]
    raw.next_observations = raw.next_observations + 1.0  # known not to be the following rows
    assert not going_on(raw).any()
    raw.next_observations, raw.timeouts = None, np.zeros(len(raw.terminals), bool)  # nothing tells walks apart
    assert not going_on(raw).any()
