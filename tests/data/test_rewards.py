"""Reward rules on buffers with known returns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.rewards import scaling_of, usable_scaling
from cepdiff.errors import ConfigError, DataError

Make = Callable[..., RawArrays]


def test_range_over_complete_episodes(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw())  # returns 3, 18 and 24 (cut)
    scaling = scaling_of("return_range", buffer)
    torch.testing.assert_close(scaling.apply(buffer.rewards), buffer.rewards * 1000 / (18 - 3))
    assert str(scaling) == "return_range (x 66.67 over 2 complete episodes; range 15)"
    assert scaling.record == {"reward_rule": "return_range", "reward_factor": "66.6667"}


def test_range_over_all_where_fewer_than_two_are_complete(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw(timeouts=np.zeros(10, bool)))  # returns 3 and 42 (cut)
    assert scaling_of("return_range", buffer).factor == 1000 / (42 - 3)


def test_other_rules(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw())
    assert scaling_of("minus_one", buffer).apply(buffer.rewards).tolist() == list(range(-1, 9))
    assert scaling_of("none", buffer).apply(buffer.rewards) is buffer.rewards


def test_equal_returns_and_unknown_rules(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw(rewards=np.zeros(10)))
    with pytest.raises(DataError, match="reward_rule none"):
        scaling_of("return_range", buffer)
    with pytest.raises(ConfigError, match="Did you mean minus_one"):
        scaling_of("minusone", buffer)


def test_returns_that_are_equal_up_to_rounding(make_raw: Make) -> None:
    """Three episodes with a return of 1 in exact numbers; a spread above rounding counts."""
    rewards = np.array([1 / 3] * 3 + [0.25] * 4 + [1 / 3] * 3, np.float32)
    buffer = TransitionBuffer.from_arrays(make_raw(rewards=rewards))
    assert buffer.episode_returns()[0].unique().numel() == 2
    with pytest.raises(DataError, match="all 2 have 1; use"):
        scaling_of("return_range", buffer)
    rewards[0] += 1e-4
    buffer = TransitionBuffer.from_arrays(make_raw(rewards=rewards))
    assert scaling_of("return_range", buffer).factor == pytest.approx(1e7, rel=0.01)


def test_a_buffer_without_a_transition(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw(terminals=np.zeros(10, bool), timeouts=np.ones(10, bool)))
    with pytest.raises(DataError, match="no transition: none of the 10 rows is terminal or has a known next state"):
        usable_scaling("none", buffer)
    one = TransitionBuffer.from_arrays(make_raw(terminals=np.zeros(10, bool), timeouts=np.zeros(10, bool)))
    assert usable_scaling("none", one).factor == 1
    with pytest.raises(DataError, match=r"there is only one, with 45; use --data.reward_rule none"):
        usable_scaling("return_range", one)
