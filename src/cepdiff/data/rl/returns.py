"""Discounted returns over a window of steps, for judging values by the data only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cepdiff.data.rl.buffer import TransitionBuffer

# A window leaves out at most this share of the discount's weight, if episodes are long enough.
LEFT_OUT = 0.05


def window_returns(rewards: Tensor, ends: Tensor, discount: float, window: int) -> Tensor:
    """Discounted sums (N,) of the next `window` rewards (N,), up to the episode's end, in float64.

    `ends` (N,) is one past the last row of each row's episode. By doubling: a sum over 2n steps is that over n steps
    plus the discounted one n rows later, so the cost is N log(window).
    """
    rows = torch.arange(len(rewards))

    def later(sums: Tensor, steps: int) -> Tensor:
        there = rows + steps
        return torch.where(there < ends, sums[there.clamp(max=len(rows) - 1)], 0.0)

    total, width = torch.zeros(len(rewards), dtype=torch.float64), 0
    part, size = rewards.double(), 1  # sums over `size` steps
    while size <= window:
        if window & size:
            total = total + discount**width * later(part, width)
            width += size
        part = part + discount**size * later(part, size)
        size *= 2
    return total


def return_window(buffer: TransitionBuffer, discount: float) -> int:
    """Steps after which the discount has fallen to `LEFT_OUT`, but at most half the median episode that was cut.

    An episode is cut if its last row is not terminal: by a time limit, or by the end of the data.
    """
    steps = math.ceil(math.log(LEFT_OUT) / math.log(discount)) if discount > 0.0 else 1
    cut = ~buffer.terminals[buffer.episode_ends - 1]
    lengths = (buffer.episode_ends - buffer.episode_starts)[cut]
    return max(1, min(steps, int(lengths.median()) // 2)) if len(lengths) else steps


def known_returns(buffer: TransitionBuffer, rewards: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Returns (N,) over the buffer's `return_window`, and a mask (N,) of the rows whose window the data hold in full.

    A terminal state is followed by rewards of 0. A window that a time limit cuts is unknown.
    """
    window = return_window(buffer, discount)
    ends = buffer.episode_ends[buffer.episode_index]
    known = (torch.arange(len(buffer)) + window <= ends) | buffer.terminals[ends - 1]
    return window_returns(rewards, ends, discount, window), known
