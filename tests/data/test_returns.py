"""Returns over a window of steps: the length of the window, and rows too near to a time limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.returns import known_returns, return_window


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


def test_a_time_limit_hides_returns_and_a_terminal_state_does_not() -> None:
    buffer = buffer_of([8, 8], [True, False])
    assert return_window(buffer, 0.9) == 4  # half the episode that was cut
    returns, known = known_returns(buffer, buffer.rewards, 0.9)
    assert known.tolist() == [True] * 8 + [True] * 4 + [False] * 4
    for row in known.nonzero().squeeze(-1).tolist():
        rewards = buffer.rewards[row : min(row + 4, 8 if row < 8 else 16)].tolist()
        assert float(returns[row]) == pytest.approx(sum(0.9**k * r for k, r in enumerate(rewards)), abs=1e-6)


def test_the_window_covers_the_discount() -> None:
    ended = buffer_of([8, 900], [True, True])
    assert return_window(ended, 0.99) == 299  # 0.99^299 = 0.0496
    assert return_window(ended, 0.0) == 1
    assert return_window(buffer_of([700, 3], [False, True]), 0.99) == 299
    assert return_window(buffer_of([1, 1], [False, False]), 0.99) == 1
    assert not known_returns(buffer_of([1, 1], [False, False]), torch.ones(2), 0.99)[1].any()
