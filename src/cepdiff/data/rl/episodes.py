"""Where episodes end, for training and for checks.

An episode ends at `terminals | timeouts`, at a break in the chain of next observations, and at the last row. A break is
a row inside an episode whose next observation is not the following row's: D4RL's `qlearning_dataset`, for instance,
drops the rows of time limits with their flags. If most rows break the chain (shuffled rows, next observations in other
units, a shifted array), it says nothing about episodes, and the flags alone count.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cepdiff.data.rl.arrays import BoolArray, RawArrays, blocks

# Relative to a dimension's largest entry: rounding (float64 to float32, for instance) is not a break.
_ROUNDING = 1e-6
# If more than this fraction of the rows inside episodes are breaks, next observations do not form a chain.
_MOST = 0.5


class Episodes(NamedTuple):
    """N rows in E episodes.

    ends (N,) marks last rows; starts and lengths (E,) in rows; complete (E,) is True for episodes that the end of the
    data did not cut. breaks (N,) marks breaks in the chain of next observations, which only end episodes if `chained`:
    if it is False, only flags end episodes.
    """

    ends: BoolArray
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    complete: BoolArray
    breaks: BoolArray
    chained: bool

    def returns(self, rewards: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Undiscounted sums (E,) of rewards (N,)."""
        sums: npt.NDArray[np.float64] = np.add.reduceat(rewards.astype(np.float64), self.starts)
        return sums


def episodes_of(raw: RawArrays) -> Episodes:
    """Split the rows into episodes."""
    ends = raw.terminals | raw.timeouts
    ends[-1] = True
    inside = ~ends
    breaks = np.zeros(len(raw), dtype=np.bool_)
    if raw.next_observations is not None:
        breaks[:-1] = inside[:-1] & ~_follows(raw)
    chained = int(breaks.sum()) <= _MOST * int(inside.sum())
    if chained:
        ends |= breaks
    stops = np.flatnonzero(ends) + 1
    starts = np.concatenate(([0], stops[:-1]))
    complete = np.ones(len(stops), dtype=np.bool_)
    complete[-1] = raw.terminals[-1] | raw.timeouts[-1]
    return Episodes(ends, starts, stops - starts, complete, breaks, chained)


def going_on(raw: RawArrays) -> BoolArray:
    """Terminal rows (N,) after which the recording goes on.

    In D4RL's AntMaze each row at the goal is terminal, and the ant walks on. There are none unless most terminal rows
    are directly followed by another one, which a new episode does not begin with. A recording goes on unless the row is
    a timeout, or its next observation is known and is not the following row's.
    """
    on = raw.terminals & ~raw.timeouts
    on[-1] = False
    repeated = int((on[:-1] & raw.terminals[1:]).sum())
    if 2 * repeated <= int(raw.terminals.sum()) or raw.terminals.all():  # episodes of one step are all terminal
        return np.zeros_like(on)
    if raw.next_observations is not None:
        on[:-1] &= _follows(raw)
    elif not raw.timeouts.any():
        return np.zeros_like(on)
    return on


def trajectories_of(raw: RawArrays) -> Episodes:
    """Split the rows as `episodes_of`, but not after terminal rows where the recording is `going_on`."""
    return episodes_of(replace(raw, terminals=raw.terminals & ~going_on(raw)))


def _follows(raw: RawArrays) -> BoolArray:
    """Rows (N - 1,) whose next observation is the following row's, up to rounding."""
    assert raw.next_observations is not None
    following, own = raw.next_observations[:-1], raw.observations[1:]
    slack = _ROUNDING * np.maximum(raw.observations.max(axis=0), -raw.observations.min(axis=0))
    close = np.empty(len(following), dtype=np.bool_)
    for part in blocks(len(following)):
        close[part] = (np.abs(following[part] - own[part]) <= slack).all(axis=1)
    return close
