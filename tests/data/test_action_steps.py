"""Sequences of actions that the networks see as one: their rows, and a run with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.errors import ConfigError

Make = Callable[..., RawArrays]


def test_an_action_is_followed_by_the_next_ones_of_its_episode(make_raw: Make) -> None:
    """Episodes 0-2, 3-6 and 7-9; at their ends the last action is repeated."""
    plain = TransitionBuffer.from_arrays(make_raw())
    found = plain.with_action_steps(3)
    rows = torch.tensor([[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 5], [4, 5, 6], [5, 6, 6], [6, 6, 6]])
    assert torch.equal(found.actions[:7], plain.actions[rows].squeeze(-1))
    assert found.whole_sequences.tolist() == [True, False, False, True, True, False, False, True, False, False]
    assert found.content_hash != plain.content_hash
    assert torch.equal(plain.with_action_steps(1).actions, plain.actions)


def test_two_dimensions_stay_together(make_raw: Make) -> None:
    actions = torch.arange(20.0).reshape(10, 2).div(20.0)
    found = TransitionBuffer.from_arrays(make_raw(actions=actions.numpy())).with_action_steps(2)
    assert torch.equal(found.actions[3], actions[3:5].flatten())
    spec = found.spec()
    assert (spec.action_size, spec.action_steps, spec.modeled_size) == (2, 2, 4)
    assert len(spec.action_low) == 2


def test_rows_past_the_end_are_for_critics_of_terminal_episodes_only(make_file: Callable[..., Path]) -> None:
    data = OfflineDataModule(str(make_file()), action_steps=2)
    data.setup()
    assert data.sizes == (2, 2)
    assert data.rows(["observations", "actions"]).tolist() == [0, 1, 3, 4, 5, 7, 8]
    # Row 2 is terminal; rows 6 and 9 end without one, and their successors are unknown.
    with_returns = ["observations", "actions", "rewards", "terminals", "next_observations"]
    assert data.rows(with_returns).tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    batch = data.gatherer(["actions"])(torch.tensor([[0, 3]]))
    assert batch["actions"].shape == (1, 2, 2)


def test_rows_that_form_no_episodes(make_raw: Make) -> None:
    loose = replace(TransitionBuffer.from_arrays(make_raw()), chained=False)
    with pytest.raises(ConfigError, match=r"data.action_steps: next observations are not the following rows'"):
        loose.with_action_steps(2)
