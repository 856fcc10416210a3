"""Backups over several steps: sums of rewards, where they stop, and the batches that a critic gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.lookahead import look_ahead
from cepdiff.errors import ConfigError

# Row by row, as rewards are 0 ... 9: terminal at 2, time limit at 6 without a next state, the data end at 9.
GAMMA = 0.5


def test_sums_by_hand(make_raw: Callable[..., RawArrays]) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw())
    two = look_ahead(buffer, buffer.rewards, GAMMA, 2)
    assert two.returns[:3].tolist() == [0 + 0.5 * 1, 1 + 0.5 * 2, 2]
    assert two.returns[3:6].tolist() == [3 + 0.5 * 4, 4 + 0.5 * 5, 5]  # row 6 has no known next state
    assert two.last[:6].tolist() == [1, 2, 2, 4, 5, 5]
    assert two.discounts[:6].tolist() == [0.25, 0.25, 0.5, 0.25, 0.25, 0.5]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8, "episode"])
def test_sums_are_those_of_a_loop(num_steps: int | Literal["episode"]) -> None:
    rng = np.random.default_rng(0)
    rows = 200
    terminals, timeouts = rng.random(rows) < 0.05, rng.random(rows) < 0.05
    observations = rng.normal(size=(rows + 1, 2)).astype(np.float32)
    raw = RawArrays(
        observations=observations[:-1],
        actions=np.zeros((rows, 1), np.float32),
        rewards=rng.normal(size=rows).astype(np.float32),
        terminals=terminals,
        timeouts=timeouts & ~terminals,
    )
    buffer = TransitionBuffer.from_arrays(raw)
    found = look_ahead(buffer, buffer.rewards, 0.9, num_steps)
    for row in buffer.transitions.tolist():
        total, last, steps = 0.0, row, 0
        for at in range(row, int(buffer.episode_ends[buffer.episode_index[row]])):
            if buffer.next_index[at] < 0 or steps == num_steps:
                break
            total, last, steps = total + 0.9**steps * float(buffer.rewards[at]), at, steps + 1
        assert (int(found.last[row]), float(found.discounts[row])) == (last, pytest.approx(0.9**steps))
        assert float(found.returns[row]) == pytest.approx(total, abs=1e-5)


def test_one_step_is_the_plain_transition(make_raw: Callable[..., RawArrays]) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw())
    one = look_ahead(buffer, buffer.rewards, 0.99, 1)
    assert torch.equal(one.returns, buffer.rewards)
    assert torch.equal(one.last, torch.arange(10))


def test_rows_without_episodes_are_refused(make_raw: Callable[..., RawArrays]) -> None:
    rng = np.random.default_rng(0)
    foreign = make_raw(next_observations=rng.normal(size=(10, 2)).astype(np.float32))
    buffer = TransitionBuffer.from_arrays(foreign)
    with pytest.raises(ConfigError, match=r"critic\.num_steps: .* only 1 step is known"):
        look_ahead(buffer, buffer.rewards, 0.9, 3)
