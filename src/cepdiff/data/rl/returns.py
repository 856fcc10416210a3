"""Returns from the rewards in the data, without any critic's values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.lookahead import look_ahead

# The share of the discount's weight that a window leaves out, if episodes are long enough.
LEFT_OUT = 0.05


def return_window(buffer: TransitionBuffer, discount: float) -> int:
    """Steps after which the discount has fallen to `LEFT_OUT`, at most half the median length of the cut episodes.

    An episode is cut, by a time limit or by the end of the data, if its last row is not terminal.
    """
    steps = math.ceil(math.log(LEFT_OUT) / math.log(discount)) if discount > 0.0 else 1
    cut = ~buffer.terminals[buffer.episode_ends - 1]
    lengths = (buffer.episode_ends - buffer.episode_starts)[cut]
    return max(1, min(steps, int(lengths.median()) // 2)) if len(lengths) else steps


def known_returns(buffer: TransitionBuffer, rewards: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Returns (N,) over the buffer's `return_window`, and a mask (N,) of the rows whose window ends before a cut.

    Rewards after a terminal state are 0. Raises ConfigError if the rows form no episodes.
    """
    window = return_window(buffer, discount)
    ends = buffer.episode_ends[buffer.episode_index]
    known = (torch.arange(len(buffer)) + window < ends) | buffer.terminals[ends - 1]
    return look_ahead(buffer, rewards, discount, window).returns, known
