"""Reward rules on buffers with known returns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.rewards import apply_rule
from cepdiff.errors import ConfigError, DataError

Make = Callable[..., RawArrays]


def test_range_over_complete_episodes(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw())  # returns 3, 18 and 24 (cut)
    torch.testing.assert_close(apply_rule("return_range", buffer), buffer.rewards * 1000 / (18 - 3))


def test_range_over_all_where_fewer_than_two_are_complete(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw(timeouts=np.zeros(10, bool)))  # returns 3 and 42 (cut)
    torch.testing.assert_close(apply_rule("return_range", buffer), buffer.rewards * 1000 / (42 - 3))


def test_other_rules(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw())
    assert apply_rule("minus_one", buffer).tolist() == list(range(-1, 9))
    assert torch.equal(apply_rule("none", buffer), buffer.rewards)


def test_equal_returns_and_unknown_rules(make_raw: Make) -> None:
    buffer = TransitionBuffer.from_arrays(make_raw(rewards=np.zeros(10)))
    with pytest.raises(DataError, match="reward_rule none"):
        apply_rule("return_range", buffer)
    with pytest.raises(ConfigError, match="Did you mean minus_one"):
        apply_rule("minusone", buffer)
