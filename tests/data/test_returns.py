"""Returns over a window of steps: against the definition, and where a time limit hides them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.returns import known_returns, return_window, window_returns


def buffer_of(lengths: list[int], terminal: list[bool]) -> TransitionBuffer:
    """Episodes of these lengths, which end in a terminal state or at a time limit; rewards are random."""
    rows, last = sum(lengths), np.cumsum(lengths) - 1
    ends = np.isin(np.arange(rows), last)
    dead = np.isin(np.arange(rows), last[np.array(terminal)])
    draws = np.random.default_rng(0)
    return TransitionBuffer.from_arrays(
        RawArrays(
            observations=draws.normal(size=(rows, 2)).astype(np.float32),
            actions=np.zeros((rows, 1), np.float32),
            rewards=draws.normal(size=rows).astype(np.float32),
            terminals=dead,
            timeouts=ends & ~dead,
        )
    )


@pytest.mark.parametrize("window", [1, 2, 3, 7, 8, 100])
def test_returns_are_the_discounted_sums(window: int) -> None:
    buffer = buffer_of([5, 1, 9, 4], [True, False, True, False])
    ends = buffer.episode_ends[buffer.episode_index]
    found = window_returns(buffer.rewards, ends, 0.9, window)
    for row, end in enumerate(ends.tolist()):
        rewards = buffer.rewards[row : min(row + window, end)].tolist()
        assert float(found[row]) == pytest.approx(sum(0.9**k * r for k, r in enumerate(rewards)), abs=1e-12)


def test_a_time_limit_hides_returns_and_a_terminal_state_does_not() -> None:
    buffer = buffer_of([8, 8], [True, False])
    assert return_window(buffer, 0.9) == 4  # half the episode that was cut
    returns, known = known_returns(buffer, buffer.rewards, 0.9)
    assert known.tolist() == [True] * 8 + [True] * 5 + [False] * 3
    assert torch.equal(returns, window_returns(buffer.rewards, buffer.episode_ends[buffer.episode_index], 0.9, 4))


def test_the_window_covers_the_discount() -> None:
    ended = buffer_of([8, 900], [True, True])
    assert return_window(ended, 0.99) == 299  # 0.99^299 = 0.0496
    assert return_window(ended, 0.0) == 1
    assert return_window(buffer_of([700, 3], [False, True]), 0.99) == 299
    assert return_window(buffer_of([1, 1], [False, False]), 0.99) == 1
